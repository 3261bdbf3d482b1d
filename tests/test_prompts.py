import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppo import prompts
from sppo.policy import chat_format as chat
from sppo.prompts import PromptError, read_source
from sppo.recipe import PromptSource

QUESTION = {"role": "user", "content": "And why?"}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "It is."},
    QUESTION,
]


@pytest.fixture(scope="module")
def llama(tiny_model):
    return chat.load(str(tiny_model("llama-3")))


@pytest.fixture
def split(llama, tmp_path, monkeypatch):
    """Writes files into an otherwise empty working folder and splits their prompts."""
    monkeypatch.chdir(tmp_path)

    def call(train, held_out=1, **options):
        given = {"iterations": 1, "per_iteration": None, "max_tokens": 100, "skip_invalid": False, "seed": 0}
        return prompts.split(_source(train), _source(held_out), chat=llama, **(given | options))

    return call


def _source(value):
    if isinstance(value, list):
        return [_source(one) for one in value]
    return PromptSource(source=value) if isinstance(value, str) else value


def _write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def _lines(name: str, count: int, start: int = 0) -> str:
    return _write(name, "".join(f"prompt {number}\n" for number in range(start, start + count)))


def _texts(table: pa.Table) -> list[str]:
    return [messages[-1]["content"] for messages in table["messages"].to_pylist()]


def _all(found: prompts.Split) -> list[str]:
    return sorted(text for part in [*found.iterations, found.held_out] for text in _texts(part))


# what a source may be


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "alpha\nbeta\ngamma\n"),
        ("a.TXT", "alpha\nbeta\ngamma"),
        ("windows.txt", "\ufeffalpha\r\nbeta\r\ngamma\r\n"),
        ("a.jsonl", '{"prompt": "alpha"}\n"beta"\n{"prompt": [{"role": "user", "content": "gamma"}]}\n'),
        ("windows.jsonl", '\ufeff{"prompt": "alpha"}\r\n\r\n"beta"\r\n{"instruction": "gamma"}\r\n\r\n'),
        (
            "columns.jsonl",
            '{"text": "alpha"}\n{"instruction": "beta"}\n{"prompt": "gamma", "text": "delta"}\n',
        ),
        (
            "empty_cells.jsonl",
            '{"prompt": null, "messages": [{"role": "user", "content": "alpha"}]}\n"beta"\n"gamma"\n',
        ),
        ("a.json", '["alpha", {"prompt": "beta"}, {"messages": [{"role": "user", "content": "gamma"}]}]'),
        ("windows.json", '\ufeff["alpha", "beta", "gamma"]'),
    ],
)
def test_text_files(split, name, content):
    assert _all(split(_write(name, content))) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize("separator", ["\u2028", "\x0c", "\x85", "\x00", "\r"])
def test_a_line_ends_at_a_line_feed_alone(split, separator):
    assert _all(split(_write("a.txt", f"one{separator}two\nthree\n"))) == [f"one{separator}two", "three"]


@pytest.mark.parametrize(
    ("column", "options"), [("prompt", {}), ("instruction", {}), ("text", {}), ("mine", {"column": "mine"})]
)
def test_parquet(split, column, options):
    pq.write_table(pa.table({"other": [1, 2, 3], column: ["alpha", "beta", "gamma"]}), "a.parquet")
    assert _all(split(PromptSource(source="a.parquet", **options))) == ["alpha", "beta", "gamma"]


def test_parquet_reads_no_column_that_is_not_asked_for(split):
    broken = pa.array([b"\xff", b"a"]).view(pa.string())
    pq.write_table(pa.table({"prompt": ["alpha", "beta"], "answer": broken}), "a.parquet")
    assert _all(split("a.parquet")) == ["alpha", "beta"]


def test_conversations_of_several_turns_keep_their_system_message(split, llama):
    for name, write in {
        "a.jsonl": lambda: _write("a.jsonl", json.dumps({"messages": CONVERSATION}) + '\n"x"\n'),
        "a.parquet": lambda: pq.write_table(pa.table({"messages": [CONVERSATION, [QUESTION]]}), "a.parquet"),
    }.items():
        write()
        found = split(name)
        rows = [row for part in [*found.iterations, found.held_out] for row in part.to_pylist()]
        row = next(row for row in rows if len(row["messages"]) > 1)
        assert row["messages"] == CONVERSATION
        assert row["prompt_token_ids"] == llama.render(CONVERSATION).token_ids


