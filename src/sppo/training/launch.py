"""Train with one process per device: the run's process starts `python -m sppo.training.launch COUNT JOB`.

That process is torch's launcher, which starts the workers and ends all of them when one fails. The launcher chooses and
holds its ports, so that two runs on one machine do not collide.
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

from sppo.progress import Advance
from sppo.reading import parse, read_mapping
from sppo.rundir import storage
from sppo.training import TrainingJob, loss_text
from sppo.training.interruption import NOTICE

_END = signal.SIGUSR1
"""The signal that makes the launcher interrupt its workers; the kernel sends it when the run's process dies."""
SHUTDOWN_SECONDS = 600
"""The time that an interrupted worker has to finish its step and write a checkpoint."""


def train_in_processes(job: TrainingJob, count: int, on_step: Advance, say: Callable[[str], None]) -> None:
    """Run a job in `count` processes, which end when this process ends.

    Raises:
        sppo.training.examples.TrainingError: a worker has raised it.
        RuntimeError: a worker failed or was killed.
    """
    import torch

    torch.cuda.empty_cache()  # the workers need the memory that sampling has left allocated
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    for file in work.glob("failure*.json"):
        file.unlink()
    job_file = work / "job.json"
    job_file.write_text(job.to_json(), encoding="utf-8")
    log = work / "processes.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sppo.training.launch", str(count), str(job_file)],
            env=_environment(count),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal sends Ctrl-C to this process only, which passes it on
            preexec_fn=lambda: end_with_the_parent(_END),
        )
        with steps_reported(job, on_step):
            code = _wait(process, say if job.settings.checkpoint_steps is not None else lambda text: None)
    if code != 0:
        _raise_failure(work, count, code, log)


def end_with_the_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies, even if the parent is killed."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def _environment(count: int) -> dict[str, str]:
    # These variables can belong to a launcher that has started this process, or can be set for another purpose.
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
            process.kill()  # the kernel then signals the workers
            process.wait()
        raise


@contextlib.contextmanager
def steps_reported(job: TrainingJob, on_step: Advance) -> Iterator[None]:
    """Within the block, call `on_step` for the steps that appear in the metrics file."""
    finished = threading.Event()
    thread = threading.Thread(target=_report_steps, args=(job, finished, on_step), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _report_steps(job: TrainingJob, finished: threading.Event, on_step: Advance) -> None:
    metrics = Path(job.metrics)
    reported = job.begun
    last = False
    while not last:
        last = finished.wait(0.5)
        steps, loss = [reported], ""
        with contextlib.suppress(
            storage.StorageError
        ):  # the progress bar waits until the storage answers again
            storage.fetch(metrics)
        if metrics.is_file():
            for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError, AttributeError):  # an incomplete line
                    record = parse(line)
                    steps.append(int(record.get("step", 0)))
                    loss = loss_text(record) or loss
        if max(steps) > reported:
            on_step(max(steps) - reported, loss)
            reported = max(steps)


def _raise_failure(work: Path, count: int, code: int, log: Path) -> None:
    """Raise an error that gives the cause: a worker's exception, a worker that was killed, or the end of the log."""
    failures = [read_mapping(path) for path in sorted(work.glob("failure-*.json"))]
    for failure in failures:  # the other workers fail as a consequence
        if failure["kind"] == "TrainingError":
            from sppo.training.examples import TrainingError

            raise TrainingError(failure["message"])
    exit_codes: Mapping[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        exit_codes = read_mapping(work / "failures.json")
    for rank, exit_code in exit_codes.items():
        if exit_code == -signal.SIGKILL:
            raise RuntimeError(
                f"training: process {rank} of {count} was killed by SIGKILL (exit code -9), as the kernel does when"
                " the machine runs out of memory; lower training.devices or training.pack_tokens, or set"
                " training.gradient_checkpointing or training.sharding"
            )
    if failures:
        raise RuntimeError(f"training on {count} processes failed:\n{failures[0]['traceback']}")
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
    raise RuntimeError(f"training on {count} processes failed with exit code {code}:\n{tail}")


def main(count: str, job_file: str) -> None:
    """Start the workers and wait for them; write their exit codes beside the job file if any fails."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    signal.signal(_END, _interrupt_once)
    try:
        run.main(["--standalone", f"--nproc-per-node={count}", "-m", "sppo.training.worker", job_file])
    except ChildFailedError as error:
        exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        (Path(job_file).parent / "failures.json").write_text(json.dumps(exit_codes), encoding="utf-8")
        raise


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main(*sys.argv[1:])
