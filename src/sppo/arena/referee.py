"""Asks the run's oracle about the pairs that people have voted on, in a thread of its own."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from sppo.arena.ballot import Ballot


class Referee:
    """Asks an oracle about each vote, beginning with those that an earlier session left unasked.

    Args:
        load: loads the oracle.
        ballot: receives the oracle's preferences.
        say: is told why there are no preferences, if the oracle fails.
    """

    def __init__(self, load: Callable[[], Any], ballot: Ballot, say: Callable[[str], None]) -> None:
        self._load, self._ballot, self._say = load, ballot, say
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        for vote in ballot.votes():
            if vote["oracle"] is None:
                self._waiting.put(vote)
        self._thread = threading.Thread(target=self._work, name="referee", daemon=True)

    def start(self) -> None:
        """Starts asking."""
        self._thread.start()

    def ask(self, vote: dict[str, Any]) -> None:
        """Asks about one more vote."""
        self._waiting.put(vote)

    def finish(self, timeout: float = 30) -> None:
        """Asks about the votes that wait, as far as the time allows; the next session asks about the rest."""
        self._waiting.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        try:
            oracle = self._load()
            while (vote := self._waiting.get()) is not None:
                matrix = oracle.compare([vote["prompt"]], [[vote["response_a"], vote["response_b"]]])
                self._ballot.add_oracle(vote["vote_id"], float(matrix[0, 0, 1]))
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            self._say(f"note: the oracle cannot be asked, so votes are counted without it: {error}")
