import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppo.winrates import ensemble_win_rates, win_rates

CIRCLE = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
RANKED = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])


def _preferences(seed: int, k: int) -> np.ndarray:
    above = np.triu(np.random.default_rng(seed).random((k, k)), 1)
    return above + np.tril(1 - above.T, -1) + np.eye(k) / 2


def test_a_win_rate_is_the_mean_over_the_k_with_oneself_as_a_half():
    # (1/2 + 0.9 + 0.2) / 3, (0.1 + 1/2 + 0.7) / 3, (0.8 + 0.3 + 1/2) / 3
    np.testing.assert_allclose(win_rates(CIRCLE), [1.6 / 3, 1.3 / 3, 1.6 / 3])


def test_the_best_possible_and_the_worst():
    certain = np.array([[0.5, 1, 1, 1], [0, 0.5, 1, 1], [0, 0, 0.5, 1], [0, 0, 0, 0.5]])
    np.testing.assert_allclose(win_rates(certain), [7 / 8, 5 / 8, 3 / 8, 1 / 8])


@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
def test_over_the_k_they_average_to_a_half(seed, k):
    found = win_rates(_preferences(seed, k))
    assert found.mean() == pytest.approx(0.5)
    assert found.min() >= 1 / (2 * k) - 1e-12
    assert found.max() <= 1 - 1 / (2 * k) + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(3, 6))
def test_the_order_of_the_responses_does_not_matter(seed, k):
    matrix = _preferences(seed, k)
    order = np.random.default_rng(seed + 1).permutation(k)
    permuted = matrix[order][:, order]
    np.testing.assert_allclose(win_rates(permuted), win_rates(matrix)[order], rtol=1e-12)


def test_prompts_stand_side_by_side_in_numpy_and_torch():
    both = np.stack([CIRCLE, RANKED])
    np.testing.assert_array_equal(win_rates(both), [win_rates(CIRCLE), win_rates(RANKED)])
    np.testing.assert_allclose(win_rates(torch.tensor(both)).numpy(), win_rates(both), rtol=1e-15)
    assert win_rates(np.zeros((2, 0, 5, 5))).shape == (2, 0, 5)


def test_an_ensemble_that_disagrees_is_taken_low_or_high():
    rates, weights = np.array([[0.9, 0.6], [0.3, 0.6]]), np.array([0.75, 0.25])
    low = ensemble_win_rates(rates, weights, beta=0.5, optimistic=False)
    high = ensemble_win_rates(rates, weights, beta=0.5, optimistic=True)
    assert low[0] == pytest.approx(-0.5 * np.log(0.75 * np.exp(-1.8) + 0.25 * np.exp(-0.6)))
    assert high[0] == pytest.approx(0.5 * np.log(0.75 * np.exp(1.8) + 0.25 * np.exp(0.6)))
    assert low[1] == high[1] == pytest.approx(0.6), "where all agree there is nothing to be careful about"
    for beta, extreme in ((1e-4, [0.3, 0.9]), (1e4, [0.75, 0.75])):
        found = [ensemble_win_rates(rates, weights, beta=beta, optimistic=by)[0] for by in (False, True)]
        np.testing.assert_allclose(found, extreme, atol=2e-4)
    assert np.isnan(ensemble_win_rates(np.array([[np.nan], [0.5]]), weights, beta=0.1, optimistic=True)).all()
