"""Votes from files of several notations: the arena's own, and tables in which data sets of votes are published."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sppo.prompts.conversations import PromptError
from sppo.prompts.sources import names_a_file, read_rows
from sppo.rundir import votes as own
from sppo.rundir.votes import VotesError

COLUMNS = {
    "prompt": ("prompt_id", "question_id", "prompt"),
    "left": ("policy_a", "model_a", "left"),
    "right": ("policy_b", "model_b", "right"),
    "winner": ("label", "winner"),
    "voter": ("voter", "worker", "judge", "annotator"),
}
"""The names that the columns of a table of votes may have, the preferred one first."""
_TURN = "turn"
_LEFT, _RIGHT = ("a", "left", "model_a"), ("b", "right", "model_b")
_UNDECIDED = ("inconsistent", "both_bad", "bothbad")
_NO_VOTE = ("", "error", "skip")


class Ballot(NamedTuple):
    """A vote between two items on a prompt.

    Attributes:
        prompt: the prompt's id; with the turn, where a conversation's turns are voted on.
        voter: who voted; the number of the row where the file does not say.
        left: an item.
        right: another item.
        share: 1 if the left one won, 0 if the right one did, 1/2 for a tie.
    """

    prompt: str
    voter: str | int
    left: str
    right: str
    share: float


class VoteFile(NamedTuple):
    """The votes of a file, and the number of rows that are no votes: skips, errors, and a voter's second vote on a pair."""

    ballots: list[Ballot]
    left_out: int


def read(path: Path) -> VoteFile:
    """Read a .csv, .tsv, .json, .jsonl or .parquet file with a row for each vote.

    The columns are those of `COLUMNS`; `turn` belongs to the prompt, and the voter's may be missing. The winner is a, left or
    model_a, b, right or model_b, the name of an item, tie (also with words behind it) or inconsistent; error and skip are no
    votes.

    Raises:
        VotesError: the file cannot be read, or a row is no vote; the message names it.
    """
    if not path.is_file():
        raise VotesError(f"{path}: there is no such file of votes")
    if own.is_votes(path):
        return _counted(_arena(path))
    if not names_a_file(str(path)) or path.suffix == ".txt":
        raise VotesError(f"{path}: votes are read from .csv, .tsv, .json, .jsonl and .parquet files")
    return _counted(_published(path))


def _arena(path: Path) -> Iterator[Ballot | None]:
    shares = {"a": 1.0, "b": 0.0, "tie": 0.5}
    for vote in own.read(path):
        yield (
            None
            if vote["label"] == "skip"
            else Ballot(
                vote["prompt_id"], vote["voter"], vote["policy_a"], vote["policy_b"], shares[vote["label"]]
            )
        )


def _published(path: Path) -> Iterator[Ballot | None]:
    try:
        for number, row in enumerate(read_rows(str(path), columns=_wanted, split="train")):
            if isinstance(row.value, PromptError):
                raise row.value
            if not isinstance(row.value, Mapping):
                raise VotesError(f"{row.position}: not a vote but a {type(row.value).__name__}")
            yield _ballot(row.value, row.position, number)
    except PromptError as error:
        raise VotesError(f"{path}: the votes cannot be read: {error}") from error


def _wanted(columns: Collection[str]) -> list[str]:
    return [name for names in COLUMNS.values() for name in names if name in columns] + [_TURN] * (
        _TURN in columns
    )


def _ballot(row: Mapping[str, Any], where: str, number: int) -> Ballot | None:
    values: dict[str, str] = {}
    for what, names in COLUMNS.items():
        value = next((row[name] for name in names if row.get(name) is not None), None)
        if value is None and what != "voter":
            raise VotesError(f"{where}: a vote needs a {what}, in a column named {' or '.join(names)}")
        if not isinstance(value, str | int | None):
            raise VotesError(f"{where}: {what}: {str(value)[:60]!r} is neither a text nor a whole number")
        values[what] = "" if value is None else str(value).strip()
    if row.get(_TURN) is not None:
        values["prompt"] += f", turn {row[_TURN]}"
    winner, voter = values.pop("winner"), values.pop("voter") or number
    if values["left"] == values["right"]:
        raise VotesError(f"{where}: {values['left'][:60]!r} is compared with itself")
    word = winner.lower()
    if word in _NO_VOTE:
        return None
    if winner == values["left"] or word in _LEFT:
        return Ballot(**values, voter=voter, share=1.0)
    if winner == values["right"] or word in _RIGHT:
        return Ballot(**values, voter=voter, share=0.0)
    if word in _UNDECIDED or word.split()[0] == "tie":
        return Ballot(**values, voter=voter, share=0.5)
    raise VotesError(
        f"{where}: the winner {winner[:60]!r} is neither {values['left'][:60]!r} nor {values['right'][:60]!r}, and none of "
        f"{', '.join((*_LEFT, *_RIGHT, 'tie', *_UNDECIDED, *_NO_VOTE[1:]))}"
    )


def _counted(rows: Iterator[Ballot | None]) -> VoteFile:
    """The votes that count: a voter's first on each pair."""
    first: dict[tuple[str | int, ...], Ballot] = {}
    total = 0
    for ballot in rows:
        total += 1
        if ballot is not None:
            first.setdefault((ballot.prompt, ballot.voter, *sorted((ballot.left, ballot.right))), ballot)
    return VoteFile(list(first.values()), total - len(first))
