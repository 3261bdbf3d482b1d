"""The Blackwell winner of several annotators: the linear programme, and the proximal steps that lead to it."""

import numpy as np
import pytest
from scipy.optimize import minimize

from sppo.game import GameError, blackwell_winner, nash, random_game, rock_paper_scissors, worst_win_rate
from sppo.game.dynamics import Blackwell, MultiplicativeWeights, blackwell, play
from sppo.game.dynamics.policies import as_policy

FIRST, SECOND = (np.array([[0.5, p], [1 - p, 0.5]]) for p in (1.0, 0.0))
"""An annotator who always prefers the first of two responses, and one who always prefers the second."""


def test_a_majority_does_not_outvote_the_third_annotator() -> None:
    payoffs = np.stack([FIRST, FIRST, SECOND])
    np.testing.assert_allclose(nash(payoffs.mean(0)), [1, 0], atol=1e-9)
    assert worst_win_rate(payoffs, [1, 0]) == 0
    # P_1(pi > first) = pi(first) / 2 and P_3(pi > second) = pi(second) / 2 are to be equal
    winner = blackwell_winner(payoffs)
    np.testing.assert_allclose(winner.policy, [0.5, 0.5], atol=1e-9)
    assert winner.value == pytest.approx(0.25, abs=1e-9)
    np.testing.assert_allclose(winner.adversary[2], [0, 0.5], atol=1e-9)
    np.testing.assert_allclose(winner.adversary[:2].sum(0), [0.5, 0], atol=1e-9)


def test_a_response_that_both_can_live_with_wins() -> None:
    # both find the third nearly as good as the best, and far better than the other's favourite
    one = np.array([[0.5, 1.0, 0.6], [0.0, 0.5, 0.1], [0.4, 0.9, 0.5]])
    other = one[np.ix_([1, 0, 2], [1, 0, 2])]
    winner = blackwell_winner([one, other])
    np.testing.assert_allclose(winner.policy, [0, 0, 1], atol=1e-9)
    assert winner.value == pytest.approx(0.4, abs=1e-9)


def test_of_one_annotator_it_is_the_von_neumann_winner() -> None:
    game = rock_paper_scissors(rock=0.9, paper=0.7, scissors=0.6)
    winner = blackwell_winner(game[None])
    np.testing.assert_allclose(winner.policy, nash(game), atol=1e-9)
    assert winner.value == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("annotators", "n", "eta"), [(2, 4, 30.0), (3, 5, 1e3), (3, 16, 1e3), (6, 8, 1e3)])
def test_the_last_iterate_is_the_solution_of_the_linear_programme(
    annotators: int, n: int, eta: float
) -> None:
    payoffs = random_game(n, games=annotators, seed=n)
    winner = blackwell_winner(payoffs)
    run = play(Blackwell(eta), payoffs, 30, record=range(1, 31))
    values = worst_win_rate(payoffs, run.last)
    assert (np.diff(values) > -1e-9).all(), "the worst win rate never falls"
    assert values[-1] == pytest.approx(winner.value, abs=1e-6)
    np.testing.assert_allclose(run.last[-1], winner.policy, atol=1e-6)
    mean = play(MultiplicativeWeights(0.1), payoffs.mean(0), 2000).average[0]
    assert worst_win_rate(payoffs, mean) < winner.value - 0.01


def test_a_step_is_the_best_reply_to_the_worst_mixture_at_a_distance() -> None:
    payoffs, eta = random_game(4, games=3, seed=1), 5.0
    policy = as_policy([0.35, 0.15, 0.3, 0.2])

    def loss(variables: np.ndarray) -> float:
        return float(-variables[4] + variables[:4] @ (np.log(variables[:4]) - policy.log) / eta)

    solved = minimize(
        loss,
        [*policy.probability, 0.0],
        bounds=[(1e-9, 1)] * 4 + [(-1, 1)],
        constraints=[
            {"type": "eq", "fun": lambda v: v[:4].sum() - 1},
            {"type": "ineq", "fun": lambda v: np.einsum("y,ayz->az", v[:4], payoffs).ravel() - v[4]},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    step = blackwell.update(policy, payoffs, eta=eta)
    np.testing.assert_allclose(step.probability, solved.x[:4], atol=1e-6)


def test_games_are_played_one_by_one_and_what_is_never_played_stays_out() -> None:
    games = random_game(5, games=(2, 3), seed=4)
    initial = np.array([[0.2] * 5, [0.5, 0.25, 0.25, 0, 0]])
    eta = np.array([3.0, 10.0])
    together = play(Blackwell(eta), games, 5, initial=initial).last[0]
    for game, first, step, policy in zip(games, initial, eta, together, strict=True):
        np.testing.assert_allclose(
            play(Blackwell(float(step)), game, 5, initial=first).last[0], policy, atol=1e-9
        )
    assert np.array_equal(together[1, 3:], [0, 0])


def test_bad_games_are_refused() -> None:
    with pytest.raises(GameError, match=r"\[\.\.\., annotators, n, n\]; got shape \(2, 2\)"):
        blackwell_winner(FIRST)
    with pytest.raises(GameError, match=r"one game \[annotators, n, n\]; got shape \(2, 1, 2, 2\)"):
        blackwell_winner(np.stack([FIRST, SECOND])[:, None])
    with pytest.raises(GameError, match="got shape"):
        play(Blackwell(1.0), FIRST, 2)
    with pytest.raises(GameError, match=r"eta = -1\.0 must be positive"):
        Blackwell(-1.0)
