"""Answers kept by the content of their question, in one SQLite file.

Safe for several processes and for a crash at any moment: an answer and what it cost are written in one transaction.
SQLite's rollback journal is used, not its write-ahead log, which needs memory that all processes share and so fails
on network file systems.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (model TEXT PRIMARY KEY, tokens INTEGER NOT NULL) WITHOUT ROWID;
"""
_AT_ONCE = 500  # SQLite takes a limited number of parameters
_WAIT_SECONDS = 120.0


class AnswersError(OSError):
    """The file cannot be opened, read or written."""


class Answers:
    """The file of answers, open within a `with` block.

    Args:
        path: the file; made with its folder if it is not there.

    Raises:
        AnswersError: it cannot be opened, or is no file of answers. Every method raises it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[str, str, str, int]] = []

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
            try:
                self._file.executescript(_TABLES)
            except sqlite3.Error:
                self._file.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._wrong(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def get(self, questions: Iterable[str]) -> dict[str, Any]:
        """The answers that are known, by question."""
        by_digest = {_digest(question): question for question in questions}
        digests, found = list(by_digest), {}
        try:
            for start in range(0, len(digests), _AT_ONCE):
                part = digests[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                for digest, answer in self._file.execute(
                    f"SELECT question, answer FROM answers WHERE question IN ({marks})", part
                ):
                    found[by_digest[digest]] = json.loads(answer)
        except (sqlite3.Error, ValueError) as error:
            raise self._wrong(error) from error
        return found

    def put(self, question: str, answer: Any, model: str, tokens: int) -> None:
        """Keep an answer, and add the tokens it cost to its model's; on the disk after the next :meth:`flush`."""
        self._waiting.append((_digest(question), json.dumps(answer), model, tokens))

    def flush(self) -> None:
        """Write what was put, in one transaction."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        try:
            with self._file:
                self._file.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?)", [row[:2] for row in rows]
                )
                self._file.executemany(
                    "INSERT INTO spent VALUES (?, ?)"
                    " ON CONFLICT (model) DO UPDATE SET tokens = tokens + excluded.tokens",
                    [row[2:] for row in rows],
                )
        except sqlite3.Error as error:
            raise self._wrong(error) from error

    def spent(self, model: str) -> int:
        """The tokens that all answers of a model cost, whichever process asked."""
        try:
            row = self._file.execute("SELECT tokens FROM spent WHERE model = ?", (model,)).fetchone()
        except sqlite3.Error as error:
            raise self._wrong(error) from error
        waiting = sum(tokens for _, _, of, tokens in self._waiting if of == model)
        return waiting + (0 if row is None else int(row[0]))

    def _wrong(self, error: Exception) -> AnswersError:
        return AnswersError(
            f"{self.path}: {error}; it keeps the answers of endpoints. If it is damaged, move it away"
        )


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
