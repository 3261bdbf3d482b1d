"""Worker processes on one machine: each loads its models once and makes shards until none is left.

The next shard goes to whichever worker asks for one, so no worker waits for the slowest. A worker may ask before it has
finished the shard before. A worker that crashes (for instance because the kernel killed it for taking too much memory) is
replaced, and its shards are retried once.
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

from sppo.progress import Advance
from sppo.recipe import Recipe
from sppo.rundir.folder import RunError
from sppo.stages.jobs import ShardJob
from sppo.stages.models import Models

ATTEMPTS = 2
"""The number of attempts at a shard before crashes of its workers become an error."""
_SECONDS_TO_END = 10


def make_shards(
    job: ShardJob, missing: Sequence[int], recipe: Recipe, devices: Sequence[str | None], advance: Advance
) -> Iterator[int]:
    """Make shards of a job in worker processes, and yield the number of each as soon as it is published.

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
    return _Pool(job, missing, recipe, advance).run(devices[: len(missing)])


class _Worker:
    """One worker process, the shards that it is making, and the units of them that it has reported."""

    def __init__(self, job: ShardJob, recipe: Recipe, devices: str | None) -> None:
        self.devices = devices
        self.shards: list[int] = []
        self.reported = 0
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

    def begin(self, shard: int | None) -> None:
        """Send the number of the next shard; None: there is no other."""
        if shard is not None:
            self.shards.append(shard)
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
        self.workers: list[_Worker] = []

    def run(self, devices: Sequence[str | None]) -> Iterator[int]:
        try:
            for visible in devices:
                self._start(visible)
            while self.left:
                wait([worker.connection for worker in self.workers], timeout=1)
                for worker in list(self.workers):
                    for kind, content in worker.messages():
                        self._handle(worker, kind, content)
                        if kind == "made":
                            yield content
        finally:
            _end([worker.process for worker in self.workers])

    def _start(self, devices: str | None) -> None:
        self.workers.append(_Worker(self.job, self.recipe, devices))

    def _handle(self, worker: _Worker, kind: str, content: Any) -> None:
        match kind:
            case "units":
                worker.reported += content
                self.advance(content)
            case "next":
                worker.begin(self.waiting.popleft() if self.waiting else None)
            case "made":
                self.left -= 1
                worker.shards.remove(content)
                worker.reported -= self.job.units[content]
            case "failed":
                raise _as_exception(content)
            case "crashed":
                self.workers.remove(worker)
                if worker.shards:
                    self._retry(worker, content)
                if self.waiting:
                    self._start(worker.devices)

    def _retry(self, worker: _Worker, exit_code: int | None) -> None:
        self.crashes.update(worker.shards)
        failed = [shard for shard in worker.shards if self.crashes[shard] >= ATTEMPTS]
        if failed:
            names = ", ".join(self.job.shards[shard].path.name for shard in failed)
            raise RunError(
                f"{self.job.title}: {ATTEMPTS} workers have ended while making {names}, the last"
                f" {exit_in_words(exit_code)}; every finished shard is kept."
                f" Lower workers.{self.job.kind} or the memory of one engine (sampling.batch_tokens,"
                " training.pack_tokens, an oracle's batch), then run the same command again to continue"
            )
        self.advance(-worker.reported)
        self.waiting.extendleft(reversed(worker.shards))


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
        try:
            for number in job.make_each(
                _numbers(connection),
                models,
                lambda count, note="": connection.send(("units", count)),
            ):
                connection.send(("made", number))
        except Exception as error:
            connection.send(("failed", _portable(error)))
        connection.recv()  # the other side ends this process when all shards are made


def _numbers(connection: Connection) -> Iterator[int]:
    """The numbers of the shards that this worker is to make, each of which it asks for when it has room for it."""
    while True:
        connection.send(("next", None))
        number = connection.recv()
        if number is None:
            return
        yield number


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
