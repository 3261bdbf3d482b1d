"""Votes of people between two responses: a parquet file, which is preference data for training an oracle as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from sppo.rundir.shards import DamagedShard, read_shard, table, write_shard

VOTES = pa.schema(
    [
        ("vote_id", pa.string()),
        ("time", pa.string()),
        ("voter", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("policy_a", pa.string()),
        ("policy_b", pa.string()),
        ("response_a", pa.string()),
        ("response_b", pa.string()),
        ("label", pa.string()),
        ("oracle", pa.float64()),
    ]
)
"""One row per vote. A stood left and B right, as drawn; `label` is a, b or tie, `time` is UTC, `oracle` is P(a is
preferred) by the run's oracle, null where it was not asked."""

SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class VotesError(ValueError):
    """A file of votes that cannot be used."""


def read(path: Path) -> list[dict[str, Any]]:
    """The votes of a file, each once.

    Raises:
        VotesError: it cannot be read, or is no file of votes.
    """
    try:
        rows = read_shard(path).to_pylist()
    except DamagedShard as error:
        raise VotesError(f"{error}; the file is left as it is") from error
    lacking = sorted(set(VOTES.names) - {"oracle"} - set(rows[0])) if rows else []
    if lacking:
        raise VotesError(f"{path}: no file of votes: it has no {', '.join(lacking)}")
    unknown = next((row["label"] for row in rows if row["label"] not in (*SCORES, "skip")), None)
    if unknown is not None:
        raise VotesError(f"{path}: a vote is {unknown!r}; known are {', '.join(SCORES)}")
    return list({row["vote_id"]: row for row in rows}.values())


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put a file in the place of the last one; it is on the disk, whole, when this returns."""
    write_shard(path, table(list(rows), VOTES), {})


def by_prompt(votes: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """For each ordered pair of policies the win rates of the first, prompt by prompt: means over a prompt's votes."""
    gathered: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in votes:
        score = SCORES.get(vote["label"])
        if score is None:
            continue
        a, b = vote["policy_a"], vote["policy_b"]
        for pair, value in (((a, b), score), ((b, a), 1 - score)):
            gathered.setdefault(pair, {}).setdefault(vote["prompt_id"], []).append(value)
    return {pair: [float(np.mean(of)) for of in prompts.values()] for pair, prompts in gathered.items()}


def agreement(votes: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """How often a person prefers what the oracle prefers, ties on either side left out; None without such votes.

    Returns:
        `votes`, and the share with its 95% interval (Wilson): `mean`, `low`, `high`.
    """
    decided = [
        (vote["label"] == "a") == (vote["oracle"] > 0.5)
        for vote in votes
        if vote["label"] in ("a", "b") and vote.get("oracle") is not None and vote["oracle"] != 0.5
    ]
    if not decided:
        return None
    found = stats.binomtest(sum(decided), len(decided)).proportion_ci(method="wilson")
    return {
        "votes": len(decided),
        "mean": sum(decided) / len(decided),
        "low": float(found.low),
        "high": float(found.high),
    }
