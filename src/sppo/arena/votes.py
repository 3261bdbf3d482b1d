"""What people's votes say: win rates between policies, and agreement with an oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sppo import randomness
from sppo.benchmarks.head_to_head.score import interval
from sppo.rundir.votes import counted

SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def by_prompt(votes: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """For each ordered pair of policies, the first one's win rate on each prompt: the mean over the prompt's votes."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in counted(votes):
        score = SCORES[vote["label"]]
        a, b = vote["policy_a"], vote["policy_b"]
        for pair, value in (((a, b), score), ((b, a), 1 - score)):
            scores.setdefault(pair, {}).setdefault(vote["prompt_id"], []).append(value)
    return {pair: [float(np.mean(values)) for values in prompts.values()] for pair, prompts in scores.items()}


def win_rates(votes: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """For each ordered pair of policies, `mean`, `low` and `high` (95%) over prompts, and the number of `prompts`."""
    seed = randomness.seed("bootstrap", 0)
    return {
        pair: {**interval(np.array(rates), confidence=0.95, resamples=2000, seed=seed), "prompts": len(rates)}
        for pair, rates in by_prompt(votes).items()
    }


def agreement(votes: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The share of votes that prefer what the oracle prefers, without ties on either side; None without such votes.

    Returns:
        The number of `votes`, and the share with its 95% interval (Wilson): `mean`, `low`, `high`.
    """
    agreed = [
        (vote["label"] == "a") == (vote["oracle"] > 0.5)
        for vote in counted(votes)
        if vote["label"] in ("a", "b") and vote.get("oracle") not in (None, 0.5)
    ]
    if not agreed:
        return None
    ends = stats.binomtest(sum(agreed), len(agreed)).proportion_ci(method="wilson")
    mean = sum(agreed) / len(agreed)
    return {"votes": len(agreed), "mean": mean, "low": float(ends.low), "high": float(ends.high)}
