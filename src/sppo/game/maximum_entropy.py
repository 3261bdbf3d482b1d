r"""The von Neumann winner of greatest entropy, where there are several.

The winners of a game form a polytope. If S are the responses that some winner plays and N the others, it is
:math:`\{x : A_{SS} x = 0,\ A_{NS} x \le 0,\ \textstyle\sum x = 1,\ x \ge 0\}`. Its point of greatest
entropy is unique, does not depend on the order of the responses, and gives copies of one response equal
weights. It is also the limit of the regularised methods with a uniform reference as tau goes to zero.
"""

from __future__ import annotations

import numpy as np

from sppo.game.preference_games import Array

_RANK = 1e-10


def maximum_entropy_winner(margins: Array, inside: Array, played: np.ndarray) -> Array:
    r"""Find the point of greatest entropy in the set of winners by a barrier method in the set's own coordinates.

    Args:
        margins: [n, n] antisymmetric.
        inside: [n] a winner in the relative interior of the set.
        played: [n] mask of the responses that it plays.

    Returns:
        [n] policy.
    """
    among, against = margins[np.ix_(played, played)], margins[np.ix_(~played, played)]
    support = int(played.sum())
    uniform = np.full(support, 1 / support)
    policy = np.zeros(len(margins))
    if np.abs(among @ uniform).max() <= _RANK and np.all(against @ uniform <= 1e-12):
        # no policy on this support has more entropy, and games of ties need no decomposition
        policy[played] = uniform
        return policy
    equations = np.vstack([among, np.ones(support)])
    # The rows of V^T beyond the rank span the null space: the directions in which a winner can move.
    _, singular, rows = np.linalg.svd(equations)
    directions = rows[int((singular > _RANK * singular[0]).sum()) :].T
    # The solver's point satisfies the equations up to its own tolerance; least squares moves it onto them.
    start = inside[played]
    right = np.zeros(support + 1)
    right[-1] = 1
    start = start + np.linalg.lstsq(equations, right - equations @ start, rcond=_RANK)[0]
    # Rounding can leave the start on the wrong side of a constraint by 1e-12, or leave a constraint of zeros. The
    # barrier needs strictly positive slacks, so such constraints are dropped.
    against = against[np.abs(against).max(-1, initial=0.0) > 0]
    room = -(against @ start)
    against, room = against[room > 0], room[room > 0]
    if directions.shape[1] and np.all(start > 0):
        # often no slack binds, so the unconstrained maximum is tried first
        free = _climb(start, directions, against[:0], barrier=0.0)
        start = free if np.all(against @ free <= 1e-12) else _follow(start, directions, against)
    policy[played] = np.maximum(start, 0)
    return np.asarray(policy / policy.sum())


def _follow(policy: Array, directions: Array, against: Array) -> Array:
    """Find the greatest entropy where slacks bind, by letting the barrier's weight go to zero."""
    for exponent in range(14):
        policy = _climb(policy, directions, against, barrier=10.0**-exponent)
    return policy


def _climb(policy: Array, directions: Array, against: Array, *, barrier: float) -> Array:
    """Ascend entropy + barrier x (sum log weights + sum log slacks) by Newton steps along the directions.

    The weights need a barrier as well as the slacks: the slope of the entropy at zero is only logarithmic, and
    the barrier of the slacks alone would drive a weight to e^-300 on the way.
    """

    def height(at: Array) -> float:
        entropy = -float(at @ np.log(at))
        return (
            entropy + barrier * float(np.log(at).sum() + np.log(-(against @ at)).sum())
            if barrier
            else entropy
        )

    now = height(policy)
    for _ in range(60):
        slack = -(against @ policy)
        gradient = -np.log(policy) - 1 + barrier * (1 / policy - (against / slack[:, None]).sum(0))
        curvature = 1 / policy + barrier / policy**2
        scaled = (against @ directions) / slack[:, None]
        hessian = directions.T @ (curvature[:, None] * directions) + barrier * (scaled.T @ scaled)
        step = directions @ np.linalg.solve(hessian, directions.T @ gradient)
        # twice the gain that the quadratic model promises; below 1e-21 the entropy does not change in float64
        decrement = float(gradient @ step)
        if not decrement > 1e-21:
            break
        length = 1.0
        while length > 1e-6:
            moved = policy + length * step
            if np.all(moved > 0) and np.all(against @ moved < 0):
                then = height(moved)
                # near the top rounding hides the gain, and the full step is right
                if decrement < 1e-10 or then >= now + 0.1 * length * decrement:
                    break
            length /= 2
        else:
            break
        policy, now = moved, then
    return policy
