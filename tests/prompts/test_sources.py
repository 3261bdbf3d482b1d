import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_files import CONVERSATION, QUESTION, all_texts, write

from sppo.prompts import PromptError, read_source
from sppo.recipe import PromptSource

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
    assert all_texts(split(write(name, content))) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize("separator", ["\u2028", "\x0c", "\x85", "\x00", "\r"])
def test_a_line_ends_at_a_line_feed_alone(split, separator):
    assert all_texts(split(write("a.txt", f"one{separator}two\nthree\n"))) == [f"one{separator}two", "three"]


@pytest.mark.parametrize(
    ("column", "options"), [("prompt", {}), ("instruction", {}), ("text", {}), ("mine", {"column": "mine"})]
)
def test_parquet(split, column, options):
    pq.write_table(pa.table({"other": [1, 2, 3], column: ["alpha", "beta", "gamma"]}), "a.parquet")
    assert all_texts(split(PromptSource(source="a.parquet", **options))) == ["alpha", "beta", "gamma"]


def test_parquet_reads_no_column_that_is_not_asked_for(split):
    broken = pa.array([b"\xff", b"a"]).view(pa.string())
    pq.write_table(pa.table({"prompt": ["alpha", "beta"], "answer": broken}), "a.parquet")
    assert all_texts(split("a.parquet")) == ["alpha", "beta"]


def test_conversations_of_several_turns_keep_their_system_message(split, llama):
    for name, write_file in {
        "a.jsonl": lambda: write("a.jsonl", json.dumps({"messages": CONVERSATION}) + '\n"x"\n'),
        "a.parquet": lambda: pq.write_table(pa.table({"messages": [CONVERSATION, [QUESTION]]}), "a.parquet"),
    }.items():
        write_file()
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
    assert all_texts(split("one")) == ["alpha", "beta", "gamma"]
    chats = datasets.Dataset.from_dict({"messages": [CONVERSATION, [QUESTION]]})
    datasets.DatasetDict({"train": one, "chats": chats}).save_to_disk("several")
    assert all_texts(split("several")) == ["alpha", "beta", "gamma"]
    found = split("several", PromptSource(source="several", split="chats"))
    assert sorted(found.held_out["messages"].to_pylist(), key=len) == [[QUESTION], CONVERSATION]
    with pytest.raises(PromptError, match="several has no split 'val'; set `split` to one of train, chats"):
        split(PromptSource(source="several", split="val"))
    with pytest.raises(PromptError, match="one: no column 'question'; set `column` to one of prompt"):
        split(PromptSource(source="one", column="question"))


def test_a_folder_of_files_beside_a_description_of_other_programs(split, tmp_path, monkeypatch, capsys):
    """Some programs describe a folder's files in a dataset_info.json, which is not that of `save_to_disk`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write("data/dataset_info.json", json.dumps({"mine": {"file_name": "train.parquet"}}))
    pq.write_table(pa.table({"prompt": ["alpha", "beta"]}), "data/train.parquet")
    pq.write_table(pa.table({"prompt": ["gamma"]}), "data/test.parquet")
    assert all_texts(split("data/*.parquet")) == ["alpha", "beta", "gamma"]
    assert all_texts(split("data", PromptSource(source="data", split="test"))) == ["alpha", "beta", "gamma"]
    assert capsys.readouterr().err == ""  # no progress bars of the library


def test_a_file_with_both_a_prompt_and_a_whole_conversation_gives_the_prompt(split):
    row = {"prompt": "alpha", "messages": CONVERSATION[:3]}
    assert all_texts(split(write("a.jsonl", json.dumps(row) + '\n"beta"\n'))) == ["alpha", "beta"]


def test_the_embedded_prompts():
    rows = list(read_source(PromptSource(source="tinyworld/train")))
    assert len(rows) >= 600
    assert len(list(read_source(PromptSource(source="tinyworld/held-out")))) >= 200
    assert all(row.value["prompt_id"] for row in rows)


def test_no_more_than_the_limit_is_read(split):
    write("a.jsonl", '"alpha"\n"beta"\nnot json\n')
    assert all_texts(split(PromptSource(source="a.jsonl", limit=2))) == ["alpha", "beta"]
    with pytest.raises(PromptError, match="line 3"):
        split(PromptSource(source="a.jsonl", limit=3))
