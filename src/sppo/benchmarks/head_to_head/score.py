"""Head to head: how probably one policy's responses are preferred to another's, on the same prompts."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sppo.winrates import Array

Compare = Callable[[Sequence[str], Sequence[Sequence[str]]], Array]
"""`compare` of an oracle: prompts, responses -> [N, K, K]."""

NGRAM = 4


class Games(NamedTuple):
    """The game between m policies, prompt by prompt.

    Attributes:
        payoff: [prompts, m, m] how probably the row policy's responses are preferred to the column policy's.
        best: [prompts, m, m] the same of the row policy's best response: of its n the one with the highest win rate
            among them.
    """

    payoff: Float[Array, "prompts m m"]
    best: Float[Array, "prompts m m"]


def games(compare: Compare, prompts: Sequence[str], responses: Sequence[Sequence[Sequence[str]]]) -> Games:
    """Compare the responses of m policies, all pairs of them, with one call of the oracle.

    Args:
        compare: of the oracle.
        prompts: N prompts as text.
        responses: of each policy for each prompt; as many for all prompts, but not of all policies.
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
    r"""P(ours > theirs | x) for each prompt: the mean over all pairs of one's m and the other's n responses.

    Args:
        compare: of the oracle.
        prompts: N prompts as text.
        ours: m responses for each.
        theirs: n responses for each.
    """
    both = [[*a, *b] for a, b in zip(ours, theirs, strict=True)]
    if not both:
        return np.zeros(0)
    m = len(ours[0])
    return np.asarray(compare(prompts, both)[:, :m, m:].mean(axis=(1, 2)), dtype=np.float64)


def across(prompts: int, m: int, n: int) -> Bool[np.ndarray[Any, Any], "prompts K K"]:
    """Of m + n responses to each prompt, the pairs of one of the first m with one of the last n."""
    first = np.arange(m + n) < m
    return np.broadcast_to(first[:, None] != first, (prompts, m + n, m + n))


def interval(
    values: Float[Array, " prompts"], *, confidence: float, resamples: int, seed: int
) -> dict[str, float]:
    """The mean of per-prompt values and its percentile bootstrap interval over prompts.

    Returns:
        `mean`, `low` and `high`; all equal where there is one prompt only.
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    from scipy import stats

    found: Any = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, 2_000_000 // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"mean": mean, "low": float(found.low), "high": float(found.high)}


def over_seeds(values: Float[Array, " seeds"], *, confidence: float) -> dict[str, float]:
    """The mean of one value per seed and its interval by Student's t; no wider than it where there is one seed.

    Returns:
        `mean`, `low` and `high`.
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
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    means = np.tensordot(counts / prompts, payoff, 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def repetition(token_ids: Sequence[int]) -> float:
    """Share of a response's 4-grams that stand in it already; 0 where it has none."""
    grams = [tuple(token_ids[start : start + NGRAM]) for start in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
