"""`--responses-only`: a policy's responses in the benchmarks' formats, before anybody judges them."""

import json
import shutil

import pytest
from chat_server import said, serve

from sppo.benchmarks.outputs import read_outputs
from sppo.benchmarks.question_files import read_responses
from sppo.cli.main import app

INSTRUCTIONS = ["Name a colour.", "Write one line about a fox."]


@pytest.fixture
def benchmarks(tmp_path):
    """For each benchmark the arguments that name its questions, two of our own."""
    questions = {
        "mt-bench": [
            {"question_id": 81, "category": "writing", "turns": [INSTRUCTIONS[0], "And another one."]},
            {"question_id": 111, "category": "writing", "turns": [INSTRUCTIONS[1], "Shorter."]},
        ],
        "arena-hard": [{"uid": name, "prompt": text} for name, text in zip("ab", INSTRUCTIONS, strict=True)],
    }
    for name, rows in questions.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline = [
        {"instruction": text, "output": "Blue.", "generator": "them", "dataset": "own"}
        for text in INSTRUCTIONS
    ]
    (tmp_path / "baseline.json").write_text(json.dumps(baseline))
    return {name: ["--data", str(tmp_path / name)] for name in questions} | {
        "alpaca-eval": ["--baseline", str(tmp_path / "baseline.json")]
    }


def evaluate(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", *map(str, arguments)])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    return shown.out if code == 0 else " ".join(shown.err.split())


def texts(benchmark, path):
    """What the policy responded to each question, read as the benchmark's own file is."""
    if benchmark == "alpaca-eval":
        assert set(json.loads(path.read_text())[0]) == {"dataset", "instruction", "output", "generator"}
        return [(text,) for text in read_outputs(path).to(INSTRUCTIONS)]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    own = {
        "mt-bench": {"question_id", "answer_id", "model_id", "choices", "tstamp"},  # FastChat's
        "arena-hard": {"uid", "ans_id", "model", "messages", "metadata", "tstamp"},  # since April 2025
    }
    assert all(set(row) == own[benchmark] for row in rows)
    return list(read_responses(path).turns.values())


@pytest.mark.parametrize("benchmark", ["mt-bench", "arena-hard", "alpaca-eval"])
def test_responses_are_written_without_a_judge_and_judged_later(
    capsys, tmp_path, tiny_model, benchmarks, benchmark
):
    arguments = [
        benchmark, f"tiny={tiny_model('llama-3')}", *benchmarks[benchmark], "-o", tmp_path / "out", "--sampling",
        "{max_new_tokens: 8}",
    ]  # fmt: skip
    (row,) = json.loads(evaluate(capsys, *arguments, "--responses-only", "--json"))
    (path,) = (tmp_path / "out" / "tiny").glob(
        "responses-*/outputs.json" if benchmark == "alpaca-eval" else "responses-*/model_answer/tiny.jsonl"
    )
    assert row["name"] == "tiny"
    assert row["responses"] == str(path)
    assert 0 < row["response_tokens"] <= 8
    assert not list((tmp_path / "out").rglob("judgments-*"))
    written = texts(benchmark, path)
    assert len(written) == 2
    assert all(len(turns) == (2 if benchmark == "mt-bench" else 1) for turns in written)
    (shard,) = path.parents[0 if benchmark == "alpaca-eval" else 1].glob("part-*.parquet")
    made = shard.stat().st_mtime_ns
    with serve(lambda path, body: said("Rating: [[7]], or [[A=B]]")) as server:
        judging = ["--judge", json.dumps({"url": server.url, "model": "judge"})]
        if benchmark == "alpaca-eval":
            judging = ["--oracle", "panel", "--no-length-control"]
        if benchmark == "arena-hard":  # against itself
            (tmp_path / benchmark / "model_answer").mkdir()
            shutil.copy(path, tmp_path / benchmark / "model_answer" / "gpt-4-0314.jsonl")
        evaluate(capsys, *arguments, *judging)
    (row,) = json.loads((tmp_path / "out" / f"{benchmark}.json").read_text())["results"]
    assert row["name"] == "tiny"
    assert shard.stat().st_mtime_ns == made, "sampled once"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (
            "mt-bench",
            ["runs/own", "--judge", "{url: http://x/v1, model: j}"],
            "no judge is asked; leave out --judge",
        ),
        ("arena-hard", ["runs/own", "--judgments", "judged.jsonl"], "files of judgments"),
        ("alpaca-eval", ["runs/own", "--oracle", "panel"], "--oracle"),
        ("mt-bench", ["written.jsonl"], "files have their responses already"),
        ("alpaca-eval", ["written.json"], "files have their responses already"),
        ("arena-hard", [], "nothing to evaluate"),
    ],
)
def test_what_responses_only_refuses(
    capsys, tmp_path, monkeypatch, tiny_model, benchmarks, benchmark, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "written.jsonl").write_text("{}")
    (tmp_path / "written.json").write_text("[]")
    named = [f"tiny={tiny_model('llama-3')}" if value == "runs/own" else value for value in arguments]
    shown = evaluate(capsys, benchmark, "--responses-only", *named, *benchmarks[benchmark], code=1)
    assert message in shown
    assert not list(tmp_path.rglob("part-*.parquet"))
