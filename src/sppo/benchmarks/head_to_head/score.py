"""Head to head: how probably one policy's responses are preferred to another's, on the same prompts."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sppo.winrates import Array

Compare = Callable[[Sequence[str], Sequence[Sequence[str]]], Array]
"""The `compare` method of an oracle, which answers N prompts with matrices [N, K, K]."""

NGRAM = 4


class Games(NamedTuple):
    """The game between m policies, prompt by prompt.

    Attributes:
        payoff: [prompts, m, m] how probably the row policy's responses are preferred to the column policy's.
        best: [prompts, m, m] the same for the row policy's best response only, which is the one of its n responses with
            the highest win rate among them.
    """

    payoff: Float[Array, "prompts m m"]
    best: Float[Array, "prompts m m"]


def games(compare: Compare, prompts: Sequence[str], responses: Sequence[Sequence[Sequence[str]]]) -> Games:
    """Compare all pairs of the responses of m policies with one call of the oracle.

    Args:
        compare: the oracle's method.
        prompts: N prompts as text.
        responses: each policy's responses to each prompt; a policy has the same number for all prompts, and policies may
            have different numbers.
    """
    together = [[text for texts in of_prompt for text in texts] for of_prompt in zip(*responses, strict=True)]
    matrix = compare(prompts, together)
    bounds = list(pairwise(np.cumsum([0, *(len(of_policy[0]) for of_policy in responses)])))
    against = np.stack([matrix[:, :, low:high].mean(axis=2) for low, high in bounds], axis=2)
    payoff = np.stack([against[:, low:high].mean(axis=1) for low, high in bounds], axis=1)
    best = []
    for policy, (low, high) in enumerate(bounds):
        chosen = low + against[:, low:high, policy].argmax(axis=1)
        best.append(against[np.arange(len(prompts)), chosen])
    return Games(payoff, np.stack(best, axis=1))


def win_rates_against(
    compare: Compare, prompts: Sequence[str], ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]
) -> Float[Array, " prompts"]:
    r"""P(ours > theirs | x) for each prompt: the mean over all pairs of our m and their n responses.

    Pairs that the oracle left out are not in the mean; it is NaN for a prompt of which all pairs are left out.

    Args:
        compare: the oracle's method.
        prompts: N prompts as text.
        ours: m responses to each prompt.
        theirs: n responses to each prompt.
    """
    return mean_of_compared(pairs_against(compare, prompts, ours, theirs), (1, 2))


def pairs_against(
    compare: Compare, prompts: Sequence[str], ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]
) -> Float[Array, "prompts m n"]:
    """P(y > y' | x) for each of our m responses y and their n responses y'; NaN where the oracle left a pair out."""
    both = [[*a, *b] for a, b in zip(ours, theirs, strict=True)]
    if not both:
        return np.zeros((0, 0, 0))
    m = len(ours[0])
    return np.asarray(compare(prompts, both)[:, :m, m:], dtype=np.float64)


def mean_of_compared(pairs: Float[Array, "prompts m n"], axes: int | tuple[int, ...]) -> Array:
    """The mean over axes of the pairs that were compared; NaN where none was."""
    if not np.isnan(pairs).any():
        return np.asarray(pairs.mean(axis=axes), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(pairs, axis=axes) / (~np.isnan(pairs)).sum(axis=axes))


def across(prompts: int, m: int, n: int) -> Bool[np.ndarray[Any, Any], "prompts K K"]:
    """The pairs of one of the first m responses with one of the last n, as a mask over all pairs of each prompt."""
    first = np.arange(m + n) < m
    return np.broadcast_to(first[:, None] != first, (prompts, m + n, m + n))


def interval(
    values: Float[Array, " prompts"], *, confidence: float, resamples: int, seed: int
) -> dict[str, float]:
    """The mean of per-prompt values and its percentile bootstrap interval over prompts; NaN values are left out.

    Returns:
        `mean`, `low` and `high`, all equal where there is only one prompt.
    """
    values = values[~np.isnan(values)]
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    from scipy import stats

    result: Any = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, 2_000_000 // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"mean": mean, "low": float(result.low), "high": float(result.high)}


def over_seeds(values: Float[Array, " seeds"], *, confidence: float) -> dict[str, float]:
    """The mean of one value per seed and its interval by Student's t.

    Returns:
        `mean`, `low` and `high`, all equal where there is only one seed.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "low": mean, "high": mean}
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def intervals(
    payoff: Float[Array, "prompts m m"], *, confidence: float, resamples: int, seed: int
) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """Percentile bootstrap intervals over prompts of every entry of a mean payoff matrix: low and high."""
    prompts = len(payoff)
    # how often each prompt is drawn in each resample; then all means are one product
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    means = np.tensordot(counts / prompts, payoff, 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def repetition(token_ids: Sequence[int]) -> float:
    """The share of a response's 4-grams that occur earlier in it; 0 where it has no 4-gram."""
    grams = [tuple(token_ids[start : start + NGRAM]) for start in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