def test_a_data_set_saved_to_disk(split):
    import datasets

    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"prompt": ["alpha", "beta", "gamma"]})
    one.save_to_disk("one")
    assert _all(split("one")) == ["alpha", "beta", "gamma"]
    chats = datasets.Dataset.from_dict({"messages": [CONVERSATION, [QUESTION]]})
    datasets.DatasetDict({"train": one, "chats": chats}).save_to_disk("several")
    assert _all(split("several")) == ["alpha", "beta", "gamma"]
    found = split("several", PromptSource(source="several", split="chats"))
    assert sorted(found.held_out["messages"].to_pylist(), key=len) == [[QUESTION], CONVERSATION]
    with pytest.raises(PromptError, match="several has no split 'val'; it has train, chats"):
        split(PromptSource(source="several", split="val"))
    with pytest.raises(PromptError, match="one: no column 'question'; set `column` to one of prompt"):
        split(PromptSource(source="one", column="question"))


def test_a_file_with_both_a_prompt_and_a_whole_conversation_gives_the_prompt(split):
    row = {"prompt": "alpha", "messages": CONVERSATION[:3]}
    assert _all(split(_write("a.jsonl", json.dumps(row) + '\n"beta"\n'))) == ["alpha", "beta"]


def test_the_embedded_prompts():
    rows = list(read_source(PromptSource(source="tinyworld/train")))
    assert len(rows) >= 600
    assert len(list(read_source(PromptSource(source="tinyworld/held-out")))) >= 200
    assert all(entry.own_id for entry in rows)


def test_no_more_than_the_limit_is_read(split):
    _write("a.jsonl", '"alpha"\n"beta"\nnot json\n')
    assert _all(split(PromptSource(source="a.jsonl", limit=2))) == ["alpha", "beta"]
    with pytest.raises(PromptError, match="line 3"):
        split(PromptSource(source="a.jsonl", limit=3))


# what is refused, and where it stands


BAD = [
    ("a.txt", "fine\n\nalso\n", "line 2: the prompt is empty", "the prompt is empty"),
    ("a.txt", "fine\n \t\nalso\n", "line 2: the prompt is empty", "the prompt is empty"),
    (
        "a.txt",
        b"fine\ncaf\xe9\nalso\n",
        "line 2: not UTF-8: invalid continuation byte at byte 3",
        "not UTF-8",
    ),
    ("a.txt", "fine\nalso\nfine\n", "line 3: a duplicate of a.txt, line 1", "a duplicate"),
    ("a.txt", "fine\n" + "word " * 100 + "\nalso\n", "line 2: over-long: ", "over-long"),
    (
        "a.txt",
        "fine\nalso\nsay <|eot_id|>\n",
        "line 3: the user message contains the special token '<|eot_id|>'",
        None,
    ),
    (
        "a.jsonl",
        '"fine"\n"also"\n{"prompt": "x"\n',
        "line 3: malformed: not a line of JSON: Expecting ','",
        "malformed",
    ),
    ("a.jsonl", '"fine"\n\n\n{"prompt": \n"also"', "line 4: malformed: not a line of JSON", "malformed"),
    (
        "a.jsonl",
        b'"fine"\n{"prompt": "\xff"}\n"also"',
        "line 2: not UTF-8: invalid start byte at byte 12",
        "not UTF-8",
    ),
    ("a.jsonl", '"fine"\n{"prompt": "\\ud800"}\n"also"', "line 2: the user message is not UTF-8", None),
    (
        "a.jsonl",
        '"fine"\n{"prompt": NaN}\n"also"',
        "line 2: a prompt is a string or a list of messages, not float",
        None,
    ),
    ("a.jsonl", '"fine"\n{"prompt": null}\n"also"', "not NoneType", None),
    ("a.jsonl", '"fine"\n[1]\n"also"', "line 2: malformed: a list, not an object with a prompt", "malformed"),
    (
        "a.jsonl",
        '"fine"\n{"prompt": ' + "9" * 5000 + '}\n"also"',
        "line 2: malformed: not a line of JSON",
        "malformed",
    ),
    ("a.jsonl", '"fine"\n' + "[" * 10**5 + '\n"also"', "line 2: malformed: not a line of JSON", "malformed"),
    (
        "a.jsonl",
        '"fine"\n{"question": "x", "answer": "y"}\n"also"',
        "line 2: malformed: none of the columns prompt, messages, instruction, text; set `column` to one of"
        " question, answer",
        "malformed",
    ),
    (
        "a.jsonl",
        '"fine"\n{"prompt": [' + json.dumps(QUESTION) + ', {"role": "assistant", "content": "y"}]}\n"also"',
        "line 2: the last message is the assistant's; leave it out",
        None,
    ),
    (
        "a.jsonl",
        '{"id": 1, "prompt": "fine"}\n{"id": "1", "prompt": "x"}\n{"id": 2, "prompt": "also"}\n',
        "line 2: a duplicate id: '1' is also that of a.jsonl, line 1",
        "a duplicate id",
    ),
    (
        "a.jsonl",
        '"fine"\n{"id": "\\ud800", "prompt": "x"}\n"also"',
        "line 2: malformed: its id '\\ud800' is not",
        None,
    ),
    ("a.json", '["fine", {"prompt": ""}, "also"]', "entry 2: the prompt is empty", "the prompt is empty"),
]


