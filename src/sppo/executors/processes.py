"""Worker processes on one machine, which make the shards of one job after another with models that each loads once.

They are kept for the whole run, and with them what they have imported, their oracles, and an engine that outlives its sampler
(:mod:`sppo.sampling.vllm_engine`). After each job they unload the policy, like the run's own process. On GPUs they end with the
job, because whatever comes next needs the memory.

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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Task:
    """What a worker is told of a job: the job, the recipe whose models it loads, and the number of torch's threads."""

    job: ShardJob
    recipe: Recipe
    threads: int | None


class WorkerPool:
    """Worker processes, each started when a job first needs it, which then wait for the next job.

    They hold memory, so :meth:`end` has to be called.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    @property
    def processes(self) -> list[int]:
        """The ids of the processes."""
        return [pid for worker in self._workers if (pid := worker.process.pid) is not None]

    def make(
        self,
        job: ShardJob,
        missing: Sequence[int],
        recipe: Recipe,
        devices: Sequence[str | None],
        advance: Advance,
    ) -> Iterator[int]:
        """Make shards of a job in worker processes, and yield the number of each as soon as it is published.

        Every worker has unloaded its policy when the iterator ends. One that does not come to its end, because a shard has
        failed or the caller has closed it, ends the workers.

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
        devices = devices[: len(missing)]
        task = _Task(job, recipe, _threads())
        progress = _Progress(job, missing, len(devices), advance)
        is_finished = False
        try:
            for visible in devices:
                self._begin(task, visible)
            while working := [worker for worker in self._workers if worker.is_working]:
                wait([worker.connection for worker in working], timeout=1)
                for worker in working:
                    for kind, content in worker.messages():
                        if kind == "crashed":
                            self._workers.remove(worker)
                        progress.handle(worker, kind, content)
                        if kind == "crashed" and progress.waiting:
                            self._begin(task, worker.devices)
                        if kind == "made":
                            yield content
            is_finished = True
        finally:
            if not is_finished or any(visible is not None for visible in devices):
                self.end()

    def _begin(self, task: _Task, devices: str | None) -> None:
        """Hand a job to a worker that waits for one on the devices, or else to a new one."""
        for worker in list(self._workers):
            if not worker.is_working and not worker.process.is_alive():
                self._workers.remove(worker)
        idle = [worker for worker in self._workers if not worker.is_working and worker.devices == devices]
        if not idle:
            idle.append(_Worker(devices))
            self._workers += idle
        idle[0].begin_job(task)

    def end(self) -> None:
        """End all workers, also those that are at work."""
        processes = [worker.process for worker in self._workers]
        self._workers.clear()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_SECONDS_TO_END)
            if process.is_alive():
                process.kill()
                process.join()


class _Worker:
    """One worker process.

    Attributes:
        devices: its CUDA_VISIBLE_DEVICES; None leaves it as in this process.
        is_working: whether it has a job, and has not yet unloaded the job's policy.
        shards: the shards that it is making.
        reported: the units of them that it has reported.
    """

    def __init__(self, devices: str | None) -> None:
        self.devices = devices
        self.is_working = False
        self.shards: list[int] = []
        self.reported = 0
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, devices), name="sppo worker")
        with _interrupts_blocked():  # this process handles a Ctrl-C and ends the workers
            self.process.start()
        theirs.close()

    def begin_job(self, task: _Task) -> None:
        """Send a job."""
        self.is_working, self.reported = True, 0
        self._send(task)

    def begin(self, shard: int | None) -> None:
        """Send the number of the next shard; None: the job has no other."""
        if shard is not None:
            self.shards.append(shard)
        self._send(shard)

    def _send(self, content: Any) -> None:
        with contextlib.suppress(OSError):  # it has crashed, which `messages` reports
            self.connection.send(content)

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


class _Progress:
    """How far the workers have come with a job.

    Attributes:
        waiting: the shards that no worker is making yet.
    """

    def __init__(self, job: ShardJob, missing: Sequence[int], workers: int, advance: Advance) -> None:
        self.job, self.advance = job, advance
        self.waiting = deque(missing)
        self._left = len(missing)
        self._crashes: Counter[int] = Counter()
        self._most_early_crashes = ATTEMPTS * workers
        self._early_crashes = 0  # of workers that had not begun a shard

    def handle(self, worker: _Worker, kind: str, content: Any) -> None:
        """Take in what a worker says.

        Raises:
            RunError: workers have crashed too often.
            Exception: the error of a shard that has failed.
        """
        match kind:
            case "units":
                worker.reported += content
                self.advance(content)
            case "next":
                worker.begin(self.waiting.popleft() if self.waiting else None)
            case "made":
                self._left -= 1
                worker.shards.remove(content)
                worker.reported -= self.job.units[content]
            case "failed":
                if (
                    self._left
                ):  # an engine that does not start where all shards are made fails in the next job
                    raise _as_exception(content)
            case "idle":
                worker.is_working = False
            case "crashed" if worker.shards:
                self._retry(worker, content)
            case "crashed" if self._left:
                self._early_crashes += 1
                if self._early_crashes == self._most_early_crashes:
                    raise self._error(self._early_crashes, "before they began a shard", content)

    def _retry(self, worker: _Worker, exit_code: int | None) -> None:
        self._crashes.update(worker.shards)
        failed = [shard for shard in worker.shards if self._crashes[shard] >= ATTEMPTS]
        if failed:
            names = ", ".join(self.job.shards[shard].path.name for shard in failed)
            raise self._error(ATTEMPTS, f"while making {names}", exit_code)
        self.advance(-worker.reported)
        self.waiting.extendleft(reversed(worker.shards))

    def _error(self, workers: int, when: str, exit_code: int | None) -> RunError:
        return RunError(
            f"{self.job.title}: {workers} workers have ended {when}, the last {exit_in_words(exit_code)}; every finished"
            f" shard is kept. Lower workers.{self.job.kind} or the memory of one engine (sampling.batch_tokens,"
            " training.pack_tokens, an oracle's batch), then run the same command again to continue"
        )


def exit_in_words(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        cause = ", as the kernel does when the memory is full" if name == "SIGKILL" else ""
        return f"by the signal {name}{cause}"
    return f"with exit code {code}"


def _serve(connection: Connection, devices: str | None) -> None:
    """Make the shards of the jobs that arrive; this is the main function of a worker."""
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    models: Models | None = None
    before: tuple[Recipe, int | None] | None = None
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                task: _Task = connection.recv()
                if models is None or before != (task.recipe, task.threads):
                    models, before = Models(task.recipe, task.threads), (task.recipe, task.threads)
                _make(connection, task.job, models)
    finally:
        if models is not None:
            models.release()  # some engines run in processes of their own


def _make(connection: Connection, job: ShardJob, models: Models) -> None:
    """Make the shards of a job whose numbers arrive, and unload the policy."""
    try:
        for number in job.make_each(
            _numbers(connection),
            models,
            lambda count, note="": connection.send(("units", count)),
        ):
            connection.send(("made", number))
    except Exception as error:
        connection.send(("failed", _portable(error)))
    models.release()
    connection.send(("idle", None))


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
