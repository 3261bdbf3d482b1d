r"""The scalar reward that is closest to a preference game.

In a Bradley-Terry model :math:`P_{ij} = \sigma(r_i - r_j)`: it has one number per response, so it has no cycles.
A reward model with enough capacity fits it to the matrix, so the distance of the fit from the matrix is what
every scalar reward loses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sppo.game.preference_games import Array, GameError, bradley_terry_matrix, policy_weights, preference_game
from sppo.game.social_choice import dominating_prefixes

_STEPS = 200


def bradley_terry(payoff: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Array:
    r"""Fit log-strengths by maximum likelihood, on pairs (y, y') that are both drawn from `weights`.

    Minimises :math:`-\sum_{ij} w_i w_j P_{ij} \log \sigma(r_i - r_j)`. At the minimum, the model gives every
    response the same win rate against `weights` as the game does,
    :math:`\sum_j w_j (P_{ij} - \sigma(r_i - r_j)) = 0`. This is the reward of DPO's population loss
    (arXiv:2305.18290, equation 7), times beta.

    Args:
        payoff: [..., n, n].
        weights: [..., n] how often each response is compared; uniform if not given.

    Returns:
        [..., n] log-strengths in nats, with a weighted mean of zero.

    Raises:
        ValueError: the maximum lies at infinity, because some responses win every comparison with the rest;
            nearest_bradley_terry handles this case.
    """
    game = preference_game(payoff)
    n = game.shape[-1]
    share = np.full(n, 1 / n) if weights is None else policy_weights(weights, n, name="weights")
    return fit_log_strength(game, share)


def fit_log_strength(payoff: Array, weights: Array) -> Array:
    """Like `bradley_terry`, but on inputs that have been checked; this is the inner loop of DPO self-play."""
    order, dominates = dominating_prefixes(payoff >= 1)
    if dominates[..., :-1].any():
        game = tuple(int(i) for i in np.argwhere(dominates[..., :-1])[0])
        always = sorted(int(i) for i in order[game[:-1]][: game[-1] + 1])
        where = f"game {list(game[:-1])}: " if len(game) > 1 else ""
        raise GameError(
            f"{where}responses {always} win every comparison with the others, so their Bradley-Terry "
            "strength is infinite. Shrink the matrix towards 1/2, e.g. 0.99 * P + 0.005, or call "
            "nearest_bradley_terry."
        )
    batch = np.broadcast_shapes(payoff.shape[:-1], weights.shape)
    share = np.broadcast_to(weights, batch)
    n = batch[-1]
    strength = np.zeros(batch)
    diagonal = np.arange(n)
    for _ in range(_STEPS):
        model = bradley_terry_matrix(strength)
        surplus = ((payoff - model) * share[..., None, :]).sum(-1)
        slope = model * (1 - model) * share[..., None, :]
        # A Newton step. Each row of the gradient and of the Hessian is divided by its response's weight, so that
        # rare responses stay well conditioned. No comparison determines the mean strength, so the Hessian is
        # singular in that direction; adding share_j to every row pins the weighted mean of the step to zero.
        system = share[..., None, :] - slope
        system[..., diagonal, diagonal] += slope.sum(-1)
        step = np.linalg.solve(system, surplus[..., None])[..., 0]
        spread = np.ptp(step, axis=-1)
        if spread.max() < 1e-13 * (1 + np.abs(strength).max()) or np.abs(surplus).max() < 1e-16:
            return strength + step
        # The third derivative of the logistic loss is bounded by its second, so that Newton's method descends from
        # anywhere if a step of spread s is damped by log(1 + s)/s. Below 1e-8 the factor is 1 up to rounding.
        damping = np.where(spread > 1e-8, np.log1p(spread) / np.maximum(spread, 1e-8), 1.0)
        strength = strength + damping[..., None] * step
    if np.abs(surplus).max() < 1e-10:
        return strength
    raise GameError(
        f"the Bradley-Terry fit did not converge in {_STEPS} Newton steps (win rates are off by "
        f"{np.abs(surplus).max():.2g}): probabilities are too close to 0 or 1, or weights too unequal. "
        "Shrink the matrix towards 1/2, e.g. 0.99 * P + 0.005."
    )


def nearest_bradley_terry(payoff: npt.ArrayLike) -> Array:
    """Return the matrix of the Bradley-Terry model, or limit of such models, that is closest in relative entropy.

    Where some responses win every comparison with the rest, the closest model is the limit in which their
    strength goes to infinity: it meets those pairs exactly, and each group of responses is fitted by itself.

    Returns:
        [..., n, n] preference matrix.
    """
    game = preference_game(payoff)
    n = game.shape[-1]
    games = game.reshape(-1, n, n)
    order, dominates = dominating_prefixes(games >= 1)
    nearest = (games >= 1).astype(np.float64)
    whole = ~dominates[:, :-1].any(-1)
    if whole.any():
        nearest[whole] = bradley_terry_matrix(fit_log_strength(games[whole], np.full(n, 1 / n)))
    for g in np.flatnonzero(~whole):
        ends = np.flatnonzero(dominates[g]) + 1
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            group = order[g, first:last]
            block = np.ix_(group, group)
            share = np.full(len(group), 1 / len(group))
            nearest[g][block] = bradley_terry_matrix(fit_log_strength(games[g][block], share))
    return nearest.reshape(game.shape)


def bradley_terry_divergence(payoff: npt.ArrayLike) -> Array:
    r"""Distance to the nearest Bradley-Terry model, in nats per comparison.

    It is :math:`\min_Q \frac{2}{n(n-1)} \sum_{i<j} KL(P_{ij} \| Q_{ij})` over Bradley-Terry models Q and their
    limits, which is how much the cross-entropy of the best scalar reward exceeds the entropy of the preferences.

    Returns:
        [...], exactly zero for the transitive game of a scalar reward.
    """
    game = preference_game(payoff)
    return divergence_from(game, nearest_bradley_terry(game))


def divergence_from(game: Array, model: Array) -> Array:
    """Mean relative entropy of the pairs with respect to a model's matrix; both are checked and [..., n, n]."""
    n = game.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(game > 0, game * (np.log(game) - np.log(model)), 0.0)
    # the two orders of a pair add up to one Bernoulli divergence
    return np.asarray(np.maximum(terms.sum((-1, -2)) / (n * (n - 1) / 2), 0.0))