@pytest.mark.parametrize(("name", "content", "refusal", "kind"), BAD)
def test_a_bad_prompt_is_refused_with_its_place_and_the_way_out(split, name, content, refusal, kind):
    with pytest.raises(PromptError) as caught:
        split(_write(name, content))
    assert refusal in str(caught.value)
    assert str(caught.value).startswith(f"{name}, ")
    assert str(caught.value).endswith("; mend it, or set prompts.invalid: skip to leave such prompts out")


@pytest.mark.parametrize(("name", "content", "refusal", "kind"), BAD)
def test_a_bad_prompt_is_skipped_and_counted_where_the_recipe_says_so(split, name, content, refusal, kind):
    found = split(_write(name, content), skip_invalid=True)
    assert _all(found) == ["also", "fine"]
    assert found.counts.read == 3
    assert found.counts.skipped.total() == 1
    assert kind is None or found.counts.skipped[kind] == 1
    assert [refusal in first for first in found.counts.first_skipped.values()] == [True]


def test_parquet_that_is_not_utf_8_is_refused_by_its_row(split):
    texts = pa.array([b"alpha", b"beta", b"\xff", b"gamma"]).view(pa.string())
    pq.write_table(pa.table({"prompt": texts}), "a.parquet")
    with pytest.raises(PromptError, match=r"a\.parquet, row 3: not UTF-8: invalid start byte at byte 0"):
        split("a.parquet")
    found = split("a.parquet", skip_invalid=True)
    assert _all(found) == ["alpha", "beta", "gamma"]
    assert found.counts.skipped == {"not UTF-8": 1}


def test_an_empty_cell_of_parquet_is_refused_by_its_row(split):
    pq.write_table(pa.table({"prompt": ["alpha", None]}), "a.parquet")
    with pytest.raises(PromptError, match=r"a\.parquet, row 2: a prompt is a string .*, not NoneType"):
        split("a.parquet")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("a.txt", "", "prompts.train: it has no prompt that can be used"),
        ("a.jsonl", "\n\n", "prompts.train: it has no prompt that can be used"),
        ("a.json", '{"a": "b"}', "a.json: holds a dict, not a list of prompts"),
        ("a.json", '["a", "b"', "a.json: not a JSON file: Expecting ',' delimiter"),
        ("a.json", '"a"\n"b"\n', "name it .jsonl if it has an object a line"),
        ("a.json", b'["caf\xe9"]', "a.json: not a JSON file: 'utf-8' codec"),
        ("a.json", "[" + "9" * 5000 + "]", "a.json: not a JSON file: Exceeds the limit"),
        (
            "a.csv",
            "prompt\na\n",
            "a.csv is no .json, .jsonl, .parquet, .txt file; convert it to one of these",
        ),
        ("prompts", "a\nb\n", "prompts is no .json, .jsonl, .parquet, .txt file"),
        ("a.parquet", "", "a.parquet: not a whole parquet file"),
        ("a.parquet", "PAR1" + "x" * 100 + "PAR1", "a.parquet: not a whole parquet file"),
    ],
)
def test_a_file_that_is_no_source_is_refused_whatever_is_skipped(split, name, content, refusal, skip):
    with pytest.raises(PromptError) as caught:
        split(_write(name, content), skip_invalid=skip)
    assert refusal in str(caught.value)


