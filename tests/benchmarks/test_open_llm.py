"""The Open LLM Leaderboard by lm-eval, on local questions of our own, with a tiny model."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from sppo.benchmarks.open_llm import files, lm_eval_tasks
from sppo.benchmarks.open_llm.score import TASKS, OpenLlmError, average, score
from sppo.cli.main import app
from sppo.policy import chat_format

pytest.importorskip("lm_eval")

ANIMALS = ("fox", "owl", "cat", "dog", "hen", "bee", "ant", "cow", "pig", "bat")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arc_row(n):
    return {
        "question": f"Which one is number {n}?",
        "choices": {"text": [ANIMALS[n % 10], ANIMALS[(n + 1) % 10]], "label": ["A", "B"]},
        "answerKey": "AB"[n % 2],
    }


def hellaswag_row(n):
    name = ANIMALS[n % 10]
    return {
        "ctx_a": f"A {name} walks in.",
        "ctx_b": "then it",
        "activity_label": "Walking",
        "endings": [f"sits{w}." for w in ("", " down", " up", " on the hat")],
        "label": str(n % 4),
    }


def winogrande_row(n):
    name = ANIMALS[n % 10]
    return {
        "sentence": f"The {name} fed the bird because _ was hungry.",
        "option1": f"the {name}",
        "option2": "the bird",
        "answer": str(1 + n % 2),
    }


def truthful_row(n):
    choices = [f"It is {ANIMALS[(n + i) % 10]}." for i in range(4)]
    return {
        "question": f"What is number {n}?",
        "mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": choices, "labels": [1, 1, 0, 0]},
    }


def gsm8k_row(n):
    return {
        "question": f"A {ANIMALS[n % 10]} has {n} hats and gets 1.",
        "answer": f"{n} + 1\n#### {n + 1}",
    }


def mmlu_row(n):
    return {
        "question": f"What comes after {n}?",
        "choices": [str(n + i) for i in range(4)],
        "answer": n % 4,
    }


def local_data(folder, subjects=("anatomy", "astronomy")):
    """A handful of invented rows for each task, in the columns of the hub's data sets."""

    for name, make, splits in (
        ("arc_challenge", arc_row, {"train": 26, "test": 3}),
        ("hellaswag", hellaswag_row, {"train": 12, "validation": 3}),
        ("winogrande", winogrande_row, {"train": 7, "validation": 3}),
        ("truthfulqa_mc2", truthful_row, {"validation": 3}),
        ("gsm8k", gsm8k_row, {"train": 7, "test": 2}),
    ):
        for split, count in splits.items():
            write(folder / name / f"{split}.jsonl", [make(n) for n in range(count)])
    for size, subject in enumerate(subjects, 2):
        write(folder / "mmlu" / subject / "dev.jsonl", [mmlu_row(n) for n in range(5)])
        write(folder / "mmlu" / subject / "test.jsonl", [mmlu_row(n + 5) for n in range(size)])
    return folder


def test_the_tasks_are_the_leaderboards():
    shots = {task.column: task.shots for task in TASKS}
    assert shots == {"arc": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa": 0, "winogrande": 5, "gsm8k": 5}
    assert len(files.packaged(TASKS[-1])) == 57


def test_every_item_counts_once_and_the_error_is_that_of_their_mean():
    def items(*values, **more):
        return [{"acc": value, "filter": "none", **more} for value in values]

    binary = score({"mmlu_a": items(1, 0, 0), "mmlu_b": items(1)}, "acc,none")
    assert (binary.score, binary.examples, binary.parts) == (50, 4, 2)
    assert binary.standard_error == pytest.approx(100 * math.sqrt(0.25 / 3))
    # TruthfulQA's figures are shares of probability, which differ less than right and wrong do
    shares = score({"truthfulqa": items(0.4, 0.6)}, "acc,none")
    assert (shares.score, shares.standard_error) == (pytest.approx(50), pytest.approx(10))
    # GSM8K has a row of each item for each way to read the answer
    both = {"gsm8k": [*items(1, 0), *items(1, 1, filter="flexible")]}
    assert score(both, "acc,none").score == 50
    assert average([asdict(binary), asdict(shares)]) == (
        pytest.approx(50),
        pytest.approx(math.hypot(100 * math.sqrt(1 / 12), 10) / 2),
    )
    alone = score({"arc": items(1)}, "acc,none")
    assert alone.standard_error is None
    assert average([asdict(binary), asdict(alone)]) == (75, None)


def test_local_tasks_include_the_packaged_ones(tmp_path):
    data = local_data(tmp_path / "data")
    mmlu = TASKS[-1]
    assert files.write_local_tasks(mmlu, data, tmp_path / "tasks") == [
        "local_mmlu_anatomy",
        "local_mmlu_astronomy",
    ]
    (data / "mmlu" / "anatomy" / "dev.jsonl").unlink()
    with pytest.raises(OpenLlmError, match=r"anatomy/dev\.jsonl"):
        files.write_local_tasks(mmlu, data, tmp_path / "tasks")


def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(capsys, tmp_path, tiny_model):
    data = local_data(tmp_path / "data")
    (data / "gsm8k" / "test.jsonl").unlink()
    arguments = [
        "evaluate",
        "open-llm",
        str(tiny_model("llama-3")),
        "--data",
        str(data),
        "-o",
        str(tmp_path / "out"),
    ]
    for more, code, message in (
        ([], 1, "gsm8k/test.jsonl; local data have train, test"),
        (["--batch-size", "0"], 1, "--batch-size 0: a number from 1 on"),
        (["--dtype", "int8"], 2, "'int8' is not one of"),
        (["--task", "rope"], 1, "there is no task 'rope'"),
    ):
        with pytest.raises(SystemExit) as ended:
            app([*arguments, *more])
        assert ended.value.code == code
        assert message in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "out").rglob("record.json"))


