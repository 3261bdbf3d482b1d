"""Checkpoints inside the training stage: a resumed training ends with the same weights as an uninterrupted one.

The Trainer of transformers writes and reads the weights, the optimiser's state, the schedule and the random-number
states. The order of the prompts depends only on the seed and the step, and needs no state. This module decides when a
checkpoint is due and which checkpoints may be used: a checkpoint is valid only with its seal, a file that is written
last and holds the identity of the training and the digest of every other file.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sppo.reading import read_mapping
from sppo.rundir import storage
from sppo.rundir.shards import file_digest, replacing
from sppo.training import CHECKPOINTS_KEPT, TrainingJob, processes
from sppo.training.interruption import Interruption

FORMAT = 1
"""The version of the checkpoints' contents; checkpoints of another version are not used."""
AUTO_SECONDS, AUTO_SHARE = 60.0, 0.05
"""For `auto`: the shortest time between checkpoints, and the largest share of the time that may go into writing them."""
_SEAL = "sppo.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that the Trainer wrote after `step` optimiser steps."""

    folder: Path
    step: int


def identity(job: TrainingJob) -> str:
    """SHA-256 of everything that the trained weights depend on, including the number of processes."""
    # Paths are left out, because moving a run folder would change them, and so are values that only concern reports or
    # resuming. The policy is represented by its fingerprint, `opponent`, and the shards by their contents.
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
    devices = job.settings.devices  # a number counts processes of the whole run, which can span machines
    count = processes(job.settings) if devices == "auto" else devices
    values["settings"] = job.settings.result_settings() | {"devices": count}
    return hashlib.sha256(json.dumps([FORMAT, values], sort_keys=True).encode()).hexdigest()


def latest(job: TrainingJob, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint of this training in the job's work folder; None if there is none.

    Args:
        job: the training.
        say: receives a message for each newer checkpoint that cannot be used, with the reason.
    """
    training = identity(job)
    for checkpoint in _newest_first(Path(job.work)):
        reason = _reason_to_reject(checkpoint.folder, training)
        if reason is None:
            return checkpoint
        say(f"the checkpoint after step {checkpoint.step} is not used: {reason}")
    return None


def resumed(job: TrainingJob, say: Callable[[str], None]) -> TrainingJob:
    """The job, set to resume from its latest checkpoint if there is one."""
    checkpoint = latest(job, say)
    if checkpoint is None:
        return job
    say(f"training resumes from the checkpoint after step {checkpoint.step} of {job.steps.kept}")
    return dataclasses.replace(job, checkpoint=str(checkpoint.folder), begun=checkpoint.step)


def seal(folder: Path, training: str) -> None:
    """Mark a checkpoint as complete and as belonging to a training."""
    # The seal is written last, under a temporary name that is synced and renamed: when it exists, every file that it names
    # was written before it. The digests reveal damage by a power failure or a full disk.
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _SEAL)
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter's lock
        digests = pool.map(file_digest, files)
    described = {str(file.relative_to(folder)): digest for file, digest in zip(files, digests, strict=True)}
    with replacing(folder / _SEAL) as stream:
        stream.write(json.dumps({"training": training, "files": described}, indent=2).encode())


def keep_newest(work: Path, training: str, count: int, below: int) -> None:
    """Remove all checkpoints except this training's `count` newest ones from before step `below`."""
    for checkpoint in _newest_first(work):
        own = (_read_seal(checkpoint.folder) or {}).get("training") == training
        if own and checkpoint.step < below and count > 0:
            count -= 1
        else:
            storage.remove(checkpoint.folder)


def _newest_first(work: Path) -> list[Checkpoint]:
    """All folders that are named like a checkpoint, the newest first."""
    steps = ((folder, folder.name.removeprefix("checkpoint-")) for folder in work.glob("checkpoint-*"))
    checkpoints = [
        Checkpoint(folder, int(step))
        for folder, step in steps
        if folder.is_dir() and step.isascii() and step.isdigit()
    ]
    return sorted(checkpoints, key=lambda checkpoint: -checkpoint.step)


def _reason_to_reject(folder: Path, training: str) -> str | None:
    """The reason why a checkpoint cannot be used; None if it can."""
    content = _read_seal(folder)
    if content is None:
        return "it is incomplete"
    if content["training"] != training:
        return "it belongs to another training (a different recipe, data or number of processes)"
    for name, digest in content["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return f"its file {name} is missing or has changed since it was written"
    return None


def _read_seal(folder: Path) -> dict[str, Any] | None:
    try:
        content = read_mapping(folder / _SEAL)
    except (OSError, ValueError):
        return None
    whole = isinstance(content.get("files"), dict) and "training" in content
    return content if whole else None


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Tell the Trainer when to write a checkpoint, seal it, and end an interrupted training afterwards.

    Args:
        job: the training; `settings.checkpoint_steps` decides when a checkpoint is due.
        interruption: records the signal that asked this process to end.
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
        """Agree among all processes whether to write a checkpoint now."""
        # Clocks and signals differ between processes, but writing a checkpoint is collective: if any process wants one, all
        # must take part. The maximum over the processes is the decision that they share.
        due = state.global_step < state.max_steps and self._is_due(state.global_step)
        requests = torch.tensor([int(due), self.interruption.number or 0], device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(requests, torch.distributed.ReduceOp.MAX)
        due, number = bool(requests[0].item()), int(requests[1].item())
        self.ends = number != 0  # a signal that arrives later is shared after the next step
        if number:
            self.interruption.number = number
        if due or number:
            self.begin = time.monotonic()
            if state.is_world_process_zero:  # removed before the new one is written, to bound the disk space
                keep_newest(self.work, self.training, CHECKPOINTS_KEPT - 1, state.global_step)
            _wait_for_all()
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint that the Trainer has just written."""
        folder = self.work / f"checkpoint-{state.global_step}"
        storage.publish(folder)  # each machine uploads the files that it has written
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
