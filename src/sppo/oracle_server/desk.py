"""The questions of all requests, which one thread puts to the oracle, as many at once as have come."""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from sppo.endpoint.exchange import EndpointError
from sppo.oracle import CheckedOracle, OracleError, Preferences, Prompts, Responses
from sppo.serving.bodies import RefusedRequest
from sppo.winrates import Array

AT_ONCE = 64
"""The most prompts in one call of the oracle, as in a run: what the time limit of a function covers."""


class Answer(NamedTuple):
    """The preferences between the responses to one prompt.

    Attributes:
        matrix: [K, K] P(y_i > y_j | x); NaN where the oracle left a pair out.
        components: [K, K] by the oracles that it is made of, by name.
    """

    matrix: Array
    components: dict[str, Array]


@dataclass(frozen=True)
class _Question:
    prompt: str
    responses: Sequence[str]
    answer: "Future[Answer]" = field(default_factory=Future)


class Desk:
    """Puts questions to an oracle; any thread may ask.

    Questions that wait and have as many responses go into one call, so that a model computes batches and a judge's
    requests are sent side by side. A call that fails is divided, so that a question that the oracle cannot answer fails
    alone; a server that cannot be reached fails them all.

    Args:
        oracle: the oracle, which is asked by one thread only.
        most: the most questions that wait or are being asked.
    """

    leaves_gaps = True

    def __init__(self, oracle: CheckedOracle, most: int) -> None:
        self.oracle, self.most = oracle, most
        self._waiting: deque[_Question] = deque()
        self._asked = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="oracle", daemon=True)
        self._thread.start()

    def ask(self, prompt: str, responses: Sequence[str]) -> "Future[Answer]":
        """The answer to a question, which may fail with an OracleError.

        Raises:
            RefusedRequest: too many questions wait, or the desk is closed.
        """
        return self.ask_all([prompt], [responses])[0]

    def ask_all(self, prompts: Prompts, responses: Responses) -> "list[Future[Answer]]":
        """Like :meth:`ask` for several questions, of which all or none are taken."""
        questions = [_Question(*question) for question in zip(prompts, responses, strict=True)]
        with self._changed:
            if self._is_closed:
                raise RefusedRequest(503, "the server is ending; ask again when it runs")
            if self.waiting + len(questions) > self.most:
                raise RefusedRequest(
                    503,
                    f"{self.waiting} prompts are waiting for the oracle, and at most {self.most} may; ask again later, or"
                    " raise --max-waiting",
                    {"Retry-After": "5"},
                )
            self._waiting.extend(questions)
            self._changed.notify()
        return [question.answer for question in questions]

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`sppo.oracle.Oracle.compare`; waits for the answers.

        Raises:
            RefusedRequest: as :meth:`ask` does.
            OracleError: the oracle fails.
        """
        import numpy as np

        return np.stack([answer.result().matrix for answer in self.ask_all(prompts, responses)])

    @property
    def waiting(self) -> int:
        """The number of questions that wait or are being asked."""
        return len(self._waiting) + self._asked

    def close(self, seconds: float = 30) -> None:
        """Refuse what waits, and give what is being asked some time."""
        with self._changed:
            self._is_closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for question in refused:
            question.answer.set_exception(RefusedRequest(503, "the server is ending; ask again when it runs"))
        self._thread.join(seconds)

    def _work(self) -> None:
        while questions := self._next():
            self._answer(questions)
            with self._changed:
                self._asked = 0

    def _next(self) -> list[_Question]:
        """The first question that waits, with others of as many responses; empty when the desk is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            k = len(self._waiting[0].responses)
            taken = [question for question in self._waiting if len(question.responses) == k][:AT_ONCE]
            chosen = {id(question) for question in taken}
            self._waiting = deque(question for question in self._waiting if id(question) not in chosen)
            self._asked = len(taken)
            return taken

    def _answer(self, questions: list[_Question]) -> None:
        try:
            found = self.oracle.compare_with_components(
                [question.prompt for question in questions], [question.responses for question in questions]
            )
        except Exception as error:  # whatever happens, nobody may be left waiting
            if len(questions) > 1 and not _is_everybodys(error):
                for question in questions:
                    self._answer([question])
                return
            for question in questions:
                question.answer.set_exception(error)
            return
        for n, question in enumerate(questions):
            components = {name: matrices[n] for name, matrices in found.components.items()}
            question.answer.set_result(Answer(found.matrix[n], components))


def _is_everybodys(error: Exception) -> bool:
    """Whether another question would fail for the same reason: a server, a budget or a file, not what a prompt says."""
    cause = error.__cause__
    if isinstance(cause, EndpointError):
        return not cause.is_refusal
    return isinstance(cause, OSError) or not isinstance(error, OracleError)
