r"""Bounds on how exploitable a policy is, from a sample of prompts.

A prompt's game has an exploitability of its own, and that of the whole game is its mean over prompts. The win rate of any
response to a policy, minus 1/2, is a lower bound of it. Of several candidates the best is taken; since the best of many looks
better than it is on the very prompts that it was chosen by, it is measured on others. Where all responses to a prompt can be
listed, the exploitability of each prompt is known, and only the prompts are a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from sppo.game.exploitability import exploitability
from sppo.game.preference_games import Array, GameError


@dataclass(frozen=True)
class Bound:
    """A mean over prompts with its interval by Student's t.

    Attributes:
        mean: the mean.
        low: the lower end.
        high: the upper end.
        prompts: the number of prompts.
    """

    mean: float
    low: float
    high: float
    prompts: int

    @classmethod
    def of(cls, values: npt.ArrayLike, *, confidence: float = 0.95) -> Bound:
        """The mean of one value for each prompt.

        Raises:
            GameError: there are fewer than two prompts.
        """
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            raise GameError(f"{len(array)} prompts: an interval over prompts needs at least 2.")
        mean, count = float(array.mean()), len(array)
        half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * array.std(ddof=1) / np.sqrt(count))
        return cls(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class LowerBound:
    """The best of several responses to a policy.

    Attributes:
        best: the index of the candidate that won most often on the prompts that it was chosen by.
        chosen_by: its win rate minus 1/2 on those prompts, which is too high.
        measured: its win rate minus 1/2 on the other prompts; the mean is a lower bound of the exploitability.
    """

    best: int
    chosen_by: float
    measured: Bound


def lower_bound(win_rates: npt.ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> LowerBound:
    """Choose the best response on one half of the prompts, and measure it on the other half.

    Args:
        win_rates: [prompts, candidates] win rates against the policy.
        confidence: the level of the interval.
        seed: random seed of the halves.

    Raises:
        GameError: there is no candidate, a win rate is none, or there are fewer than four prompts.
    """
    rates = np.array(win_rates, dtype=np.float64)
    if rates.ndim != 2 or rates.shape[1] == 0:
        raise GameError(
            f"win_rates has shape {rates.shape}; expected [prompts, candidates], at least one of each."
        )
    if not np.all((rates >= 0) & (rates <= 1)):
        bad = np.argwhere(~((rates >= 0) & (rates <= 1)))[0].tolist()
        raise GameError(f"win_rates{bad} = {rates[tuple(bad)]} is not a win rate in [0, 1].")
    if len(rates) < 4:
        raise GameError(
            f"{len(rates)} prompts: at least 4 are needed, to choose by one half and measure on the other."
        )
    order = np.random.default_rng(seed).permutation(len(rates))
    choosing, measuring = rates[order[: len(rates) // 2]], rates[order[len(rates) // 2 :]]
    means = choosing.mean(0)
    best = int(means.argmax())
    return LowerBound(
        best, float(means[best]) - 0.5, Bound.of(measuring[:, best] - 0.5, confidence=confidence)
    )


def enumerated(payoff: npt.ArrayLike, policy: npt.ArrayLike, *, confidence: float = 0.95) -> Bound:
    """The exploitability itself where all responses to a prompt are listed; the interval's upper end is an upper bound.

    Args:
        payoff: [prompts, n, n] the games.
        policy: [prompts, n] the policy.
        confidence: the level of the interval.
    """
    return Bound.of(exploitability(payoff, policy), confidence=confidence)


def best_of(pairs: Array) -> Array:
    """Win rates of the strategy that gives the best of its drawn responses.

    Half of the opponent's responses choose the best, and the other half measure it, both ways round.

    Args:
        pairs: [prompts, own, opponent] preferences of each own response over each of the opponent's.

    Returns:
        [prompts].

    Raises:
        GameError: the opponent has a single response to a prompt, or an own one would be all there is to choose.
    """
    prompts, own, other = pairs.shape
    if own < 2 or other < 2:
        raise GameError(
            f"{own} responses against {other}: at least 2 of each are needed for the best of several."
        )
    halves = pairs[:, :, 0::2].mean(-1), pairs[:, :, 1::2].mean(-1)
    rows = np.arange(prompts)
    return np.asarray(sum(b[rows, a.argmax(1)] for a, b in (halves, halves[::-1])) / 2)
