r"""The Blackwell winner: the policy whose worst win rate, over annotators and opponents, is the highest.

Several annotators a prefer by matrices :math:`P_a` of their own. Instead of the mean matrix, whose winner may lose nearly always in the
eyes of one annotator, the payoff of a policy is

.. math:: v(\pi) = \min_w \min_{\pi'} \sum_a w_a P_a(\pi \succ \pi') = \min_{a, y'} P_a(\pi \succ y'):

a third player chooses the annotator, or a mixture w of them, after the policy is known. Its maximiser is the Blackwell winner of
Bhatia et al. (arXiv:2105.01850) for the target of winning half of the time under every annotator, with the largest shortfall as the
distance. For one annotator it is the von Neumann winner, with v = 1/2; for several, v is at most 1/2, because every policy ties with
itself.

The opponent and the annotator are chosen together: given an opponent and a policy alike, as in self-play, every annotator is
indifferent, :math:`P_a(\pi \succ \pi) = \tfrac12`, and there would be nothing to choose.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sppo.game.preference_games import Array, GameError, policy_weights, preference_game

_GAP = 1e-9


class BlackwellWinner(NamedTuple):
    """The solution of one game of several annotators.

    Attributes:
        policy: [n] the Blackwell winner; one of them if there are several.
        adversary: [annotators, n] the mixture of annotators and opponents that holds every policy to the value.
        value: the worst win rate of the policy.
    """

    policy: Array
    adversary: Array
    value: float


def worst_win_rate(payoffs: npt.ArrayLike, policy: npt.ArrayLike) -> Array:
    r"""The win rate of a policy under the annotator and against the opponent that are worst for it.

    Args:
        payoffs: [..., annotators, n, n] a preference matrix for each annotator.
        policy: [..., n] the policy.

    Returns:
        [...] :math:`\min_{a, y'} P_a(\pi \succ y')`, at most 1/2.

    Raises:
        ValueError: a payoff is not a preference game, or the policy is not one.
    """
    games = annotators_game(payoffs)
    weights = policy_weights(policy, games.shape[-1])
    rates = np.einsum("...y,...ayz->...az", weights, games)
    return np.asarray(rates.min((-1, -2)))


def blackwell_winner(payoffs: npt.ArrayLike) -> BlackwellWinner:
    r"""Solve the linear programme :math:`\max v,\ \sum_y \pi(y) P_a(y \succ y') \ge v` for all a and y'.

    Args:
        payoffs: [annotators, n, n] a preference matrix for each annotator.

    Returns:
        The winner, certified by its adversary to 1e-9.

    Raises:
        ValueError: the payoffs are no preference games, or more than one game is given.
        ArithmeticError: HiGHS did not reach a duality gap of 1e-9.
    """
    # imported here because SciPy takes longer to import than the rest of the package, also for --help
    from scipy.optimize import linprog

    games = annotators_game(payoffs)
    if games.ndim != 3:
        raise GameError(
            f"the Blackwell winner is that of one game [annotators, n, n]; got shape {games.shape}"
        )
    against = against_every_opponent(games)
    n = len(against)
    result = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.hstack([-against.T, np.ones((against.shape[1], 1))]),
        b_ub=np.zeros(against.shape[1]),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.x is None:
        raise ArithmeticError(f"HiGHS found no Blackwell winner: {result.message}")
    policy, adversary = np.maximum(result.x[:n], 0), np.maximum(-result.ineqlin.marginals, 0)
    policy, adversary = policy / policy.sum(), adversary / adversary.sum()
    value, bound = float((policy @ against).min()), float((against @ adversary).max())
    if bound - value > _GAP:
        raise ArithmeticError(f"the duality gap {bound - value:.3g} stayed above {_GAP:g}.")
    return BlackwellWinner(policy, adversary.reshape(games.shape[:2]), value)


def annotators_game(payoffs: npt.ArrayLike) -> Array:
    """Check the preference matrices of several annotators, [..., annotators, n, n], and return a copy."""
    games = preference_game(payoffs)
    if games.ndim < 3:
        raise GameError(
            f"a game of several annotators is an array [..., annotators, n, n]; got shape {games.shape}"
        )
    return games


def against_every_opponent(payoffs: Array) -> Array:
    """The payoffs as those of one game, [n, annotators x n]: the adversary chooses an annotator and an opponent."""
    return np.concatenate(list(payoffs), axis=-1)
