"""Every algorithm but SPPO in the loop; what each minimises is held to the tables by test_game_networks.py."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_runs
from rich.console import Console
from small_runs import rows

from sppo import selfplay
from sppo.game.dynamics import blackwell
from sppo.game.dynamics.policies import as_policy, normalised
from sppo.progress import Terminal
from sppo.recipe import parse
from sppo.rundir.folder import RunError, RunFolder, StaleRun
from sppo.rundir.shards import write_shard
from sppo.rundir.tables import PreferencesRow, ResponseRecord, ResponsesRow, to_table
from sppo.stages.models import Models
from sppo.stages.select import selections
from sppo.stages.single import run_stage
from sppo.training import examples

PROMPTS = {
    "train": {"source": "tinyworld/train", "limit": 16, "demonstration": "completion"},
    "held_out": {"source": "tinyworld/held-out", "limit": 6},
}
SMALL = small_runs.SMALL | {"prompts": PROMPTS, "sampling": {"k": 3, "max_new_tokens": 32}}
del SMALL["algorithm"]


def play(folder, **changes):
    return small_runs.play(parse(SMALL, changes), folder)


@pytest.fixture(scope="module")
def spin(tmp_path_factory):
    """SPIN without any oracle, to its end."""
    folder = tmp_path_factory.mktemp("runs") / "spin"
    return folder, play(folder, algorithm={"type": "spin", "lam": 1.0}, oracle=None, **{"training.epochs": 3})


def test_spin_learns_from_all_k_and_the_demonstration_and_asks_nobody(spin):
    folder, summary = spin
    home = folder / "iter-1"
    assert not (home / "preferences").exists()
    sampled = {row["prompt_id"]: row for row in rows(home / "responses")}
    for row in rows(home / "training"):
        *drawn, given = row["responses"]
        assert [response["k"] for response in drawn] == [0, 1, 2]
        assert given["k"] is None
        assert given["token_ids"] == sampled[row["prompt_id"]]["demonstration"]["token_ids"]
        assert {response["win_rate"] for response in row["responses"]} == {None}
        assert all(np.isfinite(response["opponent_log_prob"]) for response in row["responses"])
    for row in summary["iterations"]:
        assert "win_rate_vs_base" not in row
        assert np.isfinite(row["kl_to_base"])
        assert row["trained"] == {"prompts": 8, "trained_prompts": 8, "trained_responses": 32}
        assert row["alarms"] == []


def test_spin_raises_the_demonstrations_above_what_it_draws(spin):
    lines = [
        line for line in RunFolder(spin[0]).read_metrics(1) if line["stage"] == "train" and "step" in line
    ]
    assert lines[0]["log_ratio_winners"] == lines[0]["log_ratio_losers"] == 0
    assert lines[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert lines[-1]["loss"] < np.log(2)
    assert lines[-1]["log_ratio_winners"] > lines[-1]["log_ratio_losers"]
    assert "win_rate_winners" not in lines[0]
    assert "target_winners" not in lines[0]


def test_what_an_algorithm_has_no_use_for_has_no_stage(spin):
    recipe = parse(SMALL, {"algorithm": {"type": "spin", "lam": 1.0}, "oracle": None, "training.epochs": 3})
    with (
        open(os.devnull, "w") as nowhere,
        pytest.raises(
            RunError, match="spin needs no annotate stage, so there is nothing to make; run the others"
        ),
    ):
        run_stage(recipe, RunFolder(spin[0]), Terminal(Console(file=nowhere)), "annotate", 1)


def test_fine_tuning_draws_nothing_to_learn_from_and_is_judged_by_the_oracle_there_is(tmp_path):
    summary = play(tmp_path / "run", algorithm={"type": "sft"}, iterations=1)
    home = tmp_path / "run" / "iter-1"
    assert not (home / "responses").exists()
    assert not (home / "preferences").exists()
    assert [len(row["responses"]) for row in rows(home / "training")] == [1] * 16
    (row,) = summary["iterations"]
    assert 0 < row["win_rate_vs_base"]["mean"] < 1
    assert "sampled" not in row
    lines = [
        line
        for line in RunFolder(tmp_path / "run").read_metrics(1)
        if line["stage"] == "train" and "step" in line
    ]
    assert lines[0]["loss"] == pytest.approx(-lines[0]["log_prob_winners"], rel=1e-4)
    assert lines[-1]["log_ratio_winners"] > 0


# Past policies


@pytest.fixture(scope="module")
def mnpo(tmp_path_factory):
    """MNPO over two iterations: in the second the base, pi_2 and the base again stand in the loss."""
    folder = tmp_path_factory.mktemp("runs") / "mnpo"
    return folder, play(folder, algorithm={"type": "mnpo", "eta": 10.0, "tau": 0.03})


def test_reference_policies_are_scored_by_the_trainers_code_and_kept_with_their_fingerprints(mnpo):
    folder, _ = mnpo
    models = Models(parse(SMALL))
    first, second = rows(folder / "iter-1" / "training"), rows(folder / "iter-2" / "training")
    base = first[0]["opponent"]
    for row in first:
        assert row["reference_policies"] == [base, base]
        for response in row["responses"]:
            assert response["reference_log_probs"] == [response["opponent_log_prob"]] * 2
            assert response["reward"] is None
    assert second[0]["opponent"] != base
    by_base = [
        values
        for start in (0, 4)
        for values in models.scorer(None)(
            [row["prompt_token_ids"] for row in second[start : start + 4]],
            [[one["token_ids"] for one in row["responses"]] for row in second[start : start + 4]],
        )
    ]
    for row, expected in zip(second, by_base, strict=True):
        assert row["reference_policies"] == [base, row["opponent"], base]
        for response, value in zip(row["responses"], expected, strict=True):
            assert response["reference_log_probs"] == [value, response["opponent_log_prob"], value]
            assert response["opponent_log_prob"] != value


def test_a_shard_of_reference_policies_that_is_lost_is_made_again(mnpo, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(mnpo[0], folder)
    shard = folder / "iter-2" / "training" / "part-00001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    assert play(folder, algorithm={"type": "mnpo", "eta": 10.0, "tau": 0.03})["iterations"]
    assert shard.read_bytes() == before


def test_another_choice_of_reference_policies_makes_the_stage_stale(mnpo):
    recipe = parse(SMALL, {"algorithm": {"type": "mnpo", "eta": 10.0, "tau": 0.03, "opponents": 1}})
    with open(os.devnull, "w") as nowhere, pytest.raises(StaleRun, match=r"algorithm\.opponents: 2 -> 1"):
        selfplay.run(recipe, RunFolder(mnpo[0]), Terminal(Console(file=nowhere)))


@pytest.mark.parametrize("reference_policies", [[], ["x"], ["x", "y", "z"]])
def test_training_refuses_shards_of_other_reference_policies(mnpo, reference_policies):
    shards = sorted((mnpo[0] / "iter-2" / "training").glob("part-*.parquet"))
    table = examples.read(shards)
    with pytest.raises(examples.TrainingError, match="run the select stage again"):
        examples.check(
            table, opponent=table["opponent"][0].as_py(), reference_policies=reference_policies, context=512
        )


def test_as_few_models_are_loaded_as_can_be(monkeypatch):
    models = Models(parse(SMALL))
    loaded = []
    monkeypatch.setattr(models, "_load_scorer", lambda policy: loaded.append(policy) or (lambda rows: []))
    other = Path("other")
    for _ in range(3):  # shards
        for policy in models.in_loading_order([other, None, other]):
            models.scorer(policy)
    assert loaded == [other, models.base, other, models.base][: len(loaded)]
    assert len(loaded) == 4


def test_rlhf_keeps_a_reward_for_every_response(tmp_path):
    summary = play(tmp_path / "run", algorithm={"type": "rlhf"}, selection="all", iterations=1)
    home = tmp_path / "run" / "iter-1"
    matrices = {row["prompt_id"]: np.array(row["matrix"]) for row in rows(home / "preferences")}
    for row in rows(home / "training"):
        rewards = np.array([response["reward"] for response in row["responses"]])
        model = 1 / (1 + np.exp(rewards[None] - rewards[:, None]))
        # where the fit is best, every response has under the model the win rate that it has in the game
        np.testing.assert_allclose(
            model.mean(1), matrices[row["prompt_id"]].clip(1e-3, 1 - 1e-3).mean(1), atol=1e-8
        )
    assert summary["iterations"][0]["win_rate_vs_base"]["mean"] > 0


def test_blackwell_keeps_the_win_rates_against_the_worst_mixture_of_the_panels_members(tmp_path):
    changes = {
        "algorithm": {"type": "blackwell", "eta": 10.0},
        "selection": "all",
        "oracle": {"type": "panel", "weights": [1, 0, 2]},
    }
    with open(os.devnull, "w") as nowhere:
        for stage in ("sample", "annotate", "select"):
            terminal = Terminal(Console(file=nowhere))
            run_stage(parse(SMALL, changes), RunFolder(tmp_path / "run"), terminal, stage, 1)
    home = tmp_path / "run" / "iter-1"
    compared = {row["prompt_id"]: row for row in rows(home / "preferences")}
    for row in rows(home / "training"):
        parts = {
            part["oracle"]: np.array(part["matrix"]) for part in compared[row["prompt_id"]]["components"]
        }
        voiced = np.stack([parts["scholar"], parts["host"]])  # the editor has no weight and no say
        uniform = as_policy(np.full(3, 1 / 3))
        step = blackwell.update(uniform, voiced, eta=10.0)
        rewards = np.array([response["reward"] for response in row["responses"]])
        np.testing.assert_allclose(normalised(10 * rewards).probability, step.probability, atol=1e-8)


def test_a_pessimistic_panel_trains_on_win_rates_that_its_members_agree_on(tmp_path):
    panel = {"type": "panel", "weights": [1, 0, 3], "ensemble": "pessimistic", "spread": 0.2}
    with open(os.devnull, "w") as nowhere:
        for stage in ("sample", "annotate", "select"):
            terminal = Terminal(Console(file=nowhere))
            run_stage(parse(SMALL, {"oracle": panel}), RunFolder(tmp_path / "run"), terminal, stage, 1)
    home = tmp_path / "run" / "iter-1"
    compared = {row["prompt_id"]: row for row in rows(home / "preferences")}
    lower = 0.0
    for row in rows(home / "training"):
        parts = {
            part["oracle"]: np.array(part["matrix"]) for part in compared[row["prompt_id"]]["components"]
        }
        scholar, host = parts["scholar"].mean(1), parts["host"].mean(1)
        expected = -0.2 * np.log(np.exp(-scholar / 0.2) / 4 + 3 * np.exp(-host / 0.2) / 4)
        for response in row["responses"]:
            assert response["win_rate"] == pytest.approx(expected[response["k"]], abs=1e-9)
        lower += (np.array(compared[row["prompt_id"]]["matrix"]).mean(1) - expected).sum()
    assert lower > 0.1


def test_an_algorithm_that_needs_all_pairs_leaves_out_responses_with_a_gap(tmp_path):
    recipe = parse(SMALL, {"algorithm": {"type": "nash_md"}, "selection": "all", "iterations": 1})
    prompts = [
        ResponsesRow(
            "x",
            [],
            [1],
            None,
            [ResponseRecord([5 + k, 2], str(k), "stop", -1.0, [-0.5] * 2) for k in range(4)],
        )
    ]
    matrix = np.full((4, 4), 0.5)
    matrix[0, 3] = matrix[3, 0] = np.nan
    for name, table in (
        ("responses", to_table(prompts, ResponsesRow)),
        ("preferences", to_table([PreferencesRow("x", matrix, {})], PreferencesRow)),
    ):
        write_shard(tmp_path / name, table, {})
    models = Models(recipe)
    sources = [tmp_path / "responses", tmp_path / "preferences"]
    (selected,) = selections(models, recipe.algorithm, *sources)
    assert [candidate.k for candidate in selected.candidates] == [1, 2]
    assert np.isfinite(selected.matrix).all()
