"""Places where the shards of stages are computed and policies are trained, one file each.

The stages hand over jobs (:class:`sppo.stages.jobs.ShardJob`) and training; the results do not depend on the place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from sppo import training
from sppo.policy import cpu_threads
from sppo.progress import Advance, Terminal
from sppo.recipe import Recipe, RecipeError, registry
from sppo.stages.jobs import ShardJob
from sppo.stages.models import Models
from sppo.training import TrainingJob


class Executor(ABC):
    """A place where jobs are computed and policies are trained; as a context manager it is connected to that place.

    A subclass says how the shards of jobs are made. Training runs on this machine unless the subclass says otherwise.

    Args:
        recipe: the run's recipe.
        run: the run's folder; None if jobs of no run are computed.
        address: the part after the name in `--on NAME:ADDRESS`.
    """

    def __init__(self, recipe: Recipe, run: Path | None = None, address: str | None = None) -> None:
        self.recipe, self.run_folder, self.address = recipe, run, address

    def use(self, recipe: Recipe) -> None:
        """Go on with the run's recipe, in which what it left to the run stands as the run has chosen it."""
        self.recipe = recipe

    def __enter__(self) -> Self:
        """Connect to the place."""
        return self

    def __exit__(self, *error: object) -> None:  # noqa: B027
        """Disconnect."""

    def check(self) -> None:  # noqa: B027
        """Refuse, before anything is computed, what cannot work.

        Raises:
            ValueError: the message says what to change.
        """

    @abstractmethod
    def run(
        self,
        jobs: Sequence[ShardJob],
        models: Models,
        terminal: Terminal,
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make every shard of the jobs that is missing, damaged or computed from other sources.

        Args:
            jobs: the jobs, in order; shard number i of a job may read shard number i of the jobs before it.
            models: the models of this process.
            terminal: where progress is shown.
            on_made: called for each job, in order, when all of its shards are there.

        Raises:
            Exception: the error of the first shard that fails; every finished shard is kept.
        """

    def cores(self) -> int:
        """The number of cores that a process which computes on a CPU may use."""
        return cpu_threads.cores()

    def training_devices(self) -> int:
        """The number of processes that the recipe's `training.devices` stands for."""
        return training.processes(self.recipe.training)

    def train(self, job: TrainingJob, on_step: Advance, say: Callable[[str], None]) -> None:
        """Train pi_{t+1}, like :func:`sppo.training.train`."""
        training.train(job, on_step, say)


def executor_at(place: str, recipe: Recipe, run: Path) -> Executor:
    """The executor for a place.

    Args:
        place: a registered name, or `NAME:ADDRESS`.
        recipe: the run's recipe.
        run: the run's folder.

    Raises:
        RecipeError: the name is unknown.
    """
    name, _, address = place.partition(":")
    try:
        executor: Executor = registry.load("executors", name)(recipe, run, address or None)
    except registry.UnknownName as error:
        raise RecipeError(f"--on {place}: {error}") from None
    return executor


def missing_shards(job: ShardJob) -> list[int]:
    """The numbers of the shards that have to be made."""
    return [number for number, shard in enumerate(job.shards) if not shard.is_whole()]
