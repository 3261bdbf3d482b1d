"""Losses and rewards of algorithms on a few responses, where the values can be written out."""

import numpy as np
import pytest
import torch

from sppo import objectives, recipe
from sppo.algorithms.rlhf import RLHF


def two_responses(log_ratio, base, win_rate=(0.5, 0.5)):
    """Two responses to one prompt: their log-ratios with a gradient, those of the base policy, and their win rates."""
    ratio = torch.tensor(log_ratio, requires_grad=True)
    responses = objectives.Responses(
        log_ratio=ratio,
        opponent=torch.tensor([-3.0, -5.0]),
        win_rate=torch.tensor(win_rate),
        demonstration=torch.zeros(2, dtype=torch.bool),
        references=torch.tensor([base]),
        reward=torch.full((2,), torch.nan),
        prompt=torch.zeros(2, dtype=torch.int64),
        log_partition=torch.zeros(1),
        winner=torch.tensor([0]),
        loser=torch.tensor([1]),
    )
    return ratio, responses


def gradient(algorithm, *values):
    ratio, responses = two_responses(*values)
    loss = recipe.parse_algorithm(algorithm).loss(responses).sum()
    (found,) = torch.autograd.grad(loss, ratio)
    return float(loss.detach()), found.numpy()


def test_at_the_opponent_the_released_reverse_kl_is_a_quarter_of_ours():
    ours = {"type": "rspo", "eta": 2.0, "forward_kl": 0.0, "reverse_kl": 0.4}
    released = {"type": "rspo_released", "eta": 2.0, "reverse_kl": 0.1}
    values = ([0.0, 0.0], [1.5, -2.0], [0.7, 0.4])
    np.testing.assert_allclose(gradient(ours, *values)[1], gradient(released, *values)[1], rtol=1e-6)
    away = ([1.0, -1.0], [1.5, -2.0], [0.7, 0.4])
    assert not np.allclose(gradient(ours, *away)[1], gradient(released, *away)[1], rtol=0.1)


def test_the_released_loss_on_a_pair_by_hand():
    # 1/2 (3^2 + 1^2) + sum of c d^2, c e^min(-d, 2) and c log^2 pi, with d = 2, -3 and log pi = 0, -6
    values = ([3.0, -1.0], [1.0, 2.0])
    for weights, penalty in (
        ({"reverse_kl": 0.1}, 0.1 * (4 + 9)),
        ({"forward_kl": 0.1}, 0.1 * (np.exp(-2) + np.exp(2))),
        ({"chi_squared": 0.1}, 0.1 * (np.exp(2) + np.exp(-3))),
        ({"entropy": 0.1}, 0.1 * (0 + 36)),
    ):
        section = {"type": "rspo_released", "eta": 1.0, "largest_exponent": 2.0, "reverse_kl": 0.0, **weights}
        assert gradient(section, *values)[0] == pytest.approx(5 + penalty, rel=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("ratio", [-95.0, -20.0, 4.9, 20.0, 95.0])
@pytest.mark.parametrize("base", [-95.0, 0.0, 3.0, 95.0])
def test_the_divergences_of_rspo_pull_to_the_base_and_stay_finite(divergence, ratio, base):
    weights = {"forward_kl": 0.0, "reverse_kl": 0.0}
    section = {"type": "rspo", "eta": 1.0, **weights}
    (alone, without), (loss, slope) = (
        gradient(section | more, [ratio, ratio], [base, base]) for more in ({}, {divergence: 1.0})
    )
    assert np.isfinite([alone, loss]).all()
    pull = (slope - without)[0]
    assert np.isfinite(pull)
    assert abs(pull) <= np.exp(5) * max(1.0, abs(ratio - base))
    assert pull * (ratio - base) >= 0  # downhill is towards the base


def test_grpo_steps_by_the_standardised_win_rate_until_the_clip():
    section = {"type": "grpo", "clip": 0.2, "beta": 0.0}
    rates = [0.7, 0.4]  # their mean is 0.55 and their standard deviation 0.15 sqrt 2
    advantage = 0.15 / (0.15 * 2**0.5 + 1e-4)
    loss, slope = gradient(section, [0.0, 0.0], [0.0, 0.0], rates)
    assert loss == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(slope, [-advantage / 2, advantage / 2], rtol=1e-5)
    np.testing.assert_allclose(
        gradient(section, [0.2, -0.3], [0.0, 0.0], rates)[1], 0, atol=1e-7
    )  # beyond 1.2, 0.8
    back = gradient(section, [-0.5, 0.5], [0.0, 0.0], rates)[1]
    np.testing.assert_allclose(back, [-advantage / 2 * np.exp(-0.5), advantage / 2 * np.exp(0.5)], rtol=1e-5)
    level = gradient(section, [0.0, 0.0], [0.0, 0.0], [0.5, 0.5])[1]
    np.testing.assert_allclose(level, 0)
    to_base = gradient(section | {"beta": 0.1}, [0.0, 0.0], [1.0, 95.0], [0.5, 0.5])[1]
    np.testing.assert_allclose(to_base, [0.05 * (1 - np.e), 0.05 * 1], rtol=1e-5)


def test_the_reward_of_rlhf_is_the_score_that_a_transitive_oracle_has():
    score = np.array([0.3, -1.0, 0.9, -0.2])
    matrix = 1 / (1 + np.exp(score[None] - score[:, None]))
    np.testing.assert_allclose(RLHF().rewards(matrix, np.zeros((1, 4))), score, atol=1e-9)
