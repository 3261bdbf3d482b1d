"""The file of people's votes between two responses, which is preference data for training an oracle as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from sppo import randomness
from sppo.benchmarks.head_to_head.score import interval
from sppo.rundir.shards import DamagedShard, read_shard, table, write_shard

_TEXTS = (
    "vote_id",
    "time",
    "voter",
    "prompt_id",
    "prompt",
    "policy_a",
    "policy_b",
    "response_a",
    "response_b",
)
VOTES = pa.schema(
    [
        *((name, pa.string()) for name in (*_TEXTS, "label")),
        ("both_bad", pa.bool_()),
        ("oracle", pa.float64()),
    ]
)
"""One row for each vote. Response a stood on the left and b on the right; `time` is UTC; `label` is a, b or tie;
`both_bad` marks a tie between two bad responses; `oracle` is P(a is preferred) by the run's oracle, null where the
oracle was not asked."""
NEWER = {"oracle": None, "both_bad": False}
"""The columns that older files lack, with the values that they stand for."""

SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class VotesError(ValueError):
    """A file of votes that cannot be used."""


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the votes of a file; a vote that stands there twice counts once.

    Raises:
        VotesError: the file is damaged, or it is no file of votes.
    """
    try:
        rows = read_shard(path).to_pylist()
    except DamagedShard as error:
        raise VotesError(f"{error}; the file is left as it is") from error
    missing = sorted(set(VOTES.names) - set(NEWER) - set(rows[0])) if rows else []
    if missing:
        raise VotesError(f"{path} is no file of votes: it has no {', '.join(missing)}")
    unknown = next((row["label"] for row in rows if row["label"] not in (*SCORES, "skip")), None)
    if unknown is not None:
        raise VotesError(f"{path}: the label of a vote is {unknown!r}; it must be one of {', '.join(SCORES)}")
    return list({row["vote_id"]: NEWER | row for row in rows}.values())


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces a file of votes; the new file is whole and on the disk when this returns."""
    write_shard(path, table(list(rows), VOTES), {})


def by_prompt(votes: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """For each ordered pair of policies, the first one's win rate on each prompt: the mean over the prompt's votes."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in votes:
        score = SCORES.get(vote["label"])
        if score is None:
            continue
        a, b = vote["policy_a"], vote["policy_b"]
        for pair, value in (((a, b), score), ((b, a), 1 - score)):
            scores.setdefault(pair, {}).setdefault(vote["prompt_id"], []).append(value)
    return {pair: [float(np.mean(values)) for values in prompts.values()] for pair, prompts in scores.items()}


def win_rates(votes: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """For each ordered pair of policies, `mean`, `low` and `high` (95%) over prompts, and the number of `prompts`."""
    seed = randomness.seed("bootstrap", 0)
    return {
        pair: {**interval(np.array(rates), confidence=0.95, resamples=2000, seed=seed), "prompts": len(rates)}
        for pair, rates in by_prompt(votes).items()
    }


def agreement(votes: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The share of votes that prefer what the oracle prefers, without ties on either side; None without such votes.

    Returns:
        The number of `votes`, and the share with its 95% interval (Wilson): `mean`, `low`, `high`.
    """
    agreed = [
        (vote["label"] == "a") == (vote["oracle"] > 0.5)
        for vote in votes
        if vote["label"] in ("a", "b") and vote.get("oracle") not in (None, 0.5)
    ]
    if not agreed:
        return None
    ends = stats.binomtest(sum(agreed), len(agreed)).proportion_ci(method="wilson")
    mean = sum(agreed) / len(agreed)
    return {"votes": len(agreed), "mean": mean, "low": float(ends.low), "high": float(ends.high)}
