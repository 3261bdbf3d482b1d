import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from sppo import oracle, winrates
from sppo.benchmarks.run_samples import SampleRequest, sample_responses
from sppo.cli.main import app
from sppo.progress import Terminal
from sppo.recipe import load
from sppo.rundir.folder import RunError
from sppo.sampling import Response
from sppo.stages.models import Models
from sppo.tinyworld import POLICY

RECIPE = """
policy: {model: tinyworld}
prompts: {train: tinyworld/train}
sampling: {k: 3, max_new_tokens: 30}
oracle: {type: panel}
"""
PROMPTS = ["Describe a fox in one sentence.", "Tell me about the rain.", "Describe a drum."]


@pytest.fixture
def folder(tmp_path):
    """A run of one iteration whose policy is the base's copy."""
    run = tmp_path / "run"
    (run / "iter-1").mkdir(parents=True)
    shutil.copytree(POLICY, run / "iter-1" / "policy")
    (run / "recipe.yaml").write_text(RECIPE)
    summary = {
        "base": {"policy": str(POLICY)},
        "iterations": [{"iteration": 1}],
        "policy": str(run / "iter-1" / "policy"),
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return run


def drawn(folder, **wanted):
    wanted = SampleRequest(**{"n": 6, "prompts": str(folder.parent / "prompts.jsonl"), **wanted})
    path = sample_responses(load(folder / "recipe.yaml"), folder, wanted, Terminal())
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_best_of_n_is_what_the_oracle_prefers_among_all_n(folder):
    every = drawn(folder)
    best = drawn(folder, best=True)
    texts = [[one["text"] for one in row["responses"]] for row in every]
    rates = winrates.win_rates(oracle.load({"type": "panel"}).compare(PROMPTS, texts))
    for row, kept, of in zip(every, best, rates, strict=True):
        (response,) = kept["responses"]
        assert response.pop("win_rate") == pytest.approx(of.max())
        assert response == row["responses"][int(of.argmax())]
        assert response["policy"] == "run"


def test_a_mixture_with_all_weight_on_one_policy_is_that_policy(folder):
    (alone,) = {json.dumps([r["token_ids"] for row in drawn(folder, iteration=0) for r in row["responses"]])}
    for weights, name in (((1.0, 0.0), "run-base"), ((0.0, 2.0), "run-iter-1")):
        rows = drawn(folder, mixture=True, weights=weights)
        assert {r["policy"] for row in rows for r in row["responses"]} == {name}
        if name == "run-base":
            assert json.dumps([r["token_ids"] for row in rows for r in row["responses"]]) == alone


def test_the_policy_of_each_response_is_drawn_by_the_weights(folder, monkeypatch):
    class Instant:
        """Draws nothing: the test counts the responses that each policy is asked for."""

        def sample(self, prompts, keys, k):
            return [[Response([7, 5], "stop", [-1.0, -1.0])] * k for _ in prompts]

        def close(self):
            pass

    monkeypatch.setattr(Models, "sampler", lambda self, policy: Instant())
    count = 2000
    rows = drawn(folder, n=count, mixture=True, weights=(1.0, 3.0))
    for row in rows:
        assert [one["number"] for one in row["responses"]] == list(range(count))
        share = np.mean([one["policy"] == "run-iter-1" for one in row["responses"]])
        assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)
    assert len({json.dumps([one["policy"] for one in row["responses"]]) for row in rows}) == len(rows)


def test_what_is_drawn_is_not_drawn_again(folder, monkeypatch):
    first = drawn(folder, mixture=True)
    assert {r["policy"] for row in first for r in row["responses"]} == {"run-base", "run-iter-1"}

    def fail(self, policy):
        raise AssertionError

    monkeypatch.setattr(Models, "sampler", fail)
    assert drawn(folder, mixture=True) == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mixture", "--weights", "1,2,3"], "3 for 2 policies"),
        (["--mixture", "--weights", "1,-1"], "none may be negative"),
        (["--mixture", "--weights", "0,0"], "their sum must be positive"),
        (["--mixture", "--weights", "a"], "expected numbers separated by commas"),
        (["--mixture", "--iteration", "1"], "the mixture is made of all iterations"),
        (["--weights", "1,2"], "--weights works only with --best-of or --mixture"),
        (["--best-of", "2", "--weights", "1,2"], "--weights works only with --mixture"),
        (["--best-of", "2", "--iteration", "2"], "has 1 iteration so far"),
        (["--iteration", "0"], "iterations are counted from 1"),
        (["--best-of", "2"], "no held-out prompts yet"),
        (["--best-of", "2", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder, arguments, said):
    result = CliRunner().invoke(app, ["sample", str(folder), *arguments])
    misused = said.startswith("expected")  # the command line itself, which has an exit code of its own
    assert result.exit_code == (2 if misused else 1)
    assert said in result.output


def test_the_command_writes_where_it_is_told(folder, tmp_path):
    output = tmp_path / "out" / "best.jsonl"
    prompts = str(folder.parent / "prompts.jsonl")
    arguments = [
        "sample",
        "--mixture",
        str(folder),
        "--best-of",
        "2",
        "--prompts",
        prompts,
        "-o",
        str(output),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(output.read_text().splitlines()) == len(PROMPTS)


def test_a_run_that_has_not_begun_has_nothing_to_draw_from(folder):
    (folder / "summary.json").unlink()
    with pytest.raises(RunError):
        drawn(folder)
