import math

import pytest

from sppo.rundir.shards import table
from sppo.rundir.tables import TRAINING, SelectedResponse, TrainingRow
from sppo.training.examples import TrainingError, check
from sppo.training.opponent import CHECKED, deviation
from sppo.training.opponent import log_probs as opponent_log_probs


def training_row(number=0, *, prompt=(5, 6), opponent="pi_1", log_partition=0.5, **response):
    values = {"k": 1, "token_ids": [1, 2, 3], "win_rate": 0.5, "opponent_log_prob": -2.0} | response
    return {
        "prompt_id": f"p{number}",
        "prompt_token_ids": list(prompt),
        "opponent": opponent,
        "log_partition": log_partition,
        "responses": [{"k": 0, "token_ids": [9], "win_rate": 0.5, "opponent_log_prob": -1.0}, values],
    }


def checked(*rows, context=16):
    check(table(list(rows), TRAINING), opponent="pi_1", context=context)


def test_examples_within_the_rules_pass():
    checked(training_row(win_rate=0.0), training_row(1, win_rate=1.0, opponent_log_prob=0.0))
    checked(training_row(), context=5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_ids": []}, "prompt 'p1': response 1 has no tokens"),
        ({"prompt": ()}, "prompt 'p1': response 0 belongs to a prompt without tokens"),
        (
            {"token_ids": list(range(15))},
            "prompt 'p1': response 1 and its prompt have more tokens than .* of 16;",
        ),
        ({"win_rate": 1.01}, r"response 1 has a win rate outside \[0, 1\] \(win rate 1.01"),
        ({"win_rate": -0.1}, r"response 1 has a win rate outside \[0, 1\]"),
        ({"win_rate": math.nan}, r"response 1 has a win rate outside \[0, 1\]"),
        (
            {"opponent_log_prob": -math.inf},
            "response 1 has an invalid opponent log-probability: it must be finite and at most 0",
        ),
        (
            {"opponent_log_prob": math.nan},
            "response 1 has an invalid opponent log-probability: it must be finite and at most 0",
        ),
        (
            {"opponent_log_prob": 3.0},
            "response 1 has an invalid opponent log-probability: it must be finite and at most 0",
        ),
        (
            {"opponent_log_prob": None},
            "response 1 has an invalid opponent log-probability: it must be finite and at most 0",
        ),
        ({"log_partition": math.inf}, "has a log-partition that is not finite"),
        ({"opponent": "pi_2"}, "log-probabilities are of the policy pi_2, but training starts from pi_1"),
        ({"opponent": None}, "log-probabilities are of the policy None, but training starts from pi_1"),
    ],
)
def test_examples_that_cannot_be_trained_on_are_named(wrong, message):
    with pytest.raises(TrainingError, match=message):
        checked(training_row(0), training_row(1, **wrong), training_row(2))


def test_no_examples_at_all_are_refused():
    with pytest.raises(TrainingError, match="no prompt has a response"):
        check(table([], TRAINING), opponent="pi_1", context=16)


def sampled(count, shortened):
    """The sampler's value of one response to each of so many prompts; None where the response was shortened."""
    return [[None if number in shortened else -1.0] for number in range(count)]


def rows_of(log_probs):
    """Training rows of responses of two tokens each."""
    return [
        TrainingRow(
            f"p{number}",
            [5],
            "pi_1",
            [],
            0.0,
            [SelectedResponse(0, [1, 2], 0.5, one.value, [], None, one.deviation) for one in responses],
        )
        for number, responses in enumerate(log_probs)
    ]


def test_the_trainers_values_are_taken_and_the_samplers_deviation_is_kept():
    found = opponent_log_probs(sampled(3, {1}), lambda needed: [[-1.5]] * len(needed), "trainer")
    assert [one.value for (one,) in found] == [-1.5] * 3
    assert [one.deviation for (one,) in found] == [-0.5, None, -0.5]


def test_the_samplers_values_are_taken_where_they_hold_and_some_are_checked():
    asked = []

    def score(needed):
        asked.extend(needed)
        return [[-1.5]] * len(needed)

    found = opponent_log_probs(sampled(CHECKED + 4, {CHECKED + 2}), score, "sampler")
    assert [one.value for (one,) in found] == [-1.0] * (CHECKED + 2) + [-1.5, -1.0]
    assert asked == [*range(CHECKED), CHECKED + 2]
    assert deviation(rows_of(found)) == {
        "responses": CHECKED,
        "mean_per_token": 0.25,
        "max_per_token": 0.25,
        "max": 0.5,
    }


def test_nothing_computed_both_ways_has_no_deviation():
    found = opponent_log_probs(sampled(2, {0, 1}), lambda needed: [[-1.5]] * len(needed), "sampler")
    assert deviation(rows_of(found)) is None


def test_a_run_can_take_the_samplers_log_probabilities(tmp_path):
    import os

    import pyarrow.parquet as pq
    from rich.console import Console

    from sppo import selfplay
    from sppo.progress import Terminal
    from sppo.recipe import parse
    from sppo.rundir.folder import RunFolder

    recipe = parse(
        {
            "cpu_threads": 1,
            "iterations": 1,
            "policy": {"model": "tinyworld"},
            "prompts": {
                "train": {"source": "tinyworld/train", "limit": 20},
                "held_out": {"source": "tinyworld/held-out", "limit": 4},
            },
            "sampling": {"k": 2, "max_new_tokens": 30},
            "oracle": {"type": "panel"},
            "training": {
                "learning_rate": 1e-5,
                "batch_prompts": 10,
                "opponent_log_probs": "sampler",
                "truncated_responses": "train",
            },
            "evaluation": {"responses": 1, "resamples": 100},
            "guard": {"on_failure": "keep"},
        }
    )
    with open(os.devnull, "w") as nowhere:
        summary = selfplay.run(recipe, RunFolder(tmp_path), Terminal(Console(file=nowhere)))
    home = tmp_path / "iter-1"
    drawn = {
        row["prompt_id"]: row["responses"]
        for path in home.glob("responses/part-*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    for path in home.glob("training/part-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            for response in row["responses"]:
                assert response["opponent_log_prob"] == drawn[row["prompt_id"]][response["k"]]["log_prob"]
    said = summary["iterations"][0]["sampler_deviation"]
    assert said["responses"] == 2 * CHECKED
    # the sampler's own loop in fp32 rounds like the trainer
    assert 0 < said["max_per_token"] < 1e-4