def test_data_that_lm_eval_cannot_read_are_named_with_the_reason(tmp_path, tiny_model, monkeypatch):
    """The loader's own message says nothing; what it was raised from does."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = local_data(tmp_path / "data")
    (data / "arc_challenge" / "test.jsonl").write_text("{[\n")
    arc = TASKS[0]
    names = files.write_local_tasks(arc, data, tmp_path / "tasks")
    model = lm_eval_tasks.load_model(
        tiny_model("llama-3"), dtype="float32", batch_size="1", device="cpu", max_length=64
    )
    with pytest.raises(OpenLlmError, match=r"arc: .*DatasetGenerationError.*\(.*JSON.*whole JSON lines"):
        lm_eval_tasks.measure(model, arc, names=names, tasks_folder=tmp_path / "tasks")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_six_tasks_run_on_local_files(tmp_path, tiny_model):
    """In a process of its own, as a user does; the second time nothing is measured again."""
    data = local_data(tmp_path / "data")
    command = [
        sys.executable, "-m", "sppo.cli.main", "evaluate", "open-llm", f"tiny={tiny_model('llama-3')}", "--data", str(data),
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "open-llm.json").read_text())["results"]
    assert {name: found["examples"] for name, found in row["tasks"].items()} == {
        "arc": 3, "truthfulqa": 3, "winogrande": 3, "gsm8k": 2, "hellaswag": 3, "mmlu": 5,
    }  # fmt: skip
    scores = [found["score"] for found in row["tasks"].values()]
    assert all(0 <= score <= 100 for score in scores)
    assert row["average"] == pytest.approx(sum(scores) / 6)
    shown = done.stdout.splitlines()[2:4]
    assert [line.split()[0] for line in shown] == ["tiny", "standard"]
    assert f"{row['tasks']['arc']['standard_error']:.2f}" in shown[1]
    assert "2 of its 57 subjects" in done.stderr
    own = ("open-llm, tiny: ", "note: ")  # nothing of lm-eval's, datasets' or transformers' own
    assert [line for line in done.stderr.splitlines() if not line.startswith(own)] == []
    assert "open-llm, tiny: arc: 6 answers in" in done.stderr
    assert "66.75" in done.stdout  # the published average of SPPO's second iteration
    records = sorted((tmp_path / "out" / "tiny").glob("*/record.json"))
    kept = [json.loads(path.read_text())["lm_eval"]["n-shot"] for path in records]
    assert {name: shots for of in kept for name, shots in of.items()} == {
        "local_arc_challenge": 25, "local_hellaswag": 10, "local_mmlu_anatomy": 5, "local_mmlu_astronomy": 5,
        "local_truthfulqa_mc2": 0, "local_winogrande": 5, "local_gsm8k": 5,
    }  # fmt: skip
    before = [path.stat().st_mtime_ns for path in records]
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    assert "answers" not in again.stderr
    assert json.loads(again.stdout)[0]["average"] == row["average"]
    assert [path.stat().st_mtime_ns for path in records] == before
    assert len(records) == 6


@pytest.mark.slow
def test_the_settings_of_the_chat_template_reach_lm_eval(tmp_path, tiny_model):
    folder = tiny_model("qwen3")
    template = tmp_path / "template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + (folder / "chat_template.jinja").read_text())
    chat = chat_format.load(
        str(folder),
        chat_template=str(template),
        template_date="2024-07-26",
        template_arguments={"enable_thinking": False},
        thought=["<think>", "</think>"],
    )
    model = lm_eval_tasks.load_model(folder, dtype="float32", batch_size="1", device="cpu", chat=chat)
    messages = [{"role": "user", "content": "Describe a fox."}]
    assert model.apply_chat_template(messages) == chat.text(messages)
    assert "26 Jul 2024" in chat.text(messages)
    assert model.think_end_token == "</think>"
