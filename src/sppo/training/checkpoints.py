"""Checkpoints inside the training stage: an interrupted training goes on where it was and ends with the same weights.

transformers' Trainer writes and reads them: weights, optimiser, schedule and random numbers (the order of the
prompts depends on the step alone). Here is when one is due, and which of them may be used: a checkpoint counts
when its seal is there, which is written last and names the training that it belongs to and every file's digest.
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
"""`auto`: not before so many seconds, and at most this share of the time goes into checkpoints."""
_SEAL = "sppo.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that the Trainer wrote after so many optimiser steps."""

    folder: Path
    step: int


def identity(job: TrainingJob) -> str:
    """SHA-256 of all that a training's weights depend on, the number of processes included."""
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
    """The newest checkpoint in the job's work folder that this very training wrote, whole.

    Args:
        job: what is to be trained.
        say: told of each newer one that cannot be used, and why.
    """
    expected = identity(job)
    for checkpoint in _all(Path(job.work)):
        fault = _fault(checkpoint.folder, expected)
        if fault is None:
            return checkpoint
        say(f"the checkpoint after step {checkpoint.step} is not used: {fault}")
    return None


def resumed(job: TrainingJob, say: Callable[[str], None]) -> TrainingJob:
    """The job as it goes on from its latest checkpoint, if there is one."""
    found = latest(job, say)
    if found is None:
        return job
    say(f"training goes on from the checkpoint after step {found.step} of {job.steps.kept}")
    return dataclasses.replace(job, checkpoint=str(found.folder), begun=found.step)


def seal(folder: Path, training: str) -> None:
    """Say that a checkpoint is whole and which training it belongs to."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _SEAL)
    with ThreadPoolExecutor(4) as pool:  # digests are computed without the interpreter's lock
        digests = pool.map(file_digest, files)
    described = {str(file.relative_to(folder)): digest for file, digest in zip(files, digests, strict=True)}
    with replacing(folder / _SEAL) as stream:
        stream.write(json.dumps({"training": training, "files": described}, indent=2).encode())


def keep_newest(work: Path, training: str, count: int, below: int) -> None:
    """Remove all checkpoints but this training's newest ones before a step."""
    for checkpoint in _all(work):
        own = (_read_seal(checkpoint.folder) or {}).get("training") == training
        if own and checkpoint.step < below and count > 0:
            count -= 1
        else:
            storage.remove(checkpoint.folder)


def _all(work: Path) -> Iterator[Checkpoint]:
    """Whatever is named like a checkpoint, the newest first."""
    found = []
    for folder in work.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if folder.is_dir() and step.isascii() and step.isdigit():
            found.append(Checkpoint(folder, int(step)))
    yield from sorted(found, key=lambda checkpoint: -checkpoint.step)


def _fault(folder: Path, training: str) -> str | None:
    """Why a checkpoint cannot be used."""
    found = _read_seal(folder)
    if found is None:
        return "it was not written to its end"
    if found["training"] != training:
        return "it is of another training (recipe, data or number of processes)"
    for name, digest in found["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return f"its file {name} is not as it was written"
    return None


def _read_seal(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("files"), dict) and "training" in found
    return found if whole else None


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Lets the Trainer write a checkpoint when one is due, seals it, and ends an interrupted training after it.

    Args:
        job: what is trained; its `settings.checkpoint_steps` says when.
        interruption: of this process.
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
        """All processes agree on whether a checkpoint is due."""
        due = state.global_step < state.max_steps and self._is_due(state.global_step)
        said = torch.tensor([int(due), self.interruption.number or 0], device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        due, number = bool(said[0].item()), int(said[1].item())
        self.ends = number != 0  # a signal that comes from here on is seen after the next step, by all
        if number:
            self.interruption.number = number
        if due or number:
            self.begin = time.monotonic()
            if state.is_world_process_zero:  # the new one included, there are never more on the disk
                keep_newest(self.work, self.training, CHECKPOINTS_KEPT - 1, state.global_step)
            _wait_for_all()
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer has written a checkpoint."""
        folder = self.work / f"checkpoint-{state.global_step}"
        storage.publish(folder)  # of every machine its part
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
