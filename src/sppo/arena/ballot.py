"""The votes of an arena on the disk: a vote counts once it is written, and once only, however often it is sent."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.rundir import votes as vote_files

VOTES, SKIPS = "votes.parquet", "skips.parquet"


class Ballot:
    """The votes in a folder; several threads may use it.

    Args:
        folder: where votes.parquet and, apart from it, skips.parquet are kept.

    Raises:
        sppo.rundir.votes.VotesError: a file that is there cannot be read; it is not overwritten.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._folder = folder
        self._rows: dict[str, dict[str, Any]] = {}
        for path in (folder / VOTES, folder / SKIPS):
            if path.is_file():
                self._rows |= {row["vote_id"]: row for row in vote_files.read(path)}

    def record(self, vote: Mapping[str, Any]) -> bool:
        """Records a vote or a skip.

        Returns:
            Whether it counts; False if another choice was recorded under its id before, or if the person has voted on
            this pair of policies and prompt under another id, as from a page that was opened earlier.

        Raises:
            OSError: it could not be written, and does not count.
        """
        with self._lock:
            known = self._rows.get(vote["vote_id"])
            if known is not None:
                return all(known[name] == vote[name] for name in ("label", "both_bad"))
            pair = vote_files.pair_of(vote)
            if vote["label"] != "skip" and any(vote_files.pair_of(other) == pair for other in self.votes()):
                return False
            self._write({**self._rows, vote["vote_id"]: dict(vote)}, vote["label"])
        return True

    def withdraw(self, vote_id: str) -> bool:
        """Removes a vote or a skip, and returns whether there was one.

        Raises:
            OSError: the removal could not be written, and the vote still counts.
        """
        with self._lock:
            known = self._rows.get(vote_id)
            if known is not None:
                rows = {name: row for name, row in self._rows.items() if name != vote_id}
                self._write(rows, known["label"])
        return known is not None

    def add_oracle(self, vote_id: str, probability: float) -> None:
        """Adds the oracle's preference to a vote, if the vote was not withdrawn meanwhile."""
        with self._lock:
            known = self._rows.get(vote_id)
            if known is not None:
                self._write({**self._rows, vote_id: {**known, "oracle": probability}}, known["label"])

    def votes(self) -> list[dict[str, Any]]:
        """The votes without the skips."""
        return [row for row in self._rows.values() if row["label"] != "skip"]

    def seen(self) -> list[dict[str, Any]]:
        """The votes and the skips."""
        return list(self._rows.values())

    def _write(self, rows: dict[str, dict[str, Any]], label: str) -> None:
        """Writes the one of the two files that a change of a row with this label belongs to."""
        is_skip = label == "skip"
        kept = [row for row in rows.values() if (row["label"] == "skip") == is_skip]
        vote_files.write(self._folder / (SKIPS if is_skip else VOTES), kept)
        self._rows = rows