def test_a_truncated_or_damaged_parquet_file_is_refused_by_name(split):
    pq.write_table(pa.table({"prompt": [f"prompt {number}" for number in range(3000)]}), "whole.parquet")
    content = Path("whole.parquet").read_bytes()
    _write("cut.parquet", content[:-30])
    _write("damaged.parquet", content[:200] + b"\xff" * 200 + content[400:])
    for name in ("cut.parquet", "damaged.parquet"):
        with pytest.raises(PromptError, match=f"{name}: not a whole parquet file"):
            split(name)


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ("none.jsonl", "prompts: 'none.jsonl' is neither a file here nor a data set"),
        ("nowhere/at/all.txt", "'nowhere/at/all.txt' is neither a file here nor a data set"),
        ("tinyworld/trian", "'tinyworld/trian' is unknown; there are tinyworld/train and tinyworld/held-out"),
        ("somebody/something", "'somebody/something' is neither a file here nor a data set that loads"),
    ],
)
def test_a_source_that_is_not_there(split, source, refusal):
    with pytest.raises(PromptError) as caught:
        split(source)
    assert refusal in str(caught.value)


def test_a_column_that_is_not_there_is_refused_whatever_is_skipped(split):
    pq.write_table(pa.table({"question": ["a", "b"], "n": [1, 2]}), "a.parquet")
    with pytest.raises(
        PromptError, match=r"a\.parquet: none of the columns .*; set `column` to one of question, n"
    ):
        split("a.parquet", skip_invalid=True)


def test_where_nothing_is_left_the_message_says_what_was_skipped(split):
    with pytest.raises(
        PromptError, match=r"no prompt that can be used \(2 of 2 were skipped, the first of them a\.jsonl"
    ):
        split(_write("a.jsonl", '{"q": 1}\n{"q": 2}\n'), skip_invalid=True)


def test_a_held_out_prompt_is_not_trained_on(split):
    _lines("train.txt", 5)
    _lines("held_out.txt", 2, start=3)
    with pytest.raises(
        PromptError, match=r"train\.txt, line 4: a duplicate of held_out\.txt, line 1 \(held out\)"
    ):
        split("train.txt", "held_out.txt")
    found = split("train.txt", "held_out.txt", skip_invalid=True)
    assert _texts(found.held_out) == ["prompt 3", "prompt 4"]
    assert sorted(_texts(found.iterations[0])) == ["prompt 0", "prompt 1", "prompt 2"]
    assert found.counts.skipped == {"a duplicate": 2}


def test_a_string_and_a_message_of_the_same_text_are_duplicates(split):
    with pytest.raises(PromptError, match=r"line 2: a duplicate of a\.jsonl, line 1"):
        split(_write("a.jsonl", '"alpha"\n{"messages": [{"role": "user", "content": "alpha"}]}\n"b"\n'))


def test_over_long_is_more_tokens_than_allowed_and_not_as_many(split, llama):
    _write("a.txt", "a\nb\nThe quick brown fox\n")
    tokens = len(llama.render([{"role": "user", "content": "The quick brown fox"}]).token_ids)
    assert len(_all(split("a.txt", max_tokens=tokens))) == 3
    with pytest.raises(PromptError, match=f"over-long: {tokens} tokens, {tokens - 1} are allowed"):
        split("a.txt", max_tokens=tokens - 1)


