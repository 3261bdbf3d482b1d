"""The file of people's votes between two responses: written by the arena, read wherever votes count.

Every value is checked when a file is read. A vote counts once, and a person has one vote on each pair of policies for a
prompt, whatever stands in the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from sppo.reading import regular
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

_Name = Annotated[str, Field(min_length=1)]


class _Vote(BaseModel, strict=True):
    """The types and the ranges of a vote's values."""

    vote_id: _Name
    time: str
    voter: _Name
    prompt_id: _Name
    prompt: str
    policy_a: _Name
    policy_b: _Name
    response_a: str
    response_b: str
    label: Literal["a", "b", "tie", "skip"]
    both_bad: bool
    oracle: Annotated[float, Field(ge=0, le=1)] | None


class VotesError(ValueError):
    """A file of votes that cannot be used."""


def read(*paths: Path) -> list[dict[str, Any]]:
    """Reads the votes of one or several files; a vote that stands there twice counts once.

    Raises:
        VotesError: a file is damaged or no file of votes, a value is missing or wrong, or two different votes have one id.
    """
    votes: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, vote in enumerate(_rows(path), 1):
            known = votes.setdefault(vote["vote_id"], vote)
            if any(known[name] != vote[name] for name in VOTES.names if name not in NEWER):
                raise VotesError(
                    f"{path}, vote {number}: its vote_id {vote['vote_id']!r} is that of another vote; every vote needs an id"
                    " of its own"
                )
    return list(votes.values())


def is_votes(path: Path) -> bool:
    """Whether a file is a parquet file with the columns of votes."""
    try:
        return set(VOTES.names) - set(NEWER) <= set(pq.read_schema(regular(path)).names)
    except (OSError, ValueError):
        return False


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces a file of votes; the new file is whole and on the disk when this returns."""
    write_shard(path, table(list(rows), VOTES), {})


def pair_of(vote: Mapping[str, Any]) -> tuple[str, ...]:
    """The person, the prompt and the two policies, whichever of them stood on the left."""
    return (vote["voter"], vote["prompt_id"], *sorted((vote["policy_a"], vote["policy_b"])))


def counted(votes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The votes that count: no skips, and a person's first vote on each pair."""
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for vote in votes:
        if vote["label"] != "skip":
            first.setdefault(pair_of(vote), vote)
    return list(first.values())


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        found = read_shard(path)
        missing = sorted(set(VOTES.names) - set(NEWER) - set(found.column_names))
        if missing and found.num_rows:
            raise VotesError(f"{path} is no file of votes: it has no {', '.join(missing)}")
        rows: list[dict[str, Any]] = found.select(
            [name for name in VOTES.names if name in found.column_names]
        ).to_pylist()
    except DamagedShard as error:
        raise VotesError(f"{error}; the file is left as it is") from error
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if isinstance(error, VotesError):
            raise
        raise VotesError(f"{path}: a value cannot be read: {error}") from error
    for number, row in enumerate(rows):
        row |= {name: value for name, value in NEWER.items() if row.get(name) is None}
        try:
            _Vote.model_validate(row)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            raise VotesError(
                f"{path}, vote {number + 1}: {wrong['loc'][0]}: {str(wrong['input'])[:60]!r} cannot be used: {wrong['msg']}"
            ) from error
        if row["policy_a"] == row["policy_b"]:
            raise VotesError(f"{path}, vote {number + 1}: {row['policy_a']!r} is compared with itself")
    return rows
