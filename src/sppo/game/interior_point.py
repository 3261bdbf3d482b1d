r"""An interior-point method for the linear programme of a symmetric game, which solves a batch of games at once.

With the margins :math:`A = P - \tfrac12`, a policy is a von Neumann winner when every response's margin
against it is at most zero: :math:`x \ge 0,\ w = -Ax \ge 0`. Because A is antisymmetric this programme is its
own dual, :math:`x^\top w = 0` always holds, and a solution with :math:`x + w > 0` exists (Tucker, 1956):
every response is either played by some winner or wins strictly less than half against one.

The method is the textbook path-following method on the self-dual embedding of Ye, Todd and Mizuno (1994): one
additional variable makes :math:`x = w = 1` an exactly feasible start on the central path, each Newton step solves
one [n + 1, n + 1] system, and the path ends in the *interior* of the set of winners, which shows all the
responses that any winner plays. A general solver cannot exploit that the two halves of the programme are the
same and is slower for that reason (docs/game.md has the comparison with HiGHS).
"""

from __future__ import annotations

import numpy as np

from sppo.game.preference_games import Array

# The iteration stops when the mean of weight times slack, relative to the squared scale of the policy, is below this.
_CLOSE = 1e-14
_STEPS = 100
# The share of the way to the boundary that a step may take.
_STAY_INSIDE = 0.95


def self_dual_winner(margins: Array) -> tuple[Array, Array]:
    """Find a strictly complementary von Neumann winner and its slacks.

    Args:
        margins: [games, n, n] antisymmetric, with the largest entry of the order of one.

    Returns:
        The policy [games, n] and the slacks [games, n], by which each response falls short of 1/2 against the policy.
        For each response one of the two is zero and the other positive, up to about 1e-10.
    """
    games, n, _ = margins.shape
    # The embedding: with r = 1 + A 1 and the skew matrix M = [[-A, r], [-r^T, 0]], the start weight = slack = 1 satisfies
    # slack = M weight + (n + 1) e, where e is the last unit vector, and Newton steps preserve this. Since M is skew,
    # weight . slack = (n + 1) x the last weight; as the products go to 0 so does that weight, and what remains in the
    # first n rows is slack = -A weight, the programme itself up to scale.
    residual = 1 + margins.sum(-1)
    system = np.zeros((games, n + 1, n + 1))
    system[:, :n, :n] = -margins
    system[:, :n, n] = residual
    system[:, n, :n] = -residual
    diagonal = np.arange(n + 1)
    weight = np.ones((games, n + 1))
    slack = np.ones((games, n + 1))
    centring = np.full(games, 0.2)
    running = np.arange(games)
    for _ in range(_STEPS):
        # Only games that have not converged take a further step; each stops by its own criterion.
        mean = (weight[running] * slack[running]).mean(-1)
        running = running[mean > _CLOSE * weight[running, :n].sum(-1) ** 2]
        if not running.size:
            break
        x, w = weight[running], slack[running]
        # Newton's equations for weight * slack = centring * mean: eliminating the step of the slacks leaves the skew
        # matrix plus the positive diagonal w / x, which is never singular.
        toward = (centring[running] * (x * w).mean(-1))[:, None] / x - w
        matrix = system if running.size == games else system[running]
        matrix[:, diagonal, diagonal] = w / x
        x_step = np.linalg.solve(matrix, toward[..., None])[..., 0]
        w_step = toward - w / x * x_step
        # the longest step up to 1 that keeps every weight and slack positive
        shrink = np.maximum((-x_step / x).max(-1), (-w_step / w).max(-1))
        length = np.minimum(1.0, _STAY_INSIDE / np.maximum(shrink, 1e-300))
        weight[running] = x + length[:, None] * x_step
        slack[running] = w + length[:, None] * w_step
        # after a long step aim almost at the solution, after a short one return to the central path first
        centring[running] = np.clip((1 - length) ** 2, 1e-3, 0.5)
    scale = weight[:, :n].sum(-1, keepdims=True)
    return weight[:, :n] / scale, slack[:, :n] / scale
