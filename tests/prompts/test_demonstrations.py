import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_files import CONVERSATION, QUESTION, write

from sppo.prompts import PromptError
from sppo.recipe import PromptSource

ANSWERED = {"role": "assistant", "content": "It is so."}


def _demonstrated(split, name, rows, demonstration, **options):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    source = PromptSource(source=write(name, lines), demonstration=demonstration, **options)
    found = split(source).iterations[0].to_pylist()
    return {row["messages"][-1]["content"]: row for row in found}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "And why?", "completion": "It is so."}, "completion"),
        ({"prompt": [QUESTION], "completion": [ANSWERED]}, "completion"),
        ({"prompt": "And why?", "chosen": [QUESTION, ANSWERED], "rejected": [QUESTION, ANSWERED]}, "chosen"),
        ({"chosen": [QUESTION, ANSWERED], "rejected": [QUESTION, ANSWERED]}, "chosen"),
        ({"messages": [QUESTION, ANSWERED]}, "messages"),
        ({"instruction": "And why?", "output": "It is so."}, "output"),
    ],
)
def test_a_demonstration_in_the_forms_of_the_hubs_data_sets(split, llama, row, column):
    other = json.loads(json.dumps(row).replace("And why?", "Who?"))
    third = json.loads(json.dumps(row).replace("And why?", "When?"))
    found = _demonstrated(split, "a.jsonl", [row, other, third], column)
    for question, of in found.items():
        assert of["messages"] == [{"role": "user", "content": question}]
        assert of["demonstration"]["text"] == "It is so."
        ids = of["demonstration"]["token_ids"]
        assert ids[-1] == llama.end_of_turn
        assert llama.decode(ids) == "It is so."


def test_demonstrations_of_conversations_from_parquet(split, tmp_path):
    rows = [
        {"messages": [*CONVERSATION[:3], {"role": "user", "content": f"q{n}"}, ANSWERED]} for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    found = split(PromptSource(source="a.parquet", demonstration="messages")).iterations[0].to_pylist()
    assert len(found) == 2
    assert all(row["messages"][:3] == CONVERSATION[:3] for row in found)
    assert all(row["demonstration"]["text"] == "It is so." for row in found)


def test_nothing_is_read_where_no_demonstrations_are_asked_for(split):
    rows = "".join(json.dumps({"prompt": f"q{n}", "completion": 7}) + "\n" for n in range(3))
    assert split(write("a.jsonl", rows)).iterations[0]["demonstration"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("row", "column", "refusal"),
    [
        ({"prompt": "q"}, "completion", "no demonstration in the column 'completion': it holds nothing"),
        ({"prompt": "q", "completion": 7}, "completion", "it holds a int"),
        ({"prompt": "q", "completion": " "}, "completion", "the demonstration is empty"),
        (
            {"prompt": "q", "chosen": [QUESTION]},
            "chosen",
            "a list of messages that ends with the assistant's",
        ),
        (
            {"prompt": "q", "chosen": [QUESTION, ANSWERED]},
            "chosen",
            "its demonstration answers another prompt",
        ),
        ({"prompt": "q", "completion": "a <|eot_id|> b"}, "completion", "contains the special token"),
        ({"prompt": "q", "completion": "a \ud800 b"}, "completion", "half a surrogate pair"),
    ],
)
def test_a_demonstration_that_is_none_is_refused_with_its_line(split, row, column, refusal):
    good = {"prompt": "x", column: [ANSWERED]}
    with pytest.raises(PromptError) as refused:
        _demonstrated(split, "a.jsonl", [good, row], column)
    assert str(refused.value).startswith("a.jsonl, line 2: ")
    assert refusal in str(refused.value)
