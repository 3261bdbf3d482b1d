from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_files import all_texts, texts_of, write, write_lines

from sppo.prompts import PromptError

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
        "line 2: malformed: none of the columns prompt, messages, instruction, text, conversations, conversation,"
        " chosen; set `column` to one of question, answer",
        "malformed",
    ),
    (
        "a.jsonl",
        '"fine"\n{"messages": [{"role": "assistant", "content": "y"}]}\n"also"',
        "line 2: a prompt is a string or a list of messages, not list",
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
        split(write(name, content))
    assert refusal in str(caught.value)
    assert str(caught.value).startswith(f"{name}, ")
    assert str(caught.value).endswith("; mend it, or set prompts.invalid: skip to leave such prompts out")


@pytest.mark.parametrize(("name", "content", "refusal", "kind"), BAD)
def test_a_bad_prompt_is_skipped_and_counted_where_the_recipe_says_so(split, name, content, refusal, kind):
    found = split(write(name, content), skip_invalid=True)
    assert all_texts(found) == ["also", "fine"]
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
    assert all_texts(found) == ["alpha", "beta", "gamma"]
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
        ("a.json", '"a"\n"b"\n', "name it .jsonl if each line is an object"),
        ("a.json", b'["caf\xe9"]', "a.json: not a JSON file: 'utf-8' codec"),
        ("a.json", "[" + "9" * 5000 + "]", "a.json: not a JSON file: 99999999999999999999... is too large"),
        (
            "a.xml",
            "<a/>",
            "a.xml is not a .csv, .json, .jsonl, .parquet, .tsv, .txt file; convert it to one of these",
        ),
        ("prompts", "a\nb\n", "prompts is not a .csv, .json, .jsonl, .parquet, .tsv, .txt file"),
        ("a.parquet", "", "a.parquet: not a whole parquet file"),
        ("a.parquet", "PAR1" + "x" * 100 + "PAR1", "a.parquet: not a whole parquet file"),
    ],
)
def test_a_file_that_is_no_source_is_refused_whatever_is_skipped(split, name, content, refusal, skip):
    with pytest.raises(PromptError) as caught:
        split(write(name, content), skip_invalid=skip)
    assert refusal in str(caught.value)


def test_a_truncated_or_damaged_parquet_file_is_refused_by_name(split):
    pq.write_table(pa.table({"prompt": [f"prompt {number}" for number in range(3000)]}), "whole.parquet")
    content = Path("whole.parquet").read_bytes()
    write("cut.parquet", content[:-30])
    write("damaged.parquet", content[:200] + b"\xff" * 200 + content[400:])
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
        split(write("a.jsonl", '{"q": 1}\n{"q": 2}\n'), skip_invalid=True)


def test_a_held_out_prompt_is_not_trained_on(split):
    write_lines("train.txt", 5)
    write_lines("held_out.txt", 2, start=3)
    with pytest.raises(
        PromptError, match=r"train\.txt, line 4: a duplicate of held_out\.txt, line 1 \(held out\)"
    ):
        split("train.txt", "held_out.txt")
    found = split("train.txt", "held_out.txt", skip_invalid=True)
    assert texts_of(found.held_out) == ["prompt 3", "prompt 4"]
    assert sorted(texts_of(found.iterations[0])) == ["prompt 0", "prompt 1", "prompt 2"]
    assert found.counts.skipped == {"a duplicate": 2}


def test_a_string_and_a_message_of_the_same_text_are_duplicates(split):
    with pytest.raises(PromptError, match=r"line 2: a duplicate of a\.jsonl, line 1"):
        split(write("a.jsonl", '"alpha"\n{"messages": [{"role": "user", "content": "alpha"}]}\n"b"\n'))


def test_over_long_is_more_tokens_than_allowed_and_not_as_many(split, llama):
    write("a.txt", "a\nb\nThe quick brown fox\n")
    tokens = len(llama.render([{"role": "user", "content": "The quick brown fox"}]).token_ids)
    assert len(all_texts(split("a.txt", max_tokens=tokens))) == 3
    with pytest.raises(PromptError, match=f"over-long: {tokens} tokens, {tokens - 1} are allowed"):
        split("a.txt", max_tokens=tokens - 1)
