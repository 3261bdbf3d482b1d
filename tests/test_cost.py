import dataclasses
import json

import numpy as np
import pytest

from sppo import cost, oracle
from sppo.benchmarks.head_to_head.score import across, win_rates_against
from sppo.comparisons import count_pairs, pairs_of_opponents, random_pairs
from sppo.dry_run import estimate, pairs_per_prompt, read_rates, seconds
from sppo.recipe import RecipeError, parse
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import table
from sppo.rundir.tables import PROMPTS

LOAD = cost.Load(
    parameters=1e6,
    prompts=10,
    k=5,
    pairs=10,
    trained=2,
    epochs=3,
    held_out=4,
    responses=2,
    prompt_tokens=20,
    response_tokens=30,
    oracle_parameters=1e5,
    evaluation_parameters=1e5,
)
RATES = {"sample": 1e9, "annotate": 1e9, "select": 2e9, "train": 3e9}


def test_tokens_and_flops_by_hand():
    assert LOAD.tokens() == {
        "sample": 10 * (20 + 5 * 30),
        "annotate": 10 * 20 * (20 + 2 * 30),
        "select": 10 * (20 + 2 * 30),
        "train": 3 * 10 * (20 + 2 * 30),
        "evaluate": 4 * (20 + 2 * 30),
    }
    flops = LOAD.flops()
    assert flops["sample"] == 2e6 * 1700
    assert flops["annotate"] == 2e5 * 16000
    assert flops["train"] == 3 * 3 * flops["select"]


def test_models_that_read_each_response_by_itself():
    load = dataclasses.replace(LOAD, oracle_response_parameters=1e4, evaluation_response_parameters=1e3)
    # 5 responses to 10 prompts; 2 responses of the policy and of each of 2 opponents to 4 prompts
    assert load.flops()["annotate"] == LOAD.flops()["annotate"] + 2e4 * 50 * (20 + 30)
    more = load.seconds(RATES)["evaluate"] - LOAD.seconds(RATES)["evaluate"]
    assert more == pytest.approx(2e3 * 4 * (2 * 2 * 2) * (20 + 30) / 1e9)


def test_an_oracle_that_computes_with_a_policy_of_the_run_is_as_large_as_that():
    gate = {"type": "similarity", "measure": "hidden_states", "oracle": {"type": "panel"}}

    def annotating(oracle, **changes):
        mapping = {"policy": {"model": "tinyworld"}, "prompts": {"train": "tinyworld/train", "held_out": 10}}
        recipe = parse({**mapping, "oracle": oracle, "evaluation": {"oracle": {"type": "panel"}}}, changes)
        return seconds(recipe, estimate(recipe), read_rates("h100", "20,30"))[0]["annotate"]

    assert annotating({"type": "panel"}) == 0 < annotating(gate)
    assert (
        annotating(gate)
        == annotating({**gate, "policy": "base"})
        == annotating({**gate, "policy": "tinyworld"})
    )
    assert annotating(gate, **{"sampling.k": 10}) == pytest.approx(2 * annotating(gate, **{"sampling.k": 5}))


def test_a_policy_as_the_judge_is_counted_with_its_anchors():
    judge = {"type": "policy_judge"}
    mapping = {"policy": {"model": "tinyworld"}, "prompts": {"train": "tinyworld/train", "held_out": 10}}
    fixed = {"evaluation": {"oracle": {"type": "panel"}}, "sampling": {"k": 4}}
    recipe = parse({**mapping, **fixed, "oracle": judge})
    anchors = {"type": "fixed_opponent", "policy": "base", "draw": 2, "weight": 0.5, "oracle": judge}
    anchored = parse({**mapping, **fixed, "oracle": {"type": "near_tie", "oracle": anchors}})
    assert pairs_per_prompt(recipe) == 6
    assert pairs_per_prompt(anchored) == 6 + 4 * 2
    rates = read_rates("h100", "20,30")
    alone, beside = (seconds(of, estimate(of), rates)[0]["annotate"] for of in (recipe, anchored))
    # 12 questions of 80 tokens; 28 of them, and each response once more for the anchors that are drawn
    assert beside / alone == pytest.approx((28 * 80 + 4 * 50) / (12 * 80))


def test_seconds_by_hand_and_devices_divide_them():
    found = LOAD.seconds(RATES)
    assert found["sample"] == pytest.approx(3.4)
    assert found["train"] == pytest.approx(6e6 * 2400 / 3e9)
    # 320 tokens drawn, and again under the base; 2 x 2 pairs of 80 tokens in both orders, for 4 prompts and 2 opponents
    compared = 2e5 * 4 * (2 * 2 * 2) * 2 * 80 / 1e9
    assert found["evaluate"] == pytest.approx(2e6 * 320 / 1e9 + 2e6 * 320 / 2e9 + compared)
    shared = LOAD.seconds(RATES, {"sample": 4, "train": 2})
    assert shared["sample"] == found["sample"] / 4
    assert shared["train"] == found["train"] / 2
    assert shared["select"] == found["select"]


