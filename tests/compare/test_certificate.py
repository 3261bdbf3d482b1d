"""`sppo game certify`: best responses against a run's policies, trained by the loop itself."""

import json
from dataclasses import replace

import pytest
from small_runs import play, small
from typer.testing import CliRunner

from sppo.cli.game import app
from sppo.compare import certificate
from sppo.game.certificate import Bound, LowerBound
from sppo.progress import Terminal
from sppo.report import certificate_section
from sppo.rundir.folder import RunError

RECIPE = "policy: {model: tinyworld}\nprompts: {train: tinyworld/train}\noracle: {type: panel}\n"
EFFORT = certificate.Effort(seeds=1, rates=[1.0], iterations=1, prompts=8, responses=2)


@pytest.fixture
def run(tmp_path):
    play(small(iterations=1), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_the_last_and_the_averaged_policy_are_certified(run):
    # at the second learning rate float32 overflows within a few steps
    arguments = ["certify", run, "--seeds", 1, "--rates", "1,1e12", "--iterations", 1, "--prompts", 8]
    result = CliRunner().invoke(
        app, [*map(str, arguments), "--responses", "2", "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "diverged and is not counted" in result.stderr
    found = json.loads(result.stdout)
    assert list(found) == ["last", "averaged"]
    trained = "best response (seed 0, rate x 1), iteration 1"
    candidates = [
        "base",
        "iteration 1",
        "the last policy, drawn again",
        "the last policy, drawn again, best of 2",
        trained,
        f"{trained}, best of 2",
    ]
    for of in found.values():
        assert of["low"] <= of["mean"] <= of["high"]
        assert of["prompts"] == 5
        assert list(of["diverged"]) == ["best response (seed 0, rate x 1e+12)"]
        assert of["candidates"] == candidates
    lines = (run / "certificate" / "averaged.jsonl").read_text().splitlines()
    # eight prompts to train on, and the ten that are held out
    assert [len(json.loads(line)["responses"]) for line in lines] == [2] * (8 + 10)
    notes = []
    assert found["last"]["sentence"] in certificate_section.section(run, "run", notes).lead
    assert not notes
    # the same call again trains nothing
    policy = run / "certificate" / "last-seed-0-rate-1" / "iter-1" / "policy" / "model.safetensors"
    before = policy.stat().st_mtime_ns
    certificate.certify(run, EFFORT, Terminal(quiet=True))
    assert policy.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("low", "says"), [(0.01, "is exploitable by at least 0.010"), (-0.01, "No response was found")]
)
def test_the_sentence_says_what_the_bound_means(low, says):
    bound = LowerBound(0, 0.1, Bound(0.05, low, 0.09, 20))
    assert says in certificate.Certificate("last", ["base"], bound, {}).sentence


def test_a_run_that_cannot_be_certified_says_why(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RunError, match="finish an iteration first"):
        certificate.certify(tmp_path, EFFORT, Terminal(quiet=True))
    (tmp_path / "recipe.yaml").write_text(RECIPE + "training: {adapter: {type: lora}}\n")
    with pytest.raises(RunError, match="leave out --adapter-rank"):
        certificate.certify(tmp_path, replace(EFFORT, adapter_rank=8), Terminal(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank", [pytest.param(None, marks=pytest.mark.long), 2], ids=["the run's own adapter", "on whole weights"]
)
def test_best_responses_are_adapters(tmp_path, rank):
    own = {"training.adapter": {"type": "lora", "r": 4}} if rank is None else {}
    play(small(iterations=1, **own), tmp_path / "run")
    found = certificate.certify(tmp_path / "run", replace(EFFORT, adapter_rank=rank), Terminal(quiet=True))
    assert [of.target for of in found] == ["last", "averaged"] and not found[0].diverged
    trained = tmp_path / "run" / "certificate" / "last-seed-0-rate-1" / "iter-1" / "policy"
    assert json.loads((trained / "adapter_config.json").read_text())["r"] == (rank or 4)


def test_a_damaged_certificate_is_noted(tmp_path):
    (tmp_path / "certificate.json").write_text('{"last": {"mean": "much"}}')
    notes = []
    assert certificate_section.section(tmp_path, "run", notes) is None
    assert "cannot be read" in notes[0]
