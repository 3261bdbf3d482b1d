"""The Python interface, in programs of their own, as users write them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

import sppo
from sppo.oracle import OracleError
from sppo.recipe import RecipeError
from sppo.rundir.folder import RunError

DOCS = Path(__file__).resolve().parents[1] / "docs"
THINGS = ("a fox", "a drum", "rain", "soup", "a tram", "a hat", "snow")
RECIPE = {
    "policy": {"model": "tinyworld"},
    "iterations": 1,
    "sampling": {"k": 2, "max_new_tokens": 24},
    "training": {"learning_rate": 1e-4, "truncated_responses": "train"},
    "evaluation": {"responses": 1},
    "guard": {"on_failure": "keep"},
}


def call(folder, name="program.py", expect=0):
    done = subprocess.run([sys.executable, name], cwd=folder, capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder of docs/python.md's program after it has run word by word."""
    folder = tmp_path_factory.mktemp("example")
    (program,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), flags=re.M | re.S)
    (folder / "shorter.py").write_text(program)
    return folder, call(folder, "shorter.py").stdout


def test_the_example_of_the_docs_runs(example):
    output = example[1]
    assert output.count("tokens: ") == 2
    assert "runs/shorter/iter-2/policy 2 [[0.5," in output
    assert "vs base" in output, "progress is shown"


def test_a_run_is_read_as_data_sets_and_figures(example):
    run = sppo.load_run(example[0] / "runs/shorter")
    assert [row["iteration"] for row in run.iterations] == [1, 2]
    assert run.recipe.oracle.function == "__main__:prefer"
    responses, preferences = run.responses(2), run.preferences(2)
    assert isinstance(responses, datasets.Dataset)
    assert responses["prompt_id"] == preferences["prompt_id"]
    k = run.recipe.sampling.k
    for row, matrix in zip(responses, preferences["matrix"]):
        words = [len(response["text"].split()) for response in row["responses"]]
        assert len(words) == len(matrix) == k
        assert all((words[i] < words[j]) == (matrix[i][j] > 0.5) for i in range(k) for j in range(k))
    assert run.responses(0, held_out=True).num_rows == 3
    assert run.policy(2) == run.path / "iter-2/policy"
    assert (run.policy(0) / "config.json").is_file()
    with pytest.raises(RunError, match="iteration 3 has no policy; there are base, iteration 1, iteration 2"):
        run.policy(3)
    with pytest.raises(RunError, match="iteration 7 has no preferences yet"):
        run.preferences(7)
    assert repr(run) == f"Run({str(run.path)!r}, 2 of 2 iterations finished)"


def test_a_notebook_shows_the_report_in_a_frame_of_its_own(example):
    report = sppo.load_run(example[0] / "runs/shorter").report()
    page = Path(report).read_text()
    assert page.startswith("<!doctype html>")
    shown = report._repr_html_()
    assert shown.startswith("<iframe")
    assert shown.count("<") == 2, "the page is an attribute, none of whose markup reaches the notebook"


PROGRAM = """
import json, sys
import numpy as np
import sppo
from helpers import scale

def words(text):
    return {body}

def prefer(prompts, responses):{comment}
    counts = np.array([[words(text) for text in texts] for texts in responses])
    return 1 / (1 + np.exp((counts[:, :, None] - counts[:, None, :]) / scale()))

if __name__ == "__main__":
    rows = []
    sppo.run({recipe!r}, oracle=prefer, prompts={prompts!r}, held_out=2, run_dir="run", callbacks=[rows.append],
             progress=False)
    print(json.dumps([row["iteration"] for row in rows]))
"""


def test_the_same_program_continues_and_a_changed_function_is_noticed(tmp_path):
    prompts = [f"Describe {thing}." for thing in THINGS]

    def write(body="len(text.split())", comment="", scale="10"):
        program = PROGRAM.format(body=body, comment=comment, recipe=RECIPE, prompts=prompts)
        (tmp_path / "program.py").write_text(program)
        (tmp_path / "helpers.py").write_text(f"def scale():\n    return {scale}\n")

    write()
    first = call(tmp_path)
    assert json.loads(first.stdout) == [1], "nothing but the program's own output"
    summary = (tmp_path / "run/summary.json").read_bytes()
    write(comment="  # of words")
    assert json.loads(call(tmp_path).stdout) == [1]
    assert (tmp_path / "run/summary.json").read_bytes() == summary
    for change in ({"body": "len(text)"}, {"scale": "20"}):
        write(**change)
        assert "StaleRun" in call(tmp_path, expect=1).stderr
    write()
    line = [sys.executable, "-m", "sppo", "run", "run"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "put it into a module of its own" in done.stderr + done.stdout


def test_prompts_are_texts_conversations_rows_or_a_data_set(tmp_path):
    texts = [f"Describe {thing}." for thing in THINGS]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    rows = [{"prompt": text} for text in texts]
    ids = []
    for number, prompts in enumerate(
        (texts, conversations, rows, datasets.Dataset.from_list(rows), iter(texts))
    ):
        run = sppo.run(
            RECIPE,
            oracle={"type": "panel"},
            prompts=prompts,
            held_out=["Describe a cat.", "Describe a dog."],
            run_dir=tmp_path / str(number),
            report=False,
            progress=False,
            overrides={"sampling.max_new_tokens": 4},
        )
        ids.append(run.responses(1)["prompt_id"][:])
        assert not (run.path / "report.html").exists()
        assert run.recipe.sampling.max_new_tokens == 4
    assert len(ids[0]) == len(THINGS)
    assert all(other == ids[0] for other in ids)


def test_what_cannot_be_used_is_refused_with_the_way_out(tmp_path):
    def nested(prompts, responses):
        raise AssertionError("never called")

    for oracle in (nested, lambda prompts, responses: None):
        with pytest.raises(OracleError, match="define the function with `def` at the top level"):
            sppo.run(RECIPE, oracle=oracle, prompts=["a", "b", "c"], run_dir=tmp_path / "run")
    panel = {"type": "panel"}
    with pytest.raises(RecipeError, match="run_dir: missing; name the folder"):
        sppo.run(RECIPE, oracle=panel, prompts=["a"])
    for prompts, message in (
        ([], "prompts.train: there are no prompts"),
        ([1], "number 0 is int; a prompt is a text, a list of messages, or a mapping"),
        (["a", {"prompt": b"a"}], "number 1 cannot be stored"),
    ):
        with pytest.raises(RecipeError, match=message):
            sppo.run(RECIPE, oracle=panel, prompts=prompts, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="is not a run folder"):
        sppo.load_run(tmp_path)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        sppo.no_such_name  # noqa: B018


def test_the_package_imports_at_once_and_names_lead_to_its_modules():
    program = (
        "import sys, sppo; assert sppo.run and sppo.load_run and 'run' in dir(sppo);"
        " heavy = {'torch', 'transformers', 'datasets', 'ray'} & set(sys.modules); assert not heavy, heavy;"
        " print(sppo.oracle.load({'type': 'panel'}).compare(['a'], [['b', 'c']]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 2, 2)"
