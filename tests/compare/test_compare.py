import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from sppo import compare, selfplay
from sppo.benchmarks.head_to_head.score import over_seeds
from sppo.compare import results
from sppo.compare.runs import entries, plan
from sppo.progress import Terminal
from sppo.recipe import RecipeError
from sppo.rundir.folder import RunFolder, StaleRun

RECIPE = {
    "seed": 3,
    "iterations": 1,
    "cpu_threads": 1,
    "policy": {"model": "tinyworld"},
    "prompts": {
        "train": "tinyworld/train",
        "held_out": {"source": "tinyworld/held-out", "limit": 8},
        "per_iteration": 12,
    },
    "sampling": {"k": 3, "max_new_tokens": 40},
    "oracle": {"type": "panel"},
    "algorithm": {"type": "sppo", "eta": 10},
    "training": {"learning_rate": 1e-3, "batch_prompts": 4, "truncated_responses": "train"},
    "evaluation": {"responses": 2, "resamples": 200},
    "guard": {"on_failure": "keep"},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def run(recipe, home, algorithms="sppo,dpo", seeds=1, redo_stale=False, **changes):
    with open(os.devnull, "w") as nowhere:
        terminal = Terminal(Console(file=nowhere))
        return compare.compare(recipe, algorithms, seeds, changes, home, terminal, redo_stale=redo_stale)


@pytest.fixture(scope="module")
def compared(recipe, tmp_path_factory):
    """Two algorithms, one seed; copy it before changing it."""
    home = tmp_path_factory.mktemp("compared") / "small"
    return home, run(recipe, home)


def content(folder):
    files = [*folder.rglob("part-*.parquet"), *folder.rglob("*.safetensors")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# Arithmetic


def test_a_rate_over_prompts_and_seeds_by_hand():
    seeds = [{"a": 0.2, "b": 0.6}, {"a": 0.4, "b": 0.8}, {"a": 0.6, "b": 1.0}]
    found = results.rate(seeds, confidence=0.95, resamples=4000)
    assert found["mean"] == pytest.approx(0.6)
    assert found["of_seeds"] == pytest.approx([0.4, 0.6, 0.8])
    # means of prompts over seeds are 0.4 and 0.8: a bootstrap of two draws 0.4, 0.6 or 0.8
    assert found["prompts"] == pytest.approx({"low": 0.4, "high": 0.8})
    half = stats.t.ppf(0.975, 2) * 0.2 / np.sqrt(3)
    assert found["seeds"] == pytest.approx({"low": 0.6 - half, "high": 0.6 + half})


def test_seeds_may_have_other_prompts():
    found = results.rate([{"a": 0.0, "b": 1.0}, {"c": 1.0, "d": 1.0}], confidence=0.9, resamples=200)
    assert found["mean"] == pytest.approx(0.75)
    assert found["of_seeds"] == [0.5, 1.0]
    assert found["prompts"]["low"] < 0.75 < found["prompts"]["high"]


def test_the_interval_over_seeds_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(0.7, 0.02, (2000, 5))
    found = [over_seeds(of, confidence=0.9) for of in draws]
    covered = np.mean([one["low"] <= 0.7 <= one["high"] for one in found])
    assert covered == pytest.approx(0.9, abs=0.02)  # 3 standard deviations
    assert over_seeds(np.array([0.3]), confidence=0.9) == {"mean": 0.3, "low": 0.3, "high": 0.3}


def test_a_metric_at_the_end_of_training():
    steps = [{"step": n, "x": float(n)} for n in range(10)]
    assert results.at_the_end(steps, "x") == 8.5
    assert results.at_the_end(steps[:2], "x") == 1.0
    assert results.at_the_end(steps, "y") is None
    assert results.at_the_end([], "x") is None


# What the command line says


def test_sides_and_their_own_values(recipe, tmp_path):
    sides, common = entries(
        "sppo, all=sppo,dpo",
        {"iterations": 2, "dpo.algorithm.beta": 0.3, "all.selection": "all", "training.epochs": 2},
    )
    assert common == {"iterations": 2, "training.epochs": 2}
    runs = plan(recipe, sides, common, 2, tmp_path)
    assert [(one.entry, one.seed) for one in runs] == [
        (name, seed) for seed in (3, 4) for name in ("sppo", "all", "dpo")
    ]
    assert {one.recipe.iterations for one in runs} == {2}
    by_name = {one.entry: one.recipe for one in runs}
    assert by_name["dpo"].algorithm.model_dump() == {"type": "dpo", "beta": 0.3}
    assert by_name["sppo"].algorithm.eta == by_name["all"].algorithm.eta == 10
    assert (by_name["sppo"].selection, by_name["all"].selection) == ("best_worst", "all")
    assert len({one.folder.path for one in runs}) == 6


@pytest.mark.parametrize(
    ("algorithms", "changes", "message"),
    [
        ("sppo,spppo", {}, "spppo: .*algorithm.type.*spppo"),
        ("sppo,dpo", {"dpo.algorithm.eta": 1}, "dpo: .*algorithm.eta: unknown key"),
        ("sppo,dpo", {"algorithm.beta": 1}, "sppo: .*algorithm.beta: unknown key"),
        ("sppo,sppo", {}, "sppo is named twice; rename one of them, for example sppo-2=sppo"),
        ("sppo,training=dpo", {}, "a section of the recipe has this name"),
        ("sppo,", {}, "give names separated by commas"),
        ("../x=sppo", {}, "give names separated by commas"),
        (
            "sppo,dpo",
            {"dpo.prompts.per_iteration": 9},
            "sides may only differ in algorithm, selection, training",
        ),
        ("sppo,dpo", {"dpo.seed": 9}, "sides may only differ in algorithm, selection, training"),
        ("sppo,dpo", {"dpo2.algorithm.beta": 1}, "dpo2: unknown key"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_computed(
    recipe, tmp_path, algorithms, changes, message
):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        run(recipe, tmp_path / "home", algorithms, **changes)
    assert not (tmp_path / "home").exists()


# A whole comparison


def test_what_a_comparison_leaves_behind(compared):
    home, found = compared
    assert json.loads((home / "comparison.json").read_text()) == json.loads(json.dumps(found))
    figure = (home / "comparison.svg").read_text()
    assert figure.startswith("<?xml")
    assert "P(row &gt; column)" in figure
    assert [side["name"] for side in found["sides"]] == ["sppo", "dpo"]
    for side in found["sides"]:
        (row,) = side["iterations"]
        run_of = home / "runs" / f"{side['name']}-seed-3"
        summary = json.loads((run_of / "summary.json").read_text())["iterations"][0]
        assert row["win_rate_vs_base"]["mean"] == pytest.approx(summary["win_rate_vs_base"]["mean"])
        assert row["win_rate_vs_base"]["prompts"]["low"] <= row["win_rate_vs_base"]["mean"]
        assert row["kl_to_base"]["mean"] == pytest.approx(summary["kl_to_base"])
        steps = [json.loads(line) for line in (run_of / "iter-1" / "metrics.jsonl").read_text().splitlines()]
        last = [
            line["log_ratio_winners"] for line in steps if line.get("stage") == "train" and "step" in line
        ][-1]
        assert row["log_ratio_winners"]["mean"] == pytest.approx(last)  # a fifth of three steps


def test_the_matrix_is_that_of_the_recorded_responses(compared):
    _, found = compared
    game = found["head_to_head"]
    assert game["policies"] == ["base", "sppo", "dpo"]
    payoff = np.array(game["win_rates"])
    np.testing.assert_allclose(payoff + payoff.T, 1)
    for index, side in enumerate(found["sides"]):
        assert payoff[index + 1, 0] == pytest.approx(side["iterations"][-1]["win_rate_vs_base"]["mean"])
    assert sum(game["von_neumann_winner"]) == pytest.approx(1)


def test_what_is_equal_is_computed_once_and_is_what_the_run_alone_computes(compared, recipe, tmp_path):
    home, _ = compared
    first, second = home / "runs" / "sppo-seed-3", home / "runs" / "dpo-seed-3"
    records = [json.loads(line) for line in (second / "iter-1" / "metrics.jsonl").read_text().splitlines()]
    adopted = {line["stage"]: line["adopted_from"] for line in records if "adopted_from" in line}
    assert adopted == dict.fromkeys(("prompts", "sample", "annotate"), "sppo-seed-3")
    assert not any("seconds" in line for line in records if line.get("stage") in adopted)
    for table in ("responses", "preferences"):
        assert content(first / "iter-1" / table) == content(second / "iter-1" / table)
    # the opponent's log-probabilities lie beside the algorithm's log Z: not shared, since that differs
    assert not any(line.get("adopted_from") for line in records if line.get("stage") == "select")
    alone = plan(recipe, *entries("dpo", {}), 1, tmp_path)[0]
    with open(os.devnull, "w") as nowhere:
        selfplay.run(alone.recipe, RunFolder(tmp_path / "alone"), Terminal(Console(file=nowhere)))
    assert content(tmp_path / "alone") == content(second)


def test_the_same_command_again_computes_nothing(compared, recipe, tmp_path):
    home = tmp_path / "again"
    shutil.copytree(compared[0], home)
    before = {file: file.stat().st_mtime_ns for file in home.rglob("part-*.parquet")}
    before |= {file: file.stat().st_mtime_ns for file in home.rglob("*.safetensors")}
    assert run(recipe, home) == compared[1]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_another_recipe_in_the_same_folder_is_refused(compared, recipe, tmp_path):
    home = tmp_path / "again"
    shutil.copytree(compared[0], home)
    with pytest.raises(StaleRun, match=r"evaluation\.responses: 2 -> 3"):
        run(recipe, home, **{"evaluation.responses": 3})
    assert content(home) == content(compared[0])


@pytest.mark.long
def test_seeds_a_held_out_oracle_and_a_side_that_the_guard_stops(recipe, tmp_path):
    home = tmp_path / "home"
    found = run(
        recipe,
        home,
        "sppo,wild=sppo",
        seeds=2,
        **{
            "iterations": 2,
            "wild.training.learning_rate": 1.0,
            "guard.on_failure": "stop",
            "sampling.max_new_tokens": 60,
            "evaluation.oracle": {"type": "near_tie", "delta": 0.1, "oracle": {"type": "panel"}},
        },
    )
    calm, wild = found["sides"]
    assert [row["seeds"] for row in calm["iterations"]] == [2, 2]
    assert [row["seeds"] for row in wild["iterations"]] == [2]
    assert wild["iterations"][0]["failed"] == 2
    assert set(found["stopped"]) == {"wild-seed-3", "wild-seed-4"}
    assert "win_rate_vs_base_by_oracle" in calm["iterations"][0]
    assert np.array(found["head_to_head"]["win_rates"])[2, 1] < 0.5
    assert Path(home / "comparison.svg").stat().st_size > 10_000