def finished_run(folder):
    """A run whose seconds are those of LOAD at RATES."""
    home = RunFolder(folder).iteration(1)
    stage = RunFolder(folder).stage("prompts", 1, {}, [], folder="prompts")
    rows = [{"prompt_id": str(n), "messages": [], "prompt_token_ids": [1] * 20} for n in range(10)]
    stage.publish(stage.run_shards([[]], lambda number: table(rows, PROMPTS)))
    training = {"epochs": 3.0, "keep_epochs": None, "gradient_checkpointing": False}
    (home / "train.json").write_text(json.dumps({"settings": {"training": training}}))
    (home / "evaluation.json").write_text(json.dumps({"held_out_prompts": 4, "responses_drawn": 8}))
    row = {
        "iteration": 1,
        "sampled": {"responses_drawn": 50, "response_tokens": 30},
        "trained": {"trained_responses": 20},
        "seconds": LOAD.seconds(RATES),
    }
    (folder / "summary.json").write_text(json.dumps({"iterations": [row]}))
    (folder / "recipe.yaml").write_text(
        json.dumps(
            {
                "policy": {"model": "elsewhere", "parameters": 1e6},
                "prompts": {"train": "tinyworld/train"},
                "oracle": {"type": "panel"},
            }
        )
    )
    return folder


def test_a_finished_run_gives_its_rates_back(tmp_path):
    run = finished_run(tmp_path)
    found = cost.rates_of_run(run, 1e6)
    assert {name: found[name] for name in ("sample", "select", "train")} == pytest.approx(
        {name: RATES[name] for name in ("sample", "select", "train")}
    )
    rates = read_rates(str(run), None)
    assert (rates.prompt_tokens, rates.response_tokens) == (20, 30)
    assert read_rates(str(run), "7,9").response_tokens == 9


def test_the_dry_run_estimates_seconds_of_a_recipe(tmp_path):
    recipe = parse(
        {
            "iterations": 1,
            "policy": {"model": "elsewhere", "parameters": 1e6},
            "prompts": {
                "train": {"source": "hub/data", "rows": 10},
                "held_out": {"source": "hub/more", "rows": 4},
            },
            "oracle": {"type": "panel"},
            "training": {"epochs": 3},
            "evaluation": {"responses": 2},
            "workers": {"sample": 2},
        }
    )
    (found,) = seconds(recipe, estimate(recipe), read_rates(str(finished_run(tmp_path)), None))
    assert found["sample"] == pytest.approx(3.4 / 2)
    assert found["train"] == pytest.approx(LOAD.seconds(RATES)["train"])


def test_rates_that_are_none_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="neither a finished run nor one of the GPUs a100, h100, h200"):
        read_rates("z80", None)
    with pytest.raises(RecipeError, match="must be two numbers, PROMPT,RESPONSE"):
        read_rates("h100", "100")
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "policy": {"model": "x", "parameters": 1.0},
                "prompts": {"train": "y"},
                "oracle": {"type": "panel"},
            }
        )
    )
    with pytest.raises(RecipeError, match=r"summary.json cannot be read"):
        read_rates(str(tmp_path), None)


class Counts:
    """An oracle that counts the ordered pairs that it is asked about."""

    asked = 0

    def compare(self, prompts, responses):
        raise AssertionError("only some of the pairs are wanted")

    def compare_pairs(self, prompts, responses, wanted):
        k = wanted.shape[-1]
        self.asked += int((wanted & ~np.eye(k, dtype=bool)).sum())
        return np.full(wanted.shape, 0.5)


@pytest.mark.parametrize(("k", "m"), [(3, 1), (4, 1), (5, 2), (5, 3), (6, 3), (7, 3), (16, 5)])
def test_annotation_is_planned_with_the_pairs_that_are_asked(k, m):
    """The plan's pairs, in both orders, are those that the oracle is asked about in the work."""
    counting = Counts()
    wanted = np.stack(
        [random_pairs(k, pairs_of_opponents(k, m), np.random.default_rng(seed)) for seed in range(4)]
    )
    oracle.CheckedOracle(counting).compare_pairs(["x"] * 4, [["a"] * k] * 4, wanted)
    recipe = parse(
        {
            "policy": {"model": "elsewhere"},
            "prompts": {"train": "hub/data"},
            "sampling": {"k": k},
            "oracle": {"type": "panel", "comparisons": {"type": "random", "opponents": m}},
        }
    )
    assert counting.asked == 4 * 2 * pairs_per_prompt(recipe)


@pytest.mark.parametrize("responses", [1, 2, 4, 7])
def test_the_evaluation_is_planned_with_the_pairs_that_are_asked(responses):
    counting = Counts()
    texts = [["a"] * responses] * 3
    win_rates_against(
        lambda prompts, both: oracle.CheckedOracle(counting).compare_pairs(
            prompts, both, across(3, responses, responses)
        ),
        ["x"] * 3,
        texts,
        texts,
    )
    assert counting.asked == 3 * 2 * count_pairs(across(1, responses, responses)[0]) == 3 * 2 * responses**2
