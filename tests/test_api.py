"""The Python interface, in programs of their own, as users write them."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import datasets
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import sppo
from sppo.memory_inputs import source
from sppo.oracle import OracleError
from sppo.prompts import interpret, read_source, survey
from sppo.recipe import PromptSource, RecipeError, parse
from sppo.recipe.registry import UnknownName
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


def programs():
    return re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), flags=re.M | re.S)


@pytest.mark.slow
def test_the_example_with_a_real_model_runs(tmp_path):
    """Word by word, but for the model's name (there is no hub here) and the number of topics."""
    program = programs()[1].replace("HuggingFaceTB/SmolLM2-135M-Instruct", "tinyworld")
    few = re.sub(r'("rain"), .*?\)\n', r"\1)\n", program, count=1, flags=re.S).replace(
        "held_out=25", "held_out=3"
    )
    (tmp_path / "real.py").write_text(few.replace('"k": 5', '"k": 2'))
    assert "'mean': " in call(tmp_path, "real.py").stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder of docs/python.md's program after it has run word by word."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "shorter.py").write_text(programs()[0])
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
import nbformat
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_prompts_are_texts_conversations_rows_or_a_data_set(tmp_path):
    texts = [f"Describe {thing}." for thing in THINGS]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    rows = [{"prompt": text} for text in texts]
    file, ids = tmp_path / "recipe.yaml", []
    file.write_text(json.dumps(RECIPE))
    whole = parse({**RECIPE, "oracle": {"type": "pairrm"}, "prompts": {"train": "replaced.jsonl"}})
    for number, prompts in enumerate(
        (texts, conversations, rows, datasets.Dataset.from_list(rows), iter(texts))
    ):
        run = sppo.run(
            (RECIPE, file, str(file), whole, RECIPE)[number],
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


def rows_of_the_docs():
    (block,) = re.findall(r"^```jsonl\n(.*?)^```", (DOCS / "data.md").read_text(), flags=re.M | re.S)
    return [json.loads(line) for line in block.splitlines()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("row", rows_of_the_docs(), ids=lambda row: "-".join(row))
def test_every_shape_of_the_docs_is_read_from_a_data_set_in_memory(row, streaming, tmp_path):
    extra = {"id": "x-1", "score": np.float32(0.5), "made": datetime(2026, 1, 2), "tags": np.array([1, 2])}
    data = datasets.Dataset.from_list([{**row, **extra, "tags": [1, 2]}])
    written = source(data.to_iterable_dataset() if streaming else data, tmp_path, "prompts")
    described = PromptSource.model_validate(written)
    (read,) = (interpret(value, described) for _, value in read_source(described))
    direct = interpret(row, described)
    assert (read.messages, read.taken, read.own_id) == (direct.messages, direct.taken, "x-1")
    assert list(survey(described).taken.values()) == [1]
    assert source([{**row, **extra}], tmp_path, "rows")["source"].endswith(".jsonl")


def test_policies_are_compared_from_python(example, tmp_path):
    run = sppo.load_run(example[0] / "runs/shorter")
    result = sppo.evaluate(
        "head-to-head",
        run,
        prompts=["Describe a cat.", "Describe a dog."],
        oracle={"type": "panel"},
        sampling={"max_new_tokens": 8},
        output=tmp_path / "compared",
        progress=False,
    )
    names = [policy["name"] for policy in result["policies"]]
    assert names == ["shorter-base", "shorter-iter-1", "shorter-iter-2"]
    assert result["prompts"] == 2
    win_rates = np.array(result["win_rates"])
    assert win_rates + win_rates.T == pytest.approx(np.ones((3, 3)))


def test_a_pairrm_is_trained_on_preferences_in_memory(tmp_path):
    rows = [
        {"prompt": f"Describe {thing}.", "chosen": f"Fine words {number}.", "rejected": f"Bad {number}."}
        for number in range(4)
        for thing in THINGS
    ]
    encoder = {
        "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16, "vocabulary": 300, "position_buckets": 8,
    }  # fmt: skip
    settings = {"encoder": encoder, "training": {"epochs": 1, "batch_pairs": 8}}
    result = sppo.train_oracle(
        settings, pairs=datasets.Dataset.from_list(rows), output=tmp_path / "mine", progress=False
    )
    assert result["data"]["pairs"] == len(rows)
    oracle = sppo.oracle.load({"type": "pairrm", "model": str(tmp_path / "mine")})
    assert oracle.compare(["Describe a fox."], [["Fine.", "Bad."]]).shape == (1, 2, 2)
    again = sppo.train_oracle(settings, pairs=rows, output=tmp_path / "mine", progress=False)
    assert (again["fingerprint"], again["data"]) == (result["fingerprint"], result["data"])


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
        ([], "prompts: there are no rows in it"),
        ([1], "prompts: row 0 is int; a row is a text, a list of messages, or a mapping"),
        (
            ["a", {"prompt": b"a"}],
            "row 1 cannot be stored: a value of type bytes is neither text nor a number",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            sppo.run(RECIPE, oracle=panel, prompts=prompts, run_dir=tmp_path / "run")
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list([{"prompt": "a"}]))
    with pytest.raises(RecipeError, match=r"a data set with the splits test; hand over .* data\['test'\]"):
        sppo.run(RECIPE, oracle=panel, prompts=splits, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="respones: head-to-head has no such option; did you mean responses"):
        sppo.evaluate("head-to-head", tmp_path, respones=2)
    with pytest.raises(UnknownName, match="'head-to-hed' is unknown; did you mean 'head-to-head'"):
        sppo.evaluate("head-to-hed", tmp_path)
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


@pytest.mark.slow
def test_the_reference_is_built_from_the_docstrings(tmp_path):
    (command,) = re.findall(r"^\t\$\(BIN\)/pdoc (.*)$", (DOCS.parent / "Makefile").read_text(), flags=re.M)
    arguments = command.replace("build/docs", str(tmp_path)).split()
    done = subprocess.run([sys.executable, "-m", "pdoc", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Warn")) == (0, 0), done.stderr
    page = (tmp_path / "sppo/api.html").read_text()
    for name in sppo.__all__:
        assert f'id="{name}"' in page
    assert 'id="Run.preferences"' in page
    assert '<h6 id="arguments">Arguments:</h6>' in page
    for module in ("oracle", "recipe", "game"):
        assert (tmp_path / f"sppo/{module}.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own packages
def test_the_notebook_runs_and_ends_with_the_report_inside_it(tmp_path):
    notebook = nbformat.read(DOCS / "first_run.ipynb", as_version=4)
    for cell in notebook.cells:  # a smaller run
        cell.source = cell.source.replace("lamp bread clock bridge tree boat cat", "").replace(
            '"k": 5', '"k": 2'
        )
        cell.source = cell.source.replace('"guard"', '"evaluation": {"responses": 1}, "guard"')
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    (frame,) = outputs[-1]
    assert frame["data"]["text/html"].startswith("<iframe")
    assert "&lt;!doctype html&gt;" in frame["data"]["text/html"]
    bars = [output["data"]["text/plain"] for output in outputs[-4] if output.output_type == "display_data"]
    counts = re.findall(r"(\d+)/(\d+|\?)", re.sub(r"\x1b\[[\d;]*m", "", "".join(bars)))
    assert len(counts) > 10 and all(done == total for done, total in counts), (
        "bars end where they have got to"
    )
    lines = [output for output in outputs[-4] if output.output_type == "stream"]
    assert {output.name for output in lines} == {"stdout"}, "nothing is shown as an error"
    shown = "".join([*bars, *(output.text for output in lines), outputs[-4][-1]["data"]["text/plain"]])
    assert "iteration 2: train" in shown and "vs base" in shown and "2 of 2 iterations finished" in shown
    assert not any(output.output_type == "error" for of_cell in outputs for output in of_cell)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"oracle": "pairrm"},
            "oracle: 'pairrm' is neither a function nor a mapping; hand over .*'type': 'pairrm'",
        ),
        ({"oracle": sppo.oracle.load({"type": "panel"})}, "oracle: an object of .* is neither a function"),
        ({"prompts": 3}, "prompts: 3 is neither a source nor a list of prompts"),
        ({"held_out": 0.2}, r"held_out: must be a whole number .*len\(prompts\) // 5"),
        ({"held_out": True}, r"held_out: must be a whole number of prompts, or prompts \(got True\)"),
        ({"callbacks": print}, r"callbacks: must be a list of functions .*callbacks=\[print\]"),
        ({"callbacks": [3]}, r"callbacks: must be a list of functions \(got \[3\]\)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_argument_of_the_wrong_kind_is_named_before_anything_is_computed(tmp_path, argument, message):
    given = {"oracle": {"type": "panel"}, "prompts": ["a", "b", "c"], "held_out": 1} | argument
    with pytest.raises(RecipeError, match=message):
        sppo.run(RECIPE, run_dir=tmp_path / "run", **given)
    assert not list(tmp_path.glob("run/iter-*"))