def test_doubled_bos_is_counted(tiny_model, tmp_path):
    template = tmp_path / "twice.jinja"
    template.write_text(
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    of = chat.load(str(tiny_model("llama-3")), chat_template=str(template))
    (tmp_path / "a.txt").write_text("alpha\nbeta\ngamma\n")
    found = prompts.split(
        PromptSource(source=str(tmp_path / "a.txt")),
        1,
        iterations=2,
        per_iteration=None,
        chat=of,
        max_tokens=50,
        skip_invalid=False,
        seed=0,
    )
    assert found.counts.doubled_bos == 3
    for part in [*found.iterations, found.held_out]:
        for ids in part["prompt_token_ids"].to_pylist():
            assert ids.count(of.tokenizer.bos_token_id) == 1


# the split


def test_every_prompt_is_dealt_once_and_evenly(split):
    found = split(_lines("a.txt", 25), 4, iterations=4)
    assert [part.num_rows for part in found.iterations] == [5, 5, 5, 6]
    assert found.held_out.num_rows == 4
    assert _all(found) == sorted(f"prompt {number}" for number in range(25))


def test_per_iteration_takes_so_many_of_each(split):
    found = split(_lines("a.txt", 25), 4, iterations=3, per_iteration=7)
    assert [part.num_rows for part in found.iterations] == [7, 7, 7]
    assert len(set(_all(found))) == 25


def test_more_prompts_per_iteration_than_there_are(split):
    with pytest.raises(
        PromptError, match=r"prompts\.per_iteration: 8, but iteration 3 has only 5 prompts; lower it"
    ):
        split(_lines("a.txt", 25), 4, iterations=3, per_iteration=8)


def test_more_iterations_than_prompts(split):
    with pytest.raises(
        PromptError, match=r"iterations: 5, but there are only 3 prompts .*; lower iterations or give"
    ):
        split(_lines("a.txt", 4), 1, iterations=5)


@pytest.mark.parametrize("count", [4, 5])
def test_no_prompt_left_to_train_on(split, count):
    with pytest.raises(
        PromptError, match=rf"prompts\.held_out: {count} to set aside of 4 prompts leaves none"
    ):
        split(_lines("a.txt", 4), count)


def test_a_held_out_source_without_a_prompt(split):
    with pytest.raises(PromptError, match=r"prompts\.held_out: it has no prompt that can be used"):
        split(_lines("a.txt", 4), _write("none.txt", ""))


def test_one_source_for_each_iteration(split):
    sources = [_lines("a.txt", 10), _lines("b.txt", 6, start=10), _lines("c.txt", 4, start=16)]
    found = split(sources, 5, iterations=3)
    assert [part.num_rows for part in found.iterations] == [7, 5, 3]
    for part, name in zip(found.iterations, (range(10), range(10, 16), range(16, 20)), strict=True):
        assert set(_texts(part)) <= {f"prompt {number}" for number in name}
    assert _all(found) == sorted(f"prompt {number}" for number in range(20))


def test_what_is_set_aside_leaves_a_small_source_alone(split):
    sources = [_lines("a.txt", 1), _lines("b.txt", 1, start=1), _lines("c.txt", 50, start=2)]
    assert [part.num_rows for part in split(sources, 20, iterations=3).iterations] == [1, 1, 30]


def test_the_same_prompt_in_two_iterations_sources_is_a_duplicate(split):
    sources = [_lines("a.txt", 3), _lines("b.txt", 3, start=2)]
    with pytest.raises(PromptError, match=r"b\.txt, line 1: a duplicate of a\.txt, line 3"):
        split(sources, iterations=2)
    found = split(sources, iterations=2, skip_invalid=True)
    assert len(set(_all(found))) == len(_all(found)) == 5


def _tables(found: prompts.Split) -> list[list[dict[str, object]]]:
    return [part.to_pylist() for part in [*found.iterations, found.held_out]]


def test_the_split_depends_on_the_seed_and_not_on_the_files_order(split):
    lines = [f"prompt {number}\n" for number in range(40)]
    first = _tables(split(_write("a.txt", "".join(lines)), 5, iterations=3))
    random.Random(1).shuffle(lines)
    assert _tables(split(_write("b.txt", "".join(lines)), 5, iterations=3)) == first
    as_json = "".join(json.dumps({"prompt": line.strip()}) + "\n" for line in lines)
    assert _tables(split(_write("c.jsonl", as_json), 5, iterations=3)) == first
    assert _tables(split("a.txt", 5, iterations=3, seed=1)) != first


def test_ids_of_ones_own_are_kept(split):
    rows = [{"prompt_id": f"mine-{number}", "id": 7, "prompt": f"prompt {number}"} for number in range(4)]
    found = split(_write("a.jsonl", "\n".join(map(json.dumps, rows))))
    ids = [row["prompt_id"] for table in _tables(found) for row in table]
    assert sorted(ids) == ["mine-0", "mine-1", "mine-2", "mine-3"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    held_out=st.integers(1, 12),
    iterations=st.integers(1, 4),
)
def test_no_prompt_is_ever_lost_or_dealt_twice(split, counts, held_out, iterations):
    starts = [sum(counts[:index]) for index in range(len(counts))]
    sources = [_lines(f"{index}.txt", count, starts[index]) for index, count in enumerate(counts)]
    iterations = len(sources) if len(sources) > 1 else iterations
    fewest = min(counts) if len(counts) > 1 else (counts[0] - held_out) // iterations
    if sum(counts) - held_out < len(counts) or fewest < 1:
        with pytest.raises(PromptError, match=r"^(prompts\.held_out|prompts\.train|iterations): "):
            split(sources, held_out, iterations=iterations)
        return
    found = split(sources, held_out, iterations=iterations)
    assert _all(found) == sorted(f"prompt {number}" for number in range(sum(counts)))
    assert found.held_out.num_rows == held_out
    assert all(part.num_rows for part in found.iterations)


# Demonstrations

ANSWERED = {"role": "assistant", "content": "It is so."}


def _demonstrated(split, name, rows, demonstration, **options):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    source = PromptSource(source=_write(name, lines), demonstration=demonstration, **options)
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
    assert split(_write("a.jsonl", rows)).iterations[0]["demonstration"].to_pylist() == [None, None]


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
