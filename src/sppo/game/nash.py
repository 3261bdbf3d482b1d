r"""The von Neumann winner: the policy that no other policy beats.

It is :math:`\pi^* = \arg\max_\pi \min_{\pi'} P(\pi \succ \pi')` (Dudik et al., 2015), the symmetric Nash
equilibrium of the preference game. It always exists, and wins at least half of the time against every policy,
however intransitive the preferences are.

Two solvers solve the same linear programme: `interior` (the default) exploits the antisymmetry and solves whole
batches; `highs` is SciPy's HiGHS, which does not use the structure and serves as an independent check and as the
fallback if `interior` misses the tolerance. The result of either is then made exact on its support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sppo.game.interior_point import self_dual_winner
from sppo.game.maximum_entropy import maximum_entropy_winner
from sppo.game.preference_games import Array, GameError, preference_game

Solver = Literal["interior", "highs"]

_GAP = 1e-9
_SINGULAR = 1e-13


@dataclass(frozen=True)
class Solution:
    """The von Neumann winners of one or many games.

    Attributes:
        policy: [..., n] the winner; if there are several, the one of greatest entropy.
        gap: [...] duality gap of the policy, at most 1e-9.
        unique: [...] whether it is the only winner.
    """

    policy: Array
    gap: Array
    unique: npt.NDArray[np.bool_]


def nash(payoff: npt.ArrayLike, *, solver: Solver = "interior") -> Array:
    """Find the von Neumann winner of each preference game.

    Args:
        payoff: [..., n, n] preference matrices, n up to about 5,000.
        solver: `interior` or `highs`; the result is the same.

    Returns:
        [..., n] policies with a duality gap of at most 1e-9; if a game has several winners, the one of greatest
        entropy.

    Raises:
        ValueError: the payoff is not a preference game (see preference_game).
        ArithmeticError: the solver did not reach a duality gap of 1e-9.
    """
    return solve(payoff, solver=solver).policy


def solve(payoff: npt.ArrayLike, *, solver: Solver = "interior") -> Solution:
    """Find the von Neumann winner of each game like `nash`, and certify it.

    The duality gap is computed from the policy and the matrix and does not rely on the solver.
    """
    if solver not in ("interior", "highs"):
        raise GameError(f"solver = {solver!r}; choose 'interior' or 'highs'.")
    game = preference_game(payoff)
    n = game.shape[-1]
    margins = game.reshape(-1, n, n) - 0.5
    # The winner does not depend on the scale of the margins, but the solvers' tolerances do.
    scale = np.abs(margins).max((-1, -2))
    scaled = margins / np.where(scale > 0, scale, 1.0)[:, None, None]
    policies = np.empty((len(margins), n))
    unique = np.empty(len(margins), dtype=bool)
    if solver == "interior":
        central, slacks = self_dual_winner(scaled)
    for g, matrix in enumerate(scaled):
        candidate = (central[g], slacks[g]) if solver == "interior" else _highs(matrix)
        policies[g], unique[g] = _exact(matrix, *candidate)
        if solver == "interior" and _gap(margins[g], policies[g]) > _GAP:
            policies[g], unique[g] = _exact(matrix, *_highs(matrix))
    gaps = np.array([_gap(matrix, policy) for matrix, policy in zip(margins, policies, strict=True)])
    if gaps.max() > _GAP:
        worst = int(gaps.argmax())
        raise ArithmeticError(
            f"game {worst}: the duality gap {gaps[worst]:.3g} stayed above {_GAP:g}; "
            f"try solver={'highs' if solver == 'interior' else 'interior'!r}."
        )
    batch = game.shape[:-2]
    return Solution(policies.reshape(*batch, n), gaps.reshape(batch), unique.reshape(batch))


def _exact(margins: Array, policy: Array, slack: Array) -> tuple[Array, bool]:
    """Return the winner on the solver's support, exact up to rounding, and whether it is the only winner.

    A winner x with the support S solves A_SS x = 0, sum x = 1. The bordered matrix [[A_SS, 1], [-1, 0]] is singular
    exactly if these equations have a second solution, so one factorisation answers both questions.
    """
    # imported here because SciPy takes longer to import than the rest of the package, also for --help
    from scipy.linalg import lapack

    played = policy > slack
    if not played.any():
        return policy, False
    support = int(played.sum())
    bordered = np.zeros((support + 1, support + 1))
    bordered[:support, :support] = margins[np.ix_(played, played)]
    bordered[:support, support] = 1
    bordered[support, :support] = -1
    factors, pivots, _ = lapack.dgetrf(bordered)
    condition, _ = lapack.dgecon(factors, np.abs(bordered).sum(0).max())
    if condition < _SINGULAR:
        return _better(margins, maximum_entropy_winner(margins, policy, played), policy), False
    right = np.zeros(support + 1)
    right[support] = -1
    solved, _ = lapack.dgetrs(factors, pivots, right)
    exact = np.zeros(len(policy))
    exact[played] = np.maximum(solved[:support], 0)
    total = exact.sum()
    return _better(margins, exact / total if total > 0 else policy, policy), True


def _better(margins: Array, candidate: Array, policy: Array) -> Array:
    keep = _gap(margins, candidate) <= max(_gap(margins, policy), _GAP / 10)
    return candidate if keep else policy


def _gap(margins: Array, policy: Array) -> float:
    return 2 * float((margins @ policy).max())


def _highs(margins: Array) -> tuple[Array, Array]:
    """Find a strictly complementary winner with HiGHS.

    The plain programme ends in a corner of the set of winners. If the corner neither plays some response nor beats
    it, there may be other winners. A second programme, max sum t with t <= x + w, 0 <= t <= 1 and x not normalised,
    then finds a winner in the interior of the set: by Tucker's theorem every t reaches one.
    """
    n = len(margins)
    policy = _linear_programme(np.zeros(n), margins, np.ones((1, n)), None)
    slack = -(margins @ policy)
    if np.maximum(policy, slack).min() > 1e-9:
        return policy, slack
    identity = np.eye(n)
    constraints = np.block([[margins, np.zeros((n, n))], [margins - identity, identity]])
    bounds: list[tuple[int, int | None]] = [(0, None)] * n + [(0, 1)] * n
    policy = _linear_programme(np.repeat([0.0, -1.0], n), constraints, None, bounds)[:n]
    policy = policy / policy.sum()
    return policy, -(margins @ policy)


def _linear_programme(
    cost: Array, at_most_zero: Array, sums_to_one: Array | None, bounds: list[tuple[int, int | None]] | None
) -> Array:
    from scipy.optimize import linprog

    result = linprog(
        cost,
        A_ub=at_most_zero,
        b_ub=np.zeros(len(at_most_zero)),
        A_eq=sums_to_one,
        b_eq=None if sums_to_one is None else [1.0],
        bounds=bounds or (0, None),
        # by far the fastest method of HiGHS on these programmes: its simplex needs minutes at n = 2,000
        method="highs-ipm",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.x is None:
        raise ArithmeticError(f"HiGHS found no von Neumann winner: {result.message}")
    return np.asarray(result.x)
