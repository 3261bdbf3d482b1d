"""A process of its own for a user's function, so that nothing the function does can end or stop the run.

The run's process sends questions and waits for each answer as long as the time limit allows. Only text and numbers are
sent in either direction. The process is told of the run's end by the end of its connection, and ends as well.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sppo.oracle import OracleError, Preferences, Prompts, Responses, as_numbers

_SECONDS_TO_START, _SECONDS_TO_END = 600, 1
_LONGEST_WAIT = 10**6
"""Seconds; the operating system does not wait longer at a time."""
_MOST = 4
"""How many processes are kept: those of the functions that were asked last."""
_processes: dict[tuple[str, ...], "OwnProcess"] = {}
_changing = threading.Lock()


class NoAnswer(Exception):
    """The function has not answered in time."""


def of(name: str) -> "OwnProcess":
    """The running process of a function, which stays for all of its questions; started if there is none.

    A program that asks many functions, such as a notebook, does not gather a process for each of them.
    """
    key = (name, os.getcwd(), *sys.path)
    with _changing:
        process = _processes.pop(key, None)
        if process is None or not process.is_alive():
            process = OwnProcess(name)
        _processes[key] = process  # behind the others: the first is the one that was asked longest ago
        while len(_processes) > _MOST:
            _processes.pop(next(iter(_processes))).retire()
    return process


class OwnProcess:
    """A process that runs one function.

    Args:
        name: ``module:function``, which the process imports at the first question.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:] = {sys.path!r}; import sppo.oracle.own_process as own;"
                f" own.serve({theirs.fileno()}, {name!r})",
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self.close)
        self._answer(_SECONDS_TO_START)

    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def retire(self) -> None:
        """End the process once it has answered."""
        with self._lock:
            self.close()

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        self._connection.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, question: str, seconds: float, **values: Any) -> Any:
        """The function's `answer` to a question: `find` (nothing), `digest` (of its code) or `compare` (the matrices).

        Raises:
            OracleError: the function cannot be imported, raises, gives no array of numbers, or ends its process.
            NoAnswer: there is no answer in time; the process has been ended.
        """
        with self._lock:
            with contextlib.suppress(OSError):  # it has ended, which `_answer` reports
                self._connection.send_bytes(json.dumps({"question": question, **values}).encode())
            answer = self._answer(seconds)
            if "error" in answer:
                raise OracleError(answer["error"])
            if question == "compare":
                matrix = np.frombuffer(self._connection.recv_bytes(), dtype=np.float64)
                return matrix.reshape(answer["shape"]).copy()
            return answer.get("value")

    def compare(self, prompts: Prompts, responses: Responses, seconds: float) -> Preferences:
        """The matrices that the function returns; raises what :meth:`ask` raises."""
        asked: dict[str, Any] = {"prompts": list(prompts), "responses": [list(texts) for texts in responses]}
        if (
            "torch" in sys.modules
        ):  # the function's torch uses as many threads as the run's, as its sums depend on them
            asked["threads"] = sys.modules["torch"].get_num_threads()
        matrix: Preferences = self.ask("compare", seconds, **asked)
        return matrix

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            if not self._connection.poll(min(seconds, _LONGEST_WAIT)):
                self._process.kill()
                self.close()
                raise NoAnswer
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"exit code {code}" if code >= 0 else f"the signal {signal.Signals(-code).name}"
            raise OracleError(
                f"the oracle {self.name} has ended its own process with {how}; a function returns its answer and leaves the"
                " process running"
            ) from None
        return answer


def serve(descriptor: int, name: str) -> None:
    """Answer the questions that arrive; this is the main function of the process."""
    from sppo.oracle import function

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's process handles a Ctrl-C and ends this one
    connection = Connection(descriptor)
    questions: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, questions), daemon=True).start()
    connection.send_bytes(b"{}")
    while (asked := questions.get()) is not None:
        matrix: Any = None
        answer: dict[str, Any] = {}
        try:
            match asked["question"]:
                case "find":
                    function.find_function(name)
                case "digest":
                    answer["value"] = function.source_digest(name)
                case "compare":
                    function.find_function(name)
                    if "torch" in sys.modules and "threads" in asked:
                        sys.modules["torch"].set_num_threads(asked["threads"])
                    found = function.call(name, asked["prompts"], asked["responses"])
                    matrix = as_numbers(found)
                    answer["shape"] = list(matrix.shape)
        except OracleError as error:
            answer["error"] = str(error)
        connection.send_bytes(json.dumps(answer).encode())
        if matrix is not None:
            connection.send_bytes(matrix.tobytes())


def _receive(connection: Connection, questions: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    """Pass on the questions that arrive; once the run's process has gone, end this one even if its function is at work."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.put(json.loads(connection.recv_bytes()))
    questions.put(None)
    threading.Event().wait(_SECONDS_TO_END)
    os._exit(1)
