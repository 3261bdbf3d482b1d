"""Worker processes on one machine: each loads its models once and makes shards until none is left.

The next shard goes to whichever worker is free, so no worker waits for the slowest. A worker that crashes (for instance
because the kernel killed it for taking too much memory) is replaced, and its shard is retried once.
`ProcessPoolExecutor` would give up the whole pool, with every shard in progress.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from sppo.recipe import Recipe
from sppo.rundir.folder import RunError
from sppo.stages.jobs import Advance, ShardJob
from sppo.stages.models import Models

ATTEMPTS = 2
"""How often a shard is attempted before crashes of its workers become an error."""
_SECONDS_TO_END = 10


def make_shards(
    job: ShardJob, missing: Sequence[int], recipe: Recipe, devices: Sequence[str | None], advance: Advance
) -> None:
    """Make shards of a job in worker processes.

    Args:
        job: the job.
        missing: the numbers of the shards to make.
        recipe: the run's recipe, whose models the workers load.
        devices: the value of CUDA_VISIBLE_DEVICES for each worker; None leaves it as in this process.
        advance: called with the number of units that have just been finished.

    Raises:
        RunError: the workers that made a shard have crashed :data:`ATTEMPTS` times.
        Exception: the error of a shard that fails; every finished shard is kept.
    """
    _Pool(job, missing, recipe, advance).run(devices[: len(missing)])


class _Worker:
    """One worker process, and the shard that it is making."""

    def __init__(self, job: ShardJob, recipe: Recipe, devices: str | None) -> None:
        self.devices = devices
        self.shard = -1
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(theirs, job, recipe, devices, _threads()),
            name=f"sppo {job.kind}",
        )
        with _interrupts_blocked():  # this process handles a Ctrl-C and ends the workers
            self.process.start()
        theirs.close()

    def begin(self, shard: int) -> None:
        self.shard = shard
        with contextlib.suppress(OSError):  # it has crashed, which `messages` reports
            self.connection.send(shard)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """The messages that have arrived since the last call; the last one is `crashed` if the process has ended."""
        dead = not self.process.is_alive()  # asked first, so that its last messages are read
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            dead = True
        if dead:
            self.process.join(_SECONDS_TO_END)
            yield "crashed", self.process.exitcode


class _Pool:
    def __init__(self, job: ShardJob, missing: Sequence[int], recipe: Recipe, advance: Advance) -> None:
        self.job, self.recipe, self.advance = job, recipe, advance
        self.waiting = deque(missing)
        self.left = len(missing)
        self.crashes: Counter[int] = Counter()
        self.reported: Counter[int] = Counter()
        self.workers: list[_Worker] = []

    def run(self, devices: Sequence[str | None]) -> None:
        try:
            for visible in devices:
                self._start(visible)
            while self.left:
                wait([worker.connection for worker in self.workers], timeout=1)
                for worker in list(self.workers):
                    for kind, content in worker.messages():
                        self._handle(worker, kind, content)
        finally:
            _end([worker.process for worker in self.workers])

    def _start(self, devices: str | None) -> None:
        worker = _Worker(self.job, self.recipe, devices)
        self.workers.append(worker)
        worker.begin(self.waiting.popleft())

    def _handle(self, worker: _Worker, kind: str, content: Any) -> None:
        match kind:
            case "units":
                self.reported[worker.shard] += content
                self.advance(content)
            case "made":
                self.left -= 1
                worker.shard = -1
                if self.waiting:
                    worker.begin(self.waiting.popleft())
            case "failed":
                raise _as_exception(content)
            case "crashed":
                self.workers.remove(worker)
                if worker.shard >= 0:
                    self._retry(worker.shard, content)
                if self.waiting:
                    self._start(worker.devices)

    def _retry(self, shard: int, exit_code: int | None) -> None:
        self.crashes[shard] += 1
        if self.crashes[shard] >= ATTEMPTS:
            raise RunError(
                f"{self.job.title}: {self.crashes[shard]} workers have ended while making"
                f" {self.job.shards[shard].path.name}, the last {exit_in_words(exit_code)}; every finished shard is kept."
                f" Lower workers.{self.job.kind} or the memory of one engine (sampling.batch_tokens,"
                " training.pack_tokens, an oracle's batch), then run the same command again to continue"
            )
        self.advance(-self.reported.pop(shard, 0))
        self.waiting.appendleft(shard)


def exit_in_words(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        cause = ", as the kernel does when the memory is full" if name == "SIGKILL" else ""
        return f"by the signal {name}{cause}"
    return f"with exit code {code}"


def _serve(
    connection: Connection, job: ShardJob, recipe: Recipe, devices: str | None, threads: int | None
) -> None:
    """Make the shards whose numbers arrive; this is the main function of a worker."""
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    models = Models(recipe, threads)
    try:
        _answer(connection, job, models)
    finally:
        models.release()  # some engines run in processes of their own


def _answer(connection: Connection, job: ShardJob, models: Models) -> None:
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number = connection.recv()
            try:
                job.make(number, models, lambda count: connection.send(("units", count)))
            except Exception as error:
                connection.send(("failed", _portable(error)))
                return
            connection.send(("made", number))


def _threads() -> int | None:
    """The number of torch's threads in this process; None if torch is not loaded.

    Workers use as many, so that their sums round as they do here.
    """
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _portable(error: Exception) -> tuple[bytes | None, str]:
    """A pickled exception, or None if another process could not load it, and the exception as text."""
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # a library's exception can fail to pickle in any way
        return None, text
    return packed, text


def _as_exception(content: tuple[bytes | None, str]) -> Exception:
    packed, text = content
    if packed is None:
        return RuntimeError(f"a worker failed:\n{text}")
    error: Exception = pickle.loads(packed)
    error.add_note(f"in a worker:\n{text}")
    return error


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in this process, and for good in child processes started meanwhile.

    A SIGINT that arrives meanwhile is delivered to this process afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting the tracker unblocks SIGINT, so it must run before the mask is set and the first child inherits it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Sequence[Any]) -> None:
    """End processes that may still be working."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()
