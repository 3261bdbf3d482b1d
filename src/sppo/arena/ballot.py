"""Votes, kept so that none is lost: a vote counts when it is on the disk, and is counted once however often it is sent."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.arena import votes as vote_files

VOTES, SKIPS = "votes.parquet", "skips.parquet"


class Ballot:
    """The votes of a folder; several threads may call it.

    Args:
        folder: of votes.parquet and, apart from them, skips.parquet.

    Raises:
        sppo.arena.votes.VotesError: a file that is there cannot be read; nothing is written over it.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._files = {False: folder / VOTES, True: folder / SKIPS}
        self._rows: dict[bool, dict[str, dict[str, Any]]] = {
            skips: {row["vote_id"]: row for row in vote_files.read(path)} if path.is_file() else {}
            for skips, path in self._files.items()
        }

    def record(self, vote: Mapping[str, Any]) -> bool:
        """Keep a vote.

        Returns:
            Whether it stands as it was given: False if another choice was kept under its id before.

        Raises:
            OSError: it could not be written, and does not count.
        """
        skips = vote["label"] == "skip"
        with self._lock:
            for rows in self._rows.values():
                known = rows.get(vote["vote_id"])
                if known is not None:
                    return bool(known["label"] == vote["label"])
            rows = {**self._rows[skips], vote["vote_id"]: dict(vote)}
            vote_files.write(self._files[skips], list(rows.values()))
            self._rows[skips] = rows
        return True

    def answer(self, vote_id: str, probability: float) -> None:
        """Add what the oracle says of a vote's responses."""
        with self._lock:
            row = self._rows[False][vote_id]
            rows = {**self._rows[False], vote_id: {**row, "oracle": probability}}
            vote_files.write(self._files[False], list(rows.values()))
            self._rows[False] = rows

    def votes(self) -> list[dict[str, Any]]:
        """Those that count."""
        return list(self._rows[False].values())

    def seen(self) -> list[dict[str, Any]]:
        """The votes and what was skipped."""
        return [row for rows in self._rows.values() for row in rows.values()]
