"""The oracles of measurements/paper_claims.py, in a file of their own because its contents are their identity."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

from sppo.tinyworld import annotators

CLIP = 0.01
"""Probabilities are kept this far from 0 and 1 where their log-odds are taken."""


def panel(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """tinyworld's panel: the mean of the three annotators' probabilities."""
    return np.mean([of(prompts, responses) for of in _members()], axis=0)


def majority(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """The share of the three annotators that prefer i to j, by any margin."""
    return np.mean([0.5 + 0.5 * np.sign(of(prompts, responses) - 0.5) for of in _members()], axis=0)


def panel_sums(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """The panel's probabilities from sums of scores."""
    return sums_of_scores(panel(prompts, responses))


def majority_sums(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """The majority's probabilities from sums of scores."""
    return sums_of_scores(majority(prompts, responses))


def sums_of_scores(matrix: np.ndarray) -> np.ndarray:
    """P_ij = sigma(s_i - s_j) with s_i the mean log-odds over the opponents, as in the released code: without cycles."""
    odds = logit(np.clip(matrix, CLIP, 1 - CLIP))
    score = odds.sum(axis=-1) / (matrix.shape[-1] - 1)  # the diagonal is 0
    return expit(score[..., :, None] - score[..., None, :])


def _members() -> list:
    return [getattr(annotators, name) for name in annotators.ANNOTATORS]
