"""Lower bounds on exploitability by the best of several responses, corrected for the choice."""

import numpy as np
import pytest

from sppo.game import GameError, exploitability, rock_paper_scissors
from sppo.game.certificate import Bound, best_of, enumerated, lower_bound


def test_an_interval_by_students_t():
    found = Bound.of([0.0, 1.0, 0.0, 1.0])
    # the standard error is sqrt(1/3)/2, and t(0.975, 3) = 3.1824
    assert found.mean == 0.5
    assert found.high - 0.5 == pytest.approx(3.182446 * np.sqrt(1 / 3) / 2, rel=1e-5)
    assert found.low == pytest.approx(1 - found.high)
    assert found.prompts == 4


def test_the_best_is_chosen_by_one_half_and_measured_on_the_other():
    rates = np.tile([0.4, 0.7, 0.6], (20, 1))
    found = lower_bound(rates)
    assert (found.best, found.measured.prompts) == (1, 10)
    assert found.chosen_by == pytest.approx(0.2)
    assert (found.measured.low, found.measured.high) == pytest.approx((0.2, 0.2))


def test_the_luck_of_the_best_of_many_is_taken_out():
    """A hundred candidates that all tie with the policy: the best looks good where it was chosen, and nowhere else."""
    generator = np.random.default_rng(1)
    found = [lower_bound(generator.random((40, 100)), seed=seed) for seed in range(200)]
    assert np.mean([of.chosen_by for of in found]) > 0.1
    assert abs(np.mean([of.measured.mean for of in found])) < 0.01
    assert sum(of.measured.low <= 0 <= of.measured.high for of in found) >= 184


def test_where_all_responses_are_listed_the_exploitability_is_known():
    game = rock_paper_scissors()
    policies = np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    found = enumerated(np.broadcast_to(game, (4, 3, 3)), policies)
    assert found.mean == pytest.approx(exploitability(game, policies).mean())
    assert found.low < found.mean < found.high


def test_the_best_of_two_is_chosen_by_other_responses_than_it_is_measured_by():
    # the first own response beats the opponent's even ones only, the second one the odd ones only
    pairs = np.array([[[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]])
    assert best_of(pairs).tolist() == [0.0]
    better = np.array([[[0.9, 0.9], [0.2, 0.2]]])
    assert best_of(better).tolist() == pytest.approx([0.9])


def test_what_gives_no_bound_is_said():
    with pytest.raises(GameError, match="at least 4 are needed"):
        lower_bound(np.full((3, 2), 0.5))
    with pytest.raises(GameError, match="is not a win rate"):
        lower_bound(np.full((4, 2), np.nan))
    with pytest.raises(GameError, match="at least one of each"):
        lower_bound(np.zeros((4, 0)))
    with pytest.raises(GameError, match="needs at least 2"):
        Bound.of([0.5])
    with pytest.raises(GameError, match="at least 2 of each"):
        best_of(np.zeros((1, 1, 4)))
