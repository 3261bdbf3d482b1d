import pytest

from sppo.recipe import Guard
from sppo.rundir.guard import BETTER, UNDECIDED, WORSE, alarms, said_once, standing, warnings

BASE = {"response_tokens": 100.0, "repetition": 0.05, "truncated_share": 0.1}
GOOD = {
    "win_rate_vs_previous": {"mean": 0.55, "low": 0.52, "high": 0.58},
    "response_tokens": 110.0,
    "repetition": 0.06,
    "truncated_share": 0.15,
    "kl_to_base": 1.0,
}


def score(low, high):
    """A watched task's score, with the interval of its change from the base's."""
    return {"mean": 0.4, "items": 100, "change": {"mean": -0.03, "low": low, "high": high}}


def test_a_sound_iteration_raises_no_alarm():
    assert alarms(GOOD, BASE, Guard()) == []
    assert (
        alarms({**GOOD, "tasks": {"mmlu": score(-0.06, 0.0), "arc": score(0.01, 0.02)}}, BASE, Guard()) == []
    )
    for deviation in (None, {"mean_per_token": 0.01, "responses": 12}):
        assert alarms({**GOOD, "sampler_deviation": deviation}, BASE, Guard()) == []


@pytest.mark.parametrize(
    ("changes", "limits", "said"),
    [
        ({"win_rate_vs_previous": {"mean": 0.4, "low": 0.37, "high": 0.43}}, {}, "loses to its predecessor"),
        ({"response_tokens": 20.0}, {}, "0.20 times the base's 100.0"),
        ({"response_tokens": 500.0}, {}, "5.00 times"),
        ({"repetition": 0.5}, {}, "repeats itself: 0.50"),
        ({"kl_to_base": 30.0}, {"max_kl": 20.0}, "KL to the base is 30.0 nats a response; 20.0 are allowed"),
        ({"kl_to_base": float("nan")}, {}, "KL to the base is nan"),
        ({"kl_to_base": 188.0}, {}, "188.0 nats a response; 110.0 are allowed"),
        (
            {"truncated_share": 1.0},
            {},
            "does not end: 100% of its responses are truncated at the limit, the base's 10%",
        ),
        (
            {"trained": {"prompts": 32, "trained_prompts": 15}},
            {},
            "it is trained on 15 of 32 prompts (47%): all responses to the others were truncated",
        ),
        (
            {"trained": {"prompts": 32, "trained_prompts": 24}},
            {"min_trained_share": 0.8},
            "at least 80% is demanded",
        ),
        (
            {"sampler_deviation": {"mean_per_token": 1.36, "responses": 12}},
            {},
            "deviate from the trainer's by 1.360 nats per token in the mean of 12 responses; 0.05 is allowed",
        ),
        (
            {"sampler_deviation": {"mean_per_token": float("nan"), "responses": 12}},
            {},
            "rounds it more coarsely (sampling.dtype)",
        ),
        (
            {"tasks": {"mmlu": score(-0.06, -0.01), "arc": score(-0.06, 0.0)}},
            {},
            "it has lost what it knew: on mmlu its score is 0.400, which is -0.030 [-0.060, -0.010] from the base's on the same"
            " 100 items; a fall of 0 is allowed",
        ),
        (
            {"tasks": {"mmlu": score(-0.06, -0.03), "arc": score(-0.06, -0.01)}},
            {"max_task_fall": 0.02},
            "on mmlu its score is 0.400",
        ),
    ],
)
def test_each_failure_is_named(changes, limits, said):
    (found,) = alarms({**GOOD, **changes}, BASE, Guard(**limits))
    assert said in found


def test_a_loss_within_the_interval_is_no_failure():
    close = {"win_rate_vs_previous": {"mean": 0.48, "low": 0.45, "high": 0.51}}
    assert alarms({**GOOD, **close}, BASE, Guard()) == []


def test_a_sound_iteration_raises_no_warning():
    assert warnings({**GOOD, "trained": {"prompts": 20, "trained_prompts": 18}}, BASE, steps=3) == []


@pytest.mark.parametrize(
    ("changes", "previous", "steps", "said"),
    [
        ({"trained": {"prompts": 20, "trained_prompts": 17}}, BASE, 9, "trained on 17 of 20 prompts (85%)"),
        ({}, BASE, 1, "only 1 optimiser step; lower"),
        ({}, BASE, 2, "only 2 optimiser steps; lower training.batch_prompts"),
        (
            {"kl_to_base": 0.004, "win_rate_vs_previous": {"mean": 0.5, "low": 0.45, "high": 0.55}},
            BASE,
            9,
            "hardly changed: the KL to the base has moved by 0.0040 nats",
        ),
        (
            {"kl_to_base": 2.004, "win_rate_vs_previous": None},
            {**GOOD, "kl_to_base": 2.0},
            9,
            "hardly changed: the KL to the base has moved by 0.0040 nats",
        ),
        (
            {"win_rate_vs_previous": {"mean": 0.52, "low": 0.48, "high": 0.56}},
            BASE,
            9,
            "not measurably different from the policy before: the interval of the win rate against it contains 1/2",
        ),
    ],
)
def test_what_an_iteration_hardly_learnt_from_is_said(changes, previous, steps, said):
    (found,) = warnings({**GOOD, **changes}, previous, steps)
    assert said in found


def test_what_several_iterations_share_is_said_once():
    said = [(0, "a"), (1, "b"), (2, "b"), (1, "c"), (3, "b")]
    assert said_once(said) == ["base: a", "iterations 1, 2 and 3: b", "iteration 1: c"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.51, 0.6, BETTER), (0.4, 0.49, WORSE), (0.4, 0.6, UNDECIDED), (0.5, 0.6, UNDECIDED)],
)
def test_the_standing_of_a_policy_follows_the_interval(low, high, said):
    assert standing({"mean": 0.5, "low": low, "high": high}) == said


@pytest.mark.parametrize(
    ("causes", "said"),
    [
        (
            None,
            "all responses to the others were truncated at the length limit or left out by the oracle. Raise",
        ),
        ({"truncated": 3}, "all responses to 3 prompts were truncated at the length limit. Raise sampling"),
        ({"left_out": 1}, "the oracle has left out all responses to 1 prompt. What the oracle counted"),
        (
            {"truncated": 2, "left_out": 1},
            "the oracle has left out all responses to 1 prompt, and all responses to 2 prompts were truncated at the"
            " length limit. Raise sampling.max_new_tokens or training.max_tokens, or set training.truncated_responses:"
            " train. What the oracle counted",
        ),
        (
            {"truncated_or_left_out": 3},
            "each response to 3 prompts was truncated or left out by the oracle. Raise",
        ),
        ({"demonstration": 3}, "the demonstration of 3 prompts is longer than training.max_tokens. Raise"),
    ],
)
def test_prompts_that_are_not_trained_on_are_said_with_their_causes(causes, said):
    trained = {"prompts": 6, "trained_prompts": 3} | ({} if causes is None else {"untrained": causes})
    (warning,) = warnings({**GOOD, "trained": trained}, BASE, steps=3)
    assert warning.startswith(f"it is trained on 3 of 6 prompts (50%): {said}")
    assert ("Raise" in warning) == (causes != {"left_out": 1})
