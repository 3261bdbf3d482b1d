"""Runs other than the usual one: failed iterations, other algorithms and selections, other models and prompts."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import SHORTEST_ORACLE, play, play_aloud, rows, small

from sppo import selfplay
from sppo.executors.local import Local
from sppo.oracle import OracleError
from sppo.policy.chat_format import ChatError
from sppo.progress import Terminal
from sppo.recipe import parse
from sppo.rundir.folder import RunFolder, StaleRun
from sppo.stages.run import Run

DOCS = Path(__file__).resolve().parents[1] / "docs"

# The guard

COLLAPSE = {"training.learning_rate": 3e-2, "training.epochs": 4, "algorithm.eta": 1000}


def test_a_failed_iteration_stops_the_run_loudly(tmp_path):
    with pytest.raises(selfplay.GuardStop, match=r"stopped after iteration 1: .*guard.on_failure=keep"):
        play(small(**COLLAPSE, **{"guard.on_failure": "stop"}), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["iterations"]) == 1
    assert summary["iterations"][0]["alarms"]
    assert not (tmp_path / "run" / "iter-2" / "responses").exists()
    # the recipe's other choices go on from there
    play(small(**COLLAPSE, **{"guard.on_failure": "keep"}), tmp_path / "run")
    assert (tmp_path / "run" / "iter-2" / "policy").is_dir()


@pytest.mark.slow
def test_a_run_falls_back_to_the_previous_policy(tmp_path):
    summary = play(small(**COLLAPSE, **{"guard.on_failure": "fall_back"}), tmp_path / "run")
    assert [bool(row["alarms"]) for row in summary["iterations"]] == [True, True]
    assert summary["policy"] == summary["base"]["policy"]
    # iteration 2 was sampled from the base policy again: short texts of tinyworld, not the collapsed ones
    second = json.loads((tmp_path / "run" / "iter-2" / "sample.json").read_text())
    base = json.loads((tmp_path / "run" / "iter-0" / "evaluation.json").read_text())
    assert second["repetition"] == pytest.approx(base["repetition"], abs=0.15)


# Other oracles, rules and prompts


@pytest.mark.slow
def test_all_and_random_selection_with_an_exact_partition(tmp_path):
    recipe = small(**{"iterations": 1, "selection": "all", "algorithm.log_partition": "samples"})
    play(recipe, tmp_path / "all")
    for row in rows(tmp_path / "all" / "iter-1" / "training"):
        assert [response["k"] for response in row["responses"]] == [0, 1, 2]
        rates = np.array([response["win_rate"] for response in row["responses"]])
        assert row["log_partition"] == pytest.approx(np.log(np.mean(np.exp(10 * rates))))
    play(small(**{"iterations": 1, "selection": "best_worst_random", "sampling.k": 4}), tmp_path / "random")
    assert {len(row["responses"]) for row in rows(tmp_path / "random" / "iter-1" / "training")} == {3}


@pytest.mark.parametrize("algorithm", [{"type": "dpo", "beta": 0.5}, {"type": "ipo", "tau": 0.05}])
def test_another_algorithm_is_one_changed_line(tmp_path, algorithm):
    summary = play(small(iterations=1, algorithm=algorithm), tmp_path)
    assert summary["iterations"][0]["win_rate_vs_base"]["mean"] > 0
    first, *_, last = trained(tmp_path)
    assert first["log_ratio_winners"] == first["log_ratio_losers"] == 0
    assert last["log_ratio_winners"] > last["log_ratio_losers"]
    assert first["loss"] == pytest.approx({"dpo": math.log(2), "ipo": 100}[algorithm["type"]])


def trained(run):
    lines = [json.loads(line) for line in (run / "iter-1" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "log_ratio_winners" in line]


def test_truncated_responses_are_scored_but_not_trained_on(tmp_path):
    recipe = small(
        **{"iterations": 1, "training.truncated_responses": "score_only", "sampling.max_new_tokens": 25}
    )
    summary = play(recipe, tmp_path / "truncated")
    home = tmp_path / "truncated" / "iter-1"
    finish = {
        row["prompt_id"]: [r["finish_reason"] for r in row["responses"]] for row in rows(home / "responses")
    }
    reasons = [reason for of_prompt in finish.values() for reason in of_prompt]
    assert 0 < reasons.count("length") < len(reasons)
    for row in rows(home / "training"):
        ended = [k for k, reason in enumerate(finish[row["prompt_id"]]) if reason == "stop"]
        assert {response["k"] for response in row["responses"]} <= set(ended)
        assert len(row["responses"]) == min(2, len(ended))
    assert summary["iterations"][0]["sampled"]["truncated_share"] == pytest.approx(
        reasons.count("length") / len(reasons)
    )


ORACLES = """
import re
from pathlib import Path

