"""Answers kept by the content of their question, in one SQLite file.

Several processes may use the file at once, and a crash at any moment is safe: an answer and what it cost are written
in one transaction. SQLite's rollback journal is used, not its write-ahead log, which needs memory that all processes
share and so fails on network file systems. Every answer, and every number of tokens spent, lies beside a digest of itself,
which is compared when it is read: a damaged answer is as good as none.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

_TABLES = """
CREATE TABLE IF NOT EXISTS checked_answers
    (question TEXT PRIMARY KEY, answer TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked_spent
    (model TEXT PRIMARY KEY, tokens INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (model TEXT PRIMARY KEY, tokens INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
"""
# A file of an earlier version holds answers and numbers of tokens without digests, which they are given once.
_GIVE_DIGESTS = """
BEGIN IMMEDIATE;
INSERT OR IGNORE INTO checked_answers SELECT question, answer, answer_digest(question, answer) FROM answers;
DELETE FROM answers;
INSERT OR IGNORE INTO checked_spent SELECT model, tokens, answer_digest(model, tokens) FROM spent;
DELETE FROM spent;
COMMIT;
"""
_PARAMETERS = 500  # SQLite takes a limited number of them
_WAIT_SECONDS = 120.0


class AnswerCacheError(OSError):
    """The file of answers cannot be opened, read or written."""


class AnswerCache:
    """The file of answers, open within a `with` block.

    Args:
        path: the file, which is made with its folder if it is not there.

    Raises:
        AnswerCacheError: it cannot be opened, or is no file of answers. Every method raises it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[str, str, str, int]] = []

    def __enter__(self) -> Self:
        with self._readable_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
            self._file.text_factory = lambda raw: raw.decode(
                "utf-8", "replace"
            )  # damage is for the digest to find
            try:
                self._file.create_function("answer_digest", 2, _answer_digest, deterministic=True)
                self._file.executescript(_TABLES)
                if self._file.execute("SELECT 1 FROM answers UNION SELECT 1 FROM spent LIMIT 1").fetchone():
                    self._file.executescript(_GIVE_DIGESTS)
            except sqlite3.Error:
                self._file.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def get(self, questions: Iterable[str]) -> dict[str, str]:
        """The answers that are known and whole, by question."""
        by_digest = {_digest(question): question for question in questions}
        digests, known = list(by_digest), {}
        with self._readable_errors():
            for start in range(0, len(digests), _PARAMETERS):
                part = digests[start : start + _PARAMETERS]
                marks = ",".join("?" * len(part))
                query = f"SELECT question, answer, digest FROM checked_answers WHERE question IN ({marks})"
                for question, answer, digest in self._file.execute(query, part):
                    if isinstance(answer, str) and digest == _answer_digest(question, answer):
                        known[by_digest[question]] = answer
        return known

    def put(self, question: str, answer: str, model: str, tokens: int) -> None:
        """Keep an answer, and add the tokens it cost to its model's; on the disk after the next :meth:`flush`."""
        self._waiting.append((_digest(question), answer, model, tokens))

    def flush(self) -> None:
        """Write what was put, in one transaction."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        with self._readable_errors(), self._file:
            self._file.executemany(
                "INSERT OR REPLACE INTO checked_answers VALUES (?1, ?2, answer_digest(?1, ?2))",
                [row[:2] for row in rows],
            )
            self._file.executemany(
                "INSERT INTO checked_spent VALUES (?1, ?2, answer_digest(?1, ?2))"
                " ON CONFLICT (model) DO UPDATE SET tokens = tokens + excluded.tokens,"
                " digest = CASE digest WHEN answer_digest(model, tokens)"  # a damaged number stays one
                " THEN answer_digest(model, tokens + excluded.tokens) ELSE digest END",
                [row[2:] for row in rows],
            )

    def spent(self, model: str) -> int:
        """The tokens that all answers of a model cost, whichever process asked."""
        with self._readable_errors():
            rows = self._file.execute("SELECT model, tokens, digest FROM checked_spent").fetchall()
            if any(digest != _answer_digest(name, tokens) for name, tokens, digest in rows):
                raise ValueError("the number of tokens that its answers have cost is damaged")
            written = next((int(tokens) for name, tokens, _ in rows if name == model), 0)
        return written + sum(tokens for *_, name, tokens in self._waiting if name == model)

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise AnswerCacheError(
                f"{self.path}: {error}; this file keeps the answers of endpoints. If it is damaged, move it away"
            ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _answer_digest(question: str, answer: str | int) -> str:
    """The digest of an answer and its question, so that no answer is taken for that of another; likewise of tokens and model."""
    return _digest(f"{question}\n{answer}")
