r"""What a Bradley-Terry fit loses on prompts that it has not seen, against a model that may go in circles.

The general model gives each pair a term of its own, :math:`\theta_i - \theta_j + c_{ij}`, with c normal around zero. With
a narrow c it is the Bradley-Terry model, and with a wide one it is the pairs' own win rates. The width of theta and that
of c are chosen on a part of the training prompts, each time by prompts that were left out of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sppo.game.preference_games import Array
from sppo.game.transitive_votes import fit_strengths, log_loss
from sppo.game.votes import Indices, Mask, Votes

FOLDS = 5
_PRECISIONS = (1e-2, 0.1, 0.3, 1.0, 3.0)
_OWN_PRECISIONS = (np.inf, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
"""Precisions of a pair's own term, in 1/nats^2; with an infinite one the model is Bradley-Terry's."""


@dataclass(frozen=True)
class Predictions:
    """Log losses on prompts that were left out of the fit, in nats per vote that is not a tie; a coin's is log 2.

    Attributes:
        bradley_terry: that of one strength for each item.
        general: that of the model with a term of its own for each pair.
        gain: how much lower the general model's is; negative if its freedom costs more than it finds.
        low: the lower end of the 95% interval of the gain over resampled prompts.
        high: its upper end.
    """

    bradley_terry: float
    general: float
    gain: float
    low: float
    high: float


def predictions(votes: Votes, *, seed: int = 0, resamples: int = 2000) -> Predictions | None:
    """Compare the two models by folds of prompts; None if there are fewer prompts than folds.

    Args:
        votes: the votes.
        seed: random seed of the folds and of the resampling.
        resamples: number of bootstrap resamples of the prompts.
    """
    voted = np.unique(votes.prompt[votes.decided > 0])
    if len(voted) < FOLDS:
        return None
    generator = np.random.default_rng(seed)
    losses = np.zeros((2, votes.prompts))
    for left_out in np.array_split(generator.permutation(voted), FOLDS):
        seen = np.setdiff1d(voted, left_out)
        best, general = _chosen(votes, np.array_split(generator.permutation(seen), FOLDS - 1))
        for place, (prior, own) in enumerate(((best, np.inf), (best, general))):
            log_odds = _fit(votes.on(_mask(votes, seen)), prior, own)
            losses[place] += _losses(votes.on(_mask(votes, left_out)), log_odds)
    counts = np.bincount(votes.prompt, votes.decided, votes.prompts)[voted]
    found = losses[:, voted]
    draws = generator.multinomial(len(voted), np.full(len(voted), 1 / len(voted)), size=resamples)
    gains = draws @ (found[0] - found[1]) / np.maximum(draws @ counts, 1)
    simple, general_loss = found.sum(-1) / counts.sum()
    low, high = np.quantile(gains, [0.025, 0.975])
    return Predictions(
        float(simple), float(general_loss), float(simple - general_loss), float(low), float(high)
    )


def _chosen(votes: Votes, folds: Sequence[Indices]) -> tuple[float, float]:
    """The precisions of strengths and of the pairs' own terms that predict each fold best from the others."""

    def loss(prior: float, own: float) -> float:
        total = 0.0
        for number, fold in enumerate(folds):
            rest = np.concatenate([*folds[:number], *folds[number + 1 :]])
            log_odds = _fit(votes.on(_mask(votes, rest)), prior, own)
            total += float(_losses(votes.on(_mask(votes, fold)), log_odds).sum())
        return total

    prior = min(_PRECISIONS, key=lambda precision: loss(precision, np.inf))
    return prior, min(_OWN_PRECISIONS, key=lambda precision: loss(prior, precision))


def _mask(votes: Votes, prompts: Indices) -> Mask:
    return np.asarray(np.isin(np.arange(votes.prompts), prompts))


def _losses(votes: Votes, log_odds: Array) -> Array:
    """[prompts] the summed log loss of the votes on each prompt, by log-odds of all pairs of items."""
    of_cells = log_loss(
        votes.wins[:, None], votes.decided[:, None], log_odds[votes.first, votes.second][:, None]
    )
    return np.asarray(np.bincount(votes.prompt, of_cells, votes.prompts), dtype=np.float64)


def _fit(votes: Votes, prior: float, own: float) -> Array:
    """[items, items] log-odds that are most probable given votes and the two precisions."""
    n = len(votes.items)
    first, second, _ = votes.pairs
    wins, decided = votes.pooled(votes.wins), votes.pooled(votes.decided)
    term = np.zeros(len(first))
    if not np.isfinite(own):
        strength = fit_strengths(wins, decided, first, second, n, prior=prior)
        return np.asarray(strength[:, None] - strength[None])
    signs = np.zeros((len(first), n))
    signs[np.arange(len(first)), first], signs[np.arange(len(first)), second] = 1, -1
    strength = np.zeros(n)
    for _ in range(200):
        chance = expit(signs @ strength + term)
        surplus, weight = wins - decided * chance, decided * chance * (1 - chance)
        # Newton's step: the terms are eliminated first, since no two of them share a vote
        own_surplus, shared = surplus - own * term, weight * own / (weight + own)
        right = signs.T @ (surplus - weight / (weight + own) * own_surplus) - prior * strength
        step = np.linalg.solve((signs.T * shared) @ signs + prior * np.eye(n), right)
        own_step = (own_surplus - weight * (signs @ step)) / (weight + own)
        size = max(float(np.ptp(step)), 2 * float(np.abs(own_step).max()))
        damping = np.log1p(size) / size if size > 1e-6 else 1.0
        strength, term = strength + damping * step, term + damping * own_step
        if size < 1e-8:
            break
    log_odds = strength[:, None] - strength[None]
    log_odds[first, second] += term
    log_odds[second, first] -= term
    return np.asarray(log_odds)