import numpy as np

def half(prompts, responses):
    return np.full((len(prompts), len(responses[0]), len(responses[0])), 0.5)

def one_matrix_too_few(prompts, responses):
    return half(prompts, responses)[1:]

def absent(prompts, responses):
    raise RuntimeError("no judge today")
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"oracle": "one_matrix_too_few"},
            r"^oracle: a trial before the run.*shape \[1, 3, 3\] instead of \[2, 3, 3\]",
        ),
        ({"oracle": "half", "evaluation.oracle": "absent"}, r"^evaluation.oracle: a trial.*no judge today"),
    ],
)
def test_a_wrong_oracle_is_found_before_anything_is_sampled(tmp_path, monkeypatch, changes, said):
    (tmp_path / "trial_oracles.py").write_text(ORACLES)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {
        key: {"type": "function", "function": f"trial_oracles:{function}"}
        for key, function in changes.items()
    }
    with pytest.raises(OracleError, match=said):
        play(small(**changes), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_prompts_that_are_not_trained_on_are_said_loudly(tmp_path):
    """In the terminal when they are selected, in the table, in summary.json, and as an alarm from a share on."""
    recipe = small(
        **{
            "iterations": 1,
            "training.truncated_responses": "score_only",
            "sampling.max_new_tokens": 20,
            "guard.min_trained_share": 0.99,
        }
    )
    summary, said = play_aloud(recipe, tmp_path / "run")
    (row,) = summary["iterations"]
    prompts, trained = row["trained"]["prompts"], row["trained"]["trained_prompts"]
    assert 0 < trained < 0.9 * prompts
    warning = f"WARNING: iteration 1: it is trained on {trained} of {prompts} prompts"
    assert said.index(warning) < said.index("iteration 1: train:"), "before the training"
    assert f"  trained on {trained} of {prompts} prompts" in said
    assert any("trained on" in text for text in row["warnings"])
    assert "at least 99% is demanded (guard.min_trained_share)" in row["alarms"][-1]
    assert "WARNING: iteration 1 has failed" in said


def test_an_iteration_without_effect_is_said_loudly(tmp_path):
    recipe = small(
        **{
            "iterations": 1,
            "training.learning_rate": 1e-12,
            "training.batch_prompts": 64,
            "training.epochs": 2,
        }
    )
    summary, said = play_aloud(recipe, tmp_path / "run")
    few, unchanged = summary["iterations"][0]["warnings"]
    assert few.startswith("only 2 optimiser steps; ")
    assert "its policy has hardly changed" in unchanged
    assert f"WARNING: iteration 1: {few}" in said
    assert f"WARNING: iteration 1: {unchanged}" in said


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"])
def test_every_family_plays_an_iteration_on_conversations(tiny_model, tmp_path, family, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"shortest_{family.replace('-', '_')}.py").write_text(SHORTEST_ORACLE.replace("PAUSE", "0"))
    system = [{"role": "system", "content": "Answer briefly."}]
    turns = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital is Paris."},
    ]
    with open("prompts.jsonl", "w") as file:
        for number in range(8):
            asked = [{"role": "user", "content": f"And what is {number} and {number}?"}]
            head = [[], system, turns, system + turns][number % 4]
            file.write(json.dumps({"messages": head + asked}) + "\n")
    recipe = parse(
        {
            "iterations": 1,
            "policy": {"model": str(tiny_model(family))},
            "prompts": {
                "train": "prompts.jsonl",
                "held_out": 3,
                "system": "merge" if family in ("mistral", "gemma-2") else "template",
            },
            "sampling": {"k": 2, "max_new_tokens": 12},
            "oracle": {"type": "function", "function": f"shortest_{family.replace('-', '_')}:prefer"},
            "training": {"learning_rate": 1e-3, "batch_prompts": 2, "truncated_responses": "train"},
            "evaluation": {"responses": 1},
            "guard": {"on_failure": "keep"},
        }
    )
    play(recipe, tmp_path / "run")
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "iter-1" / "metrics.jsonl").read_text().splitlines()
    ]
    first = next(record for record in metrics if "log_ratio_winners" in record)
    assert first["log_ratio_winners"] == pytest.approx(0, abs=1e-3)
    assert first["log_ratio_losers"] == pytest.approx(0, abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tracker's own dependencies
def test_a_tracker_of_transformers_sees_the_training(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(small(report_to="tensorboard"), tmp_path / "run")
    for number in (1, 2):
        events = EventAccumulator(str(tmp_path / "run" / f"iter-{number}" / "trackers")).Reload()
        assert len(events.Scalars("train/log_ratio_winners")) == 3
        described = set(re.findall(r"`(train/\w+)`", (DOCS / "trl.md").read_text()))
        assert set(events.Tags()["scalars"]) == described - {"train/mfu"}


def test_a_chat_template_of_the_recipe_goes_with_the_policy(tmp_path):
    from transformers import AutoTokenizer

    from sppo.tinyworld import POLICY

    template = tmp_path / "other.jinja"
    template.write_text((POLICY / "chat_template.jinja").read_text() + "{# another #}")
    play(small(**{"iterations": 1, "policy.chat_template": str(template)}), tmp_path / "run")
    found = AutoTokenizer.from_pretrained(tmp_path / "run" / "iter-1" / "policy").chat_template
    assert found == template.read_text()


def test_steps_that_would_all_have_a_learning_rate_of_zero_are_refused(tmp_path):
    recipe = small(**{"training.batch_prompts": 64, "training.epochs": 18, "training.keep_epochs": 1})
    with pytest.raises(ValueError, match="all of its 1 steps have a learning rate of 0"):
        play(recipe, tmp_path / "run")


def test_noise_is_a_collapse(tmp_path):
    """Responses without repetition, of fair length, that a panel may even like by chance."""
    changes = {"training.learning_rate": 1.0, "guard.on_failure": "stop", "sampling.max_new_tokens": 60}
    with pytest.raises(selfplay.GuardStop, match=r"KL to the base|does not end"):
        play(small(**changes), tmp_path / "run")


def test_a_changed_folder_of_prompts_is_noticed(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    lines = [
        json.dumps({"prompt": f"Describe a {name}."}) for name in ("fox", "drum", "tram", "hat", "owl", "cat")
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    recipe = small(**{"iterations": 1, "prompts.train": str(folder), "prompts.held_out": 2})
    play(recipe, tmp_path / "run")
    (folder / "a.jsonl").write_text("\n".join(lines).replace("fox", "dog"))
    with pytest.raises(StaleRun, match="the files that it names"):
        play(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 5000}, r"5000, but 'tinyworld' takes \d+ tokens in all"),
        (
            {"engine": "vllm", "engine_args": {"max_model_len": 40}, "max_new_tokens": 40},
            "40, but sampling.engine_args.max_model_len takes 40 tokens in all",
        ),
    ],
)
def test_responses_that_leave_no_room_for_a_prompt_are_refused(tmp_path, changes, said):
    recipe = small(sampling=changes)
    with pytest.raises(ChatError, match=f"sampling.max_new_tokens: {said}"):
        _ = Run(recipe, RunFolder(tmp_path), Terminal(), Local(recipe)).prompt_limit


def test_a_prompt_has_the_room_that_the_engine_leaves(tmp_path):
    of = {"engine": "vllm", "engine_args": {"max_model_len": 100}, "max_new_tokens": 40}
    recipe = small(sampling=of)
    assert Run(recipe, RunFolder(tmp_path), Terminal(), Local(recipe)).prompt_limit == 60
