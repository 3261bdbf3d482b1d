"""The interface of every stage: its settings, the inputs that it reads, its work, and what it publishes.

Planning and running use the same object: its fingerprint tells whether the run folder holds its result already, and
:meth:`Stage.make` computes what is missing.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sppo.rundir.folder import StageFolder
from sppo.stages.jobs import Kind, ShardJob, Work
from sppo.stages.run import Run


class Stage(ABC):
    """One stage of one iteration.

    Args:
        run: the run.
        iteration: t; 0 for what belongs to the base policy and the held-out prompts.
    """

    name: ClassVar[str]
    folder_name: ClassVar[str]
    """The name of the stage's folder within the iteration's folder."""
    record_name: ClassVar[str | None] = None
    """The name of the record that says that the stage is done; None: the stage's name with the ending .json."""

    def __init__(self, run: Run, iteration: int) -> None:
        self.run = run
        self.iteration = iteration

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The values of the recipe, and the identities of files and oracles, that the result depends on."""

    @abstractmethod
    def reads(self) -> Sequence[str]:
        """The fingerprints of the stages and policies that the stage reads."""

    @abstractmethod
    def make(self) -> StageFolder:
        """Compute and publish what is not done yet, and return where the result lies."""

    @cached_property
    def files(self) -> StageFolder:
        """The folder of the result, with the fingerprint of what it must have been computed from."""
        return self.run.folder.stage(
            self.name,
            self.iteration,
            self.settings(),
            self.reads(),
            folder=self.folder_name,
            record=self.record_name,
        )

    def all_files(self) -> list[StageFolder]:
        """The folders of this stage and of its parts, in the order in which they are made."""
        return [self.files]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what the result must have been computed from."""
        return self.files.fingerprint

    def is_done(self) -> bool:
        """Whether the result is there, whole, and computed from what it must be computed from."""
        return self.files.is_done()

    def record(self) -> dict[str, Any]:
        """The record that the stage has published.

        Raises:
            RunError: the stage is not done.
        """
        return self.files.read_record()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Log the time that passes inside the context as this stage's."""
        begin, finished = time.perf_counter(), False
        try:
            yield
            finished = True
        finally:
            seconds = time.perf_counter() - begin
            line = {"stage": self.timed_as, "seconds": seconds, "finished": finished}
            self.run.folder.log(self.iteration, line)

    @property
    def timed_as(self) -> str:
        """The name of the stage that the time is counted for."""
        return self.name


class ShardedStage(Stage):
    """A stage that is made shard by shard, in the processes that the executor chooses."""

    kind: ClassVar[Kind]
    """The key of the recipe's `workers` that says how many processes make the shards."""
    unit: ClassVar[str]
    """What the progress bar counts."""

    @abstractmethod
    def sources(self) -> list[list[Path]]:
        """The files that each shard is computed from."""

    @abstractmethod
    def units(self) -> list[int]:
        """The number of units in each shard."""

    @abstractmethod
    def work(self) -> Work:
        """The work that makes the rows of one shard."""

    @abstractmethod
    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """The figures of the finished shards that go into the record."""

    def job(self) -> ShardJob:
        """The shards as a job for the executor."""
        shards = self.files.plan_shards(self.sources())
        return ShardJob(self.files.title, self.unit, self.kind, self.work(), shards, self.units())

    def make(self) -> StageFolder:
        """Make the shards that are missing, and publish the stage."""
        make_together([self])
        return self.files

    def publish(self, job: ShardJob) -> None:
        """Write the record that says that the stage is done."""
        described = self.files.describe_shards(job.shards)
        self.files.publish(described, **self.summary([shard.path for shard in job.shards]))


def make_together(stages: Sequence[ShardedStage]) -> None:
    """Make and publish the stages that are not done; shard i of a stage may read shard i of the stages before it.

    If the executor can, it passes a shard to the next stage as soon as the stage before has made it.
    """
    waiting = [stage for stage in stages if not stage.is_done()]
    if not waiting:
        return
    run = waiting[0].run
    with contextlib.ExitStack() as clock:

        def on_made(job: ShardJob) -> None:
            waiting.pop(0).publish(job)
            clock.close()
            if waiting:
                clock.enter_context(waiting[0].timed())

        clock.enter_context(waiting[0].timed())
        jobs = [stage.job() for stage in waiting]
        run.executor.run([job for job in jobs if job.shards], run.models, run.terminal, on_made)
        for job in jobs:
            if not job.shards:  # the evaluation of the base compares nothing
                on_made(job)
