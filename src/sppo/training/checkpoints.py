"""Checkpoints inside the training stage: an interrupted training goes on where it was and ends with the same weights.

The Trainer of transformers writes and reads them: weights, optimiser, schedule and random numbers. The order of the
prompts depends on the seed and the step alone and needs no state. This module says when a checkpoint is due and which
may be used: one counts only when its seal is there, which is written last and holds the identity of the training and
the digest of every file.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sppo.rundir import storage
from sppo.rundir.shards import file_digest, replacing
from sppo.training import CHECKPOINTS_KEPT, TrainingJob, processes
from sppo.training.interruption import Interruption

FORMAT = 1
"""Raised whenever what is stored changes: older checkpoints are then not used."""
AUTO_SECONDS, AUTO_SHARE = 60.0, 0.05
"""For `auto`: the least seconds between checkpoints, and the largest share of the time spent on writing them."""
_SEAL = "sppo.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that the Trainer wrote after `step` optimiser steps."""

    folder: Path
    step: int


def identity(job: TrainingJob) -> str:
    """SHA-256 of everything that the trained weights depend on, the number of processes included."""
    # Left out: paths, which a run folder that was moved would change, and what only reports or resumes. The policy is
    # in `opponent`, its fingerprint; the shards count by their content.
    values = json.loads(job.to_json())
    for name in (
        "policy",
        "model",
        "revision",
        "output",
        "work",
        "metrics",
        "report_to",
        "run_name",
        "checkpoint",
        "begun",
    ):
        del values[name]
    values["shards"] = [file_digest(Path(shard)) for shard in job.shards]
    devices = job.settings.devices  # a number is the run's own, which may span machines
    count = processes(job.settings) if devices == "auto" else devices
    values["settings"] = job.settings.result_settings() | {"devices": count}
    return hashlib.sha256(json.dumps([FORMAT, values], sort_keys=True).encode()).hexdigest()


def latest(job: TrainingJob, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint in the job's work folder that the same training wrote.

    Args:
        job: the training.
        say: receives a message for each newer checkpoint that cannot be used, with the reason.
    """
    expected = identity(job)
    for checkpoint in _all(Path(job.work)):
        fault = _fault(checkpoint.folder, expected)
        if fault is None:
            return checkpoint
        say(f"the checkpoint after step {checkpoint.step} is not used: {fault}")
    return None


def resumed(job: TrainingJob, say: Callable[[str], None]) -> TrainingJob:
    """The job, set to go on from its latest checkpoint if there is one."""
    checkpoint = latest(job, say)
    if checkpoint is None:
        return job
    say(f"training goes on from the checkpoint after step {checkpoint.step} of {job.steps.kept}")
    return dataclasses.replace(job, checkpoint=str(checkpoint.folder), begun=checkpoint.step)


def seal(folder: Path, training: str) -> None:
    """Mark a checkpoint as whole and as belonging to a training."""
    # Written last, under a temporary name that is synced and renamed: where there is a seal, everything that it names was
    # written before it. Digests tell what a power failure or a full disk did to the files afterwards.
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _SEAL)
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter's lock
        digests = pool.map(file_digest, files)
    described = {str(file.relative_to(folder)): digest for file, digest in zip(files, digests, strict=True)}
    with replacing(folder / _SEAL) as stream:
        stream.write(json.dumps({"training": training, "files": described}, indent=2).encode())


def keep_newest(work: Path, training: str, count: int, below: int) -> None:
    """Remove all checkpoints but the `count` newest of this training from before step `below`."""
    for checkpoint in _all(work):
        own = (_read_seal(checkpoint.folder) or {}).get("training") == training
        if own and checkpoint.step < below and count > 0:
            count -= 1
        else:
            storage.remove(checkpoint.folder)


def _all(work: Path) -> Iterator[Checkpoint]:
    """All folders named like a checkpoint, the newest first."""
    checkpoints = []
    for folder in work.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if folder.is_dir() and step.isascii() and step.isdigit():
            checkpoints.append(Checkpoint(folder, int(step)))
    yield from sorted(checkpoints, key=lambda checkpoint: -checkpoint.step)


def _fault(folder: Path, training: str) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
    content = _read_seal(folder)
    if content is None:
        return "it was not written to its end"
    if content["training"] != training:
        return "it is of another training (recipe, data or number of processes)"
    for name, digest in content["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return f"its file {name} is not as it was written"
    return None


def _read_seal(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(content, dict) and isinstance(content.get("files"), dict) and "training" in content
    return content if whole else None


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Make the Trainer write a checkpoint when one is due, seal it, and end an interrupted training after it.

    Args:
        job: the training; its `settings.checkpoint_steps` says when a checkpoint is due.
        interruption: whether this process has been asked to end.
    """

    def __init__(self, job: TrainingJob, interruption: Interruption) -> None:
        self.work = Path(job.work)
        self.every = job.settings.checkpoint_steps
        self.training = identity(job)
        self.interruption = interruption
        self.ends = False
        self.cost = 0.0
        self.begin = self.end = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide, together with all processes, whether a checkpoint is due."""
        # Clocks and signals differ between processes, but writing a checkpoint is collective: if any process wants it, all
        # write it. The maximum over processes is the common answer.
        due = state.global_step < state.max_steps and self._is_due(state.global_step)
        said = torch.tensor([int(due), self.interruption.number or 0], device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        due, number = bool(said[0].item()), int(said[1].item())
        self.ends = number != 0  # a signal that arrives later is seen by all after the next step
        if number:
            self.interruption.number = number
        if due or number:
            self.begin = time.monotonic()
            if (
                state.is_world_process_zero
            ):  # before the new one is written, so that the disk never holds more
                keep_newest(self.work, self.training, CHECKPOINTS_KEPT - 1, state.global_step)
            _wait_for_all()
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint that the Trainer has just written."""
        folder = self.work / f"checkpoint-{state.global_step}"
        storage.publish(folder)  # each machine uploads its part
        _wait_for_all()
        if state.is_world_process_zero:
            storage.fetch(folder)
            seal(folder, self.training)
        _wait_for_all()
        self.end = time.monotonic()
        self.cost = self.end - self.begin
        if self.ends:
            self.interruption.end()

    def _is_due(self, step: int) -> bool:
        if self.every == "auto":
            return time.monotonic() - self.end > max(AUTO_SECONDS, self.cost / AUTO_SHARE)
        return self.every is not None and step % self.every == 0


def _wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
