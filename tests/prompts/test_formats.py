"""Prompts, demonstrations and preferences in the notations of the data sets that people have."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_files import CONVERSATION, QUESTION, all_texts, write

from sppo.prompts import PromptError, interpret, read_source, survey
from sppo.recipe import PromptSource
from sppo.stages.run import source_identity

ANSWER = {"role": "assistant", "content": "It is so."}
OTHER = {"role": "assistant", "content": "It is not."}
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Is it so?"},
    {"from": "gpt", "value": "It is."},
    {"from": "human", "value": "And why?"},
]
FOURTH = {"from": "gpt", "value": "It is so."}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "why?"}]}]


def read(row, **settings):
    return interpret(row, PromptSource(source="a.jsonl", **settings))


@pytest.mark.parametrize(
    ("row", "messages", "taken"),
    [
        # a conversation that stands in its column as JSON text
        ({"messages": json.dumps(CONVERSATION)}, CONVERSATION, "`messages`, which holds JSON text"),
        ({"prompt": json.dumps([QUESTION])}, [QUESTION], "`prompt`, which holds JSON text"),
        ({"text": json.dumps(QUESTION)}, [QUESTION], "`text`, which holds JSON text"),
        (
            {"conversations": "\n " + json.dumps(SHAREGPT, indent=2)},
            CONVERSATION,
            "`conversations`, which holds JSON text",
        ),
        (
            {"text": json.dumps([{"id": 7, "content": "And why?", "role": "user"}])},
            [QUESTION],
            "`text`, which holds JSON text",
        ),
        (
            {"instruction": json.dumps({"id": 7, "messages": [*CONVERSATION, ANSWER]})},
            CONVERSATION,
            "`instruction`, which holds JSON text, without the assistant's last message",
        ),
        (
            {"prompt": json.dumps({"conversations": SHAREGPT})},
            CONVERSATION,
            "`prompt`, which holds JSON text",
        ),
        # a transcript that stands in its column as text
        ({"prompt": "\n\nHuman: And why?\n\nAssistant:"}, [QUESTION], "`prompt`, which holds a transcript"),
        (
            {"text": "\n\nHuman: Is it so?\n\nAssistant: It is.\n\nHuman: And why?\n\nAssistant: "},
            CONVERSATION[1:],
            "`text`, which holds a transcript",
        ),
        ({"instruction": "\n\nHuman: And why?"}, [QUESTION], "`instruction`, which holds a transcript"),
        (
            {"prompt": "\n\nHuman: And why?\n\nAssistant: It is so."},
            [QUESTION],
            "`prompt`, which holds a transcript, without the assistant's last message",
        ),
        # other names of keys and roles
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, QUESTION]},
            [CONVERSATION[0], QUESTION],
            "`messages`",
        ),
        ({"messages": [{"role": "prompter", "text": "And why?"}]}, [QUESTION], "`messages`"),
        ({"conversations": SHAREGPT}, CONVERSATION, "`conversations`"),
        ({"conversation": SHAREGPT[1:]}, CONVERSATION[1:], "`conversation`"),
        ({"messages": SHAREGPT}, CONVERSATION, "`messages`"),
        ({"messages": [{"role": "prompter", "content": "And why?"}]}, [QUESTION], "`messages`"),
        ({"messages": [{"role": "User", "content": "And why?"}]}, [QUESTION], "`messages`"),
        # tables join notations, and leave None under the keys of the others
        ({"messages": [{**QUESTION, "from": None, "value": None, "name": None}]}, [QUESTION], "`messages`"),
        ({"messages": {"role": ["user"], "content": ["And why?"]}}, [QUESTION], "`messages`"),
        ({"messages": PARTS}, [QUESTION], "`messages`"),
        # whole conversations
        (
            {"messages": [*CONVERSATION, ANSWER]},
            CONVERSATION,
            "`messages`, without the assistant's last message",
        ),
        (
            {"conversations": [*SHAREGPT, FOURTH]},
            CONVERSATION,
            "`conversations`, without the assistant's last message",
        ),
        (
            {"messages": json.dumps([QUESTION, ANSWER])},
            [QUESTION],
            "`messages`, which holds JSON text, without the assistant's last message",
        ),
        # instructions with an input, and system messages of their own
        ({"instruction": "And why?", "input": ""}, [QUESTION], "`instruction`"),
        (
            {"instruction": "Translate.", "input": "Ja.", "output": "Yes."},
            [{"role": "user", "content": "Translate.\n\nJa."}],
            "`instruction` and `input`",
        ),
        (
            {"system": "Be brief.", "prompt": "And why?"},
            [CONVERSATION[0], QUESTION],
            "`prompt`, after `system`",
        ),
        ({"system": "Be long.", "messages": CONVERSATION}, CONVERSATION, "`messages`"),
        ({"system_prompt": " ", "prompt": "And why?"}, [QUESTION], "`prompt`"),
        # preferences
        ({"prompt": "And why?", "chosen": "a", "rejected": "b"}, [QUESTION], "`prompt`"),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]},
            [QUESTION],
            "the beginning of `chosen` and `rejected`",
        ),
        (
            {"chosen": [*SHAREGPT, FOURTH], "rejected": json.dumps([*CONVERSATION, OTHER])},
            CONVERSATION,
            "the beginning of `chosen` and `rejected`",
        ),
        (
            {
                "chosen": "\n\nHuman: Is it so?\n\nAssistant: It is.\n\nHuman: And why?\n\nAssistant: It is so.",
                "rejected": "\n\nHuman: Is it so?\n\nAssistant: It is.\n\nHuman: And why?\n\nAssistant: Go away.",
            },
            CONVERSATION[1:],
            "the beginning of `chosen` and `rejected`",
        ),
    ],
)
def test_a_prompt_in_each_notation(row, messages, taken):
    prompt = read(row)
    assert prompt.messages == messages
    assert prompt.taken == taken


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        '["a", "b"]',
        '{"key": "value"}',
        "[INST] hello",
        "[{} for _ in range(3)]",
        "{'a': 1}",
        "[]",
        '{"role": "admin", "value": 3}',
        '[{"from": "alice", "value": "x"}]',
        '{"value": 3} is JSON; explain it.',
        '[{"content": "no role"}] is JSON; explain it.',
        '{"role": "user"}',
        "Assistant: hello\n\nHuman: there",
    ],
)
def test_text_that_only_looks_like_json_is_the_users(text):
    assert read({"prompt": text}).messages == [{"role": "user", "content": text}]


def test_a_named_column_is_taken_alone():
    row = {"instruction": "Translate.", "input": "Ja.", "system": "Be brief."}
    assert read(row, column="instruction").messages == [{"role": "user", "content": "Translate."}]


@pytest.mark.parametrize(
    ("row", "refusal"),
    [
        (
            {"messages": str([QUESTION])},
            r"looks like a conversation, .* but is not JSON .*; store it as JSON",
        ),
        ({"messages": json.dumps([QUESTION])[:-9]}, "looks like a conversation, .* but is not JSON"),
        (
            {"text": "[{'content': 'x', 'role': 'user'}\n {'content': 'y', 'role': 'assistant'}]"},
            "is not JSON",
        ),
        ({"prompt": '{"id": 1, "messages": [{"role": "user", "content": "x"}'}, "is not JSON"),
        ({"text": json.dumps([{"role": "tool", "content": "7"}])}, "message 1 has the role 'tool'"),
        ({"prompt": "[{'from': 'human', 'value': 'x'}]"}, "looks like a conversation, .* but is not JSON"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "message 1 holds a part that is not text",
        ),
        (
            {"messages": [{"role": {"name": "user"}, "content": "x"}]},
            "message 1 has the role {'name': 'user'}",
        ),
        ({"messages": [QUESTION, {**ANSWER, "tool_calls": [{"id": 1}]}, QUESTION]}, "message 2 calls tools"),
        ({"messages": [QUESTION, {"role": "tool", "content": "7"}]}, "message 2 has the role 'tool'"),
        ({"messages": [QUESTION, ANSWER, ANSWER]}, "the last message is the assistant's"),
        ({"conversations": [{"from": "human"}]}, "message 1 has no text"),
        ({"messages": ["And why?"]}, "message 1 has no text"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "name the column of prompts"),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [CONVERSATION[1], OTHER]},
            "differ before their last message",
        ),
        ({"chosen": [QUESTION, ANSWER], "rejected": "It is not."}, "differ before their last message"),
        ({"chosen": [QUESTION], "rejected": [QUESTION]}, "must each be a text or messages that end with"),
    ],
)
def test_what_is_ambiguous_or_not_text_is_refused(row, refusal):
    with pytest.raises(PromptError, match=refusal):
        read(row)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"conversations": [*SHAREGPT, FOURTH]}, "conversations"),
        ({"messages": json.dumps([*CONVERSATION, ANSWER])}, "messages"),
        ({"prompt": CONVERSATION, "completion": json.dumps([ANSWER])}, "completion"),
        ({"prompt": CONVERSATION, "messages": [*SHAREGPT, FOURTH]}, "messages"),
        ({"chosen": [*SHAREGPT, FOURTH], "rejected": [*CONVERSATION, OTHER]}, "chosen"),
    ],
)
def test_the_last_response_is_kept_where_demonstrations_are_asked_for(row, column):
    prompt = read(row, demonstration=column)
    assert prompt.messages == CONVERSATION
    assert prompt.demonstration == "It is so."


def test_a_text_alone_is_not_its_own_demonstration():
    with pytest.raises(
        PromptError, match=r"no demonstration in the column 'output': .* the row has no prompt"
    ):
        read({"output": "It is so."}, demonstration="output")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables_of_text(split, ending):
    rows = [("id", "prompt"), (1, "alpha,\nbeta"), (2, json.dumps([QUESTION])), (3, '"gamma"')]
    with open(f"a.{ending}", "w", newline="") as file:
        csv.writer(file, delimiter="\t" if ending == "tsv" else ",").writerows(rows)
    assert all_texts(split(f"a.{ending}")) == ['"gamma"', "And why?", "alpha,\nbeta"]
    with pytest.raises(PromptError, match=rf"b\.{ending}, line 3: not UTF-8: invalid continuation byte"):
        split(write(f"b.{ending}", b"prompt\nalpha\ncaf\xe9\n"))
    with pytest.raises(
        PromptError, match=rf"c\.{ending}: none of the columns .*; set `column` to one of question"
    ):
        split(write(f"c.{ending}", "question\nalpha\n"))


def test_parquet_of_sharegpt_and_of_preferences(split):
    pq.write_table(pa.Table.from_pylist([{"conversations": [*SHAREGPT, FOURTH]}] * 1), "a.parquet")
    pairs = [{"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]}]
    pq.write_table(pa.Table.from_pylist(pairs), "b.parquet")
    found = split("a.parquet", PromptSource(source="b.parquet"))
    assert found.iterations[0]["messages"].to_pylist() == [CONVERSATION]
    assert found.held_out["messages"].to_pylist() == [[QUESTION]]
    assert found.counts.notes() == [
        "b.parquet: 1 prompt from the beginning of `chosen` and `rejected`",
        "a.parquet: 1 prompt from `conversations`, without the assistant's last message",
    ]


@pytest.mark.parametrize("key", ["id", "prompt_id"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_files_that_count_from_0_each_keep_all_their_prompts(split, key, ending):
    for name, words in (("a", "abc"), ("b", "def"), ("held", "gh")):
        rows = pa.table({key: list(range(len(words))), "prompt": list(words)})
        if ending == "jsonl":
            write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
        elif ending == "csv":
            lines = [f"{row[key]},{row['prompt']}\n" for row in rows.to_pylist()]
            write(f"{name}.csv", f"{key},prompt\n" + "".join(lines))
        else:
            pq.write_table(rows, f"{name}.parquet")
    held_out = PromptSource(source=f"held.{ending}")
    found = split([f"a.{ending}", f"b.{ending}"], held_out, iterations=2)
    assert all_texts(found) == list("abcdefgh")
    ids = [row["prompt_id"] for part in [*found.iterations, found.held_out] for row in part.to_pylist()]
    assert len(set(ids)) == 8
    assert found.held_out["prompt_id"].to_pylist() == ["0", "1"]
    with pytest.raises(
        PromptError, match=r"line 2: a duplicate id: '0' is also that of twice\.jsonl, line 1"
    ):
        split(write("twice.jsonl", '{"id": 0, "prompt": "a"}\n{"id": 0, "prompt": "b"}\n"c"\n'))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
def test_a_data_set_with_several_configurations(split, tmp_path, monkeypatch, suffix):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for name in ("easy", "hard"):
        rows = datasets.Dataset.from_dict({"prompt": [f"{name} {n}" for n in range(3)]})
        save = {"csv": rows.to_csv, "parquet": rows.to_parquet}.get(suffix, rows.to_json)
        save(f"data/{name}.{suffix}")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.{suffix}\n" for name in ("easy", "hard"))
    write("data/README.md", f"---\nconfigs:\n{configs}---\n")
    assert all_texts(split(PromptSource(source="data", config="hard"))) == ["hard 0", "hard 1", "hard 2"]
    with pytest.raises(PromptError, match=r"(?s)'easy', 'hard'.*; set `config` to the configuration to read"):
        split("data")
    with pytest.raises(PromptError, match=r"(?s)easy.*; set `config` to the configuration to read"):
        split(PromptSource(source="data", config="esay"))
    with pytest.raises(PromptError, match=r"(?s)train.*; set `split` to the split to read"):
        split(PromptSource(source="data", config="easy", split="test"))


def test_a_pattern_names_all_files_that_match(split, tmp_path):
    (tmp_path / "data" / "more").mkdir(parents=True)
    for name, words in (("a", "alpha"), ("b", "beta"), ("more/c", "gamma")):
        write(f"data/{name}.jsonl", json.dumps({"id": 0, "prompt": words}) + "\n")
    write("data/d.txt", "delta\n")
    pq.write_table(pa.table({"prompt": ["epsilon"]}), "data/e.parquet")
    assert all_texts(split("data/*.jsonl")) == ["alpha", "beta"]
    assert all_texts(split("data/**/*.jsonl")) == ["alpha", "beta", "gamma"]
    assert all_texts(split("data/[abd].*")) == ["alpha", "beta", "delta"]
    found = split("data/*.*", PromptSource(source="data/more/?.jsonl"))
    assert all_texts(found) == ["alpha", "beta", "delta", "epsilon", "gamma"]
    assert found.counts.notes()[1] == "data/*.*: 3 prompts from `prompt`"
    write("data/b.jsonl", '"alpha"\n')
    with pytest.raises(PromptError, match=r"data/b\.jsonl, line 1: a duplicate of data/a\.jsonl, line 1"):
        split("data/*.jsonl")
    with pytest.raises(PromptError, match=r"no file here matches 'data/\*\.csv'"):
        split("data/*.csv")
    write("data/notes.md", "text")
    with pytest.raises(PromptError, match=r"data/notes\.md is not a \.csv"):
        split("data/*")


def test_a_file_whose_name_is_a_pattern_is_that_file(split):
    write("a.jsonl", '"wrong"\n')
    assert all_texts(split(write("[a].jsonl", '"alpha"\n"beta"\n'))) == ["alpha", "beta"]


def test_the_identity_of_a_pattern_is_that_of_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", '"alpha"\n')
    pattern = PromptSource(source="*.jsonl")
    one = source_identity(pattern)
    assert one == source_identity(PromptSource(source="a.jsonl"))
    write("b.jsonl", '"beta"\n')
    two = source_identity(pattern)
    write("b.jsonl", '"gamma"\n')
    assert len({str(identity) for identity in (one, two, source_identity(pattern))}) == 3


def test_home_folders_are_found(split, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("mine.jsonl", '"alpha"\n"beta"\n')
    assert all_texts(split("~/mine.jsonl")) == ["alpha", "beta"]
    assert [value for _, value in read_source(PromptSource(source="~/mine.jsonl"))] == ["alpha", "beta"]


def test_a_survey_needs_no_tokenizer_and_counts_what_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ['"alpha"', json.dumps({"messages": [QUESTION, ANSWER]}), '{"q": 1}', "{"]
    counts = survey(PromptSource(source=write("a.jsonl", "\n".join(rows))))
    assert counts.read == 4
    assert counts.notes()[:2] == [
        "a.jsonl: 1 prompt from plain text",
        "a.jsonl: 1 prompt from `messages`, without the assistant's last message",
    ]
    assert counts.skipped.total() == 2
