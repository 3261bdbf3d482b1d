"""Training in one process for each device: `python -m sppo.training.launch COUNT JOB` under the run's own process.

The run's process starts torch's launcher, which starts the workers and ends them all when one fails. Ports are
chosen by the launcher, which holds them, so that two runs on one machine do not meet.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from sppo.rundir import storage
from sppo.training import TrainingJob
from sppo.training.interruption import NOTICE

_END = signal.SIGUSR1
"""Asks the launcher to interrupt its workers; sent by the kernel for each thread of a process that dies."""
SHUTDOWN_SECONDS = 600
"""How long an interrupted worker may take to finish its step and write a checkpoint."""


def train_in_processes(
    job: TrainingJob, count: int, on_step: Callable[[int], None], say: Callable[[str], None]
) -> None:
    """Run a job in so many processes, which end with this one.

    Raises:
        sppo.training.examples.TrainingError: as one of them raised it.
        RuntimeError: one of them failed, or was killed.
    """
    import torch

    torch.cuda.empty_cache()  # what this process sampled with; the others need the memory
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    for old in work.glob("failure*.json"):
        old.unlink()
    job_file = work / "job.json"
    job_file.write_text(job.to_json(), encoding="utf-8")
    log = work / "processes.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sppo.training.launch", str(count), str(job_file)],
            env=_environment(count),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C comes to this process alone, which passes it on
            preexec_fn=lambda: end_with_the_parent(_END),
        )
        with followed(job, on_step):
            code = _wait(process, say if job.settings.checkpoint_steps is not None else lambda text: None)
    if code != 0:
        _raise_failure(work, count, code, log)


def end_with_the_parent(number: signal.Signals) -> None:
    """This process gets the signal when the one that started it dies, even by a kill."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def _environment(count: int) -> dict[str, str]:
    # of a launcher that this process may itself be under, or that the user has set for another purpose
    foreign = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {
        **{name: value for name, value in os.environ.items() if name not in foreign},
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
    }


def _wait(process: subprocess.Popen[bytes], say: Callable[[str], None]) -> int:
    try:
        return process.wait()
    except BaseException:
        say(NOTICE)
        process.send_signal(_END)
        try:
            process.wait()
        except BaseException:
            process.kill()  # the workers are told by the kernel
            process.wait()
        raise


@contextlib.contextmanager
def followed(job: TrainingJob, on_step: Callable[[int], None]) -> Iterator[None]:
    """Reports the steps that the processes write down."""
    finished = threading.Event()
    follower = threading.Thread(target=_follow, args=(job, finished, on_step), daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()


def _follow(job: TrainingJob, finished: threading.Event, on_step: Callable[[int], None]) -> None:
    metrics = Path(job.metrics)
    seen = job.begun
    while True:
        last = finished.wait(0.5)
        steps = [0]
        with contextlib.suppress(storage.StorageError):  # the bar waits until it answers again
            storage.fetch(metrics)
        if metrics.is_file():
            for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError, AttributeError):  # a line half written
                    steps.append(int(json.loads(line).get("step", 0)))
        if max(steps) > seen:
            on_step(max(steps) - seen)
            seen = max(steps)
        if last:
            return


def _raise_failure(work: Path, count: int, code: int, log: Path) -> None:
    """Say why training failed: a process that was killed, what one raised, or the end of the log."""
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("failure-*.json"))]
    for failure in failures:  # the others fail because this one has
        if failure["kind"] == "TrainingError":
            from sppo.training.examples import TrainingError

            raise TrainingError(failure["message"])
    ended: Mapping[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        ended = json.loads((work / "failures.json").read_text(encoding="utf-8"))
    for rank, exit_code in ended.items():
        if exit_code == -signal.SIGKILL:
            raise RuntimeError(
                f"training: process {rank} of {count} was killed by SIGKILL (exit code -9), as the kernel does when"
                " the machine's memory runs out; lower training.devices or training.pack_tokens, or set"
                " training.gradient_checkpointing or training.sharding"
            )
    if failures:
        raise RuntimeError(f"training on {count} processes failed:\n{failures[0]['traceback']}")
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
    raise RuntimeError(f"training on {count} processes failed with exit code {code}:\n{tail}")


def main(count: str, job_file: str) -> None:
    """Start the workers and wait for them; how they ended is written down beside the job."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    signal.signal(_END, _interrupt_once)
    try:
        run.main(["--standalone", f"--nproc-per-node={count}", "-m", "sppo.training.worker", job_file])
    except ChildFailedError as error:
        ended = {rank: failure.exitcode for rank, failure in error.failures.items()}
        (Path(job_file).parent / "failures.json").write_text(json.dumps(ended), encoding="utf-8")
        raise


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main(*sys.argv[1:])
