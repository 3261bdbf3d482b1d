"""This machine as the place where shards are computed: in this process, or in worker processes.

The stages hand over jobs (:class:`sppo.stages.jobs.ShardJob`) and training; what an executor does with them moves no
result. :class:`Local` is this machine; :mod:`sppo.executors.ray` is Ray.
"""

import os
from collections.abc import Callable, Sequence
from typing import Protocol, get_args

from sppo.progress import Terminal
from sppo.recipe import Recipe, RecipeError
from sppo.stages.jobs import Advance, Kind, ShardJob
from sppo.stages.models import Models
from sppo.training import TrainingJob


class Executor(Protocol):
    """A place where jobs are computed and policies are trained."""

    def check(self) -> None:
        """Refuse, before anything is computed, what cannot work.

        Raises:
            ValueError: the message says what to change.
        """
        ...

    def run(
        self,
        jobs: Sequence[ShardJob],
        models: Models,
        terminal: Terminal,
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make every shard of the jobs that is missing, damaged or computed from other sources.

        Args:
            jobs: in order; shard number i of a job may read shard number i of the jobs before it.
            models: of this process.
            terminal: where progress is shown.
            on_made: called for each job, in order, when all of its shards are there.

        Raises:
            Exception: of the first shard that fails; every shard that was finished is kept.
        """
        ...

    def training_devices(self) -> int:
        """The number of processes that the recipe's `training.devices` stands for."""
        ...

    def train(self, job: TrainingJob, on_step: Advance, say: Callable[[str], None]) -> None:
        """Train pi_{t+1}, like :func:`sppo.training.train`, wherever the executor chooses."""
        ...


class Local:
    """This machine: this process alone, or as many worker processes as the recipe says.

    Args:
        recipe: of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def check(self) -> None:
        """Refuse what this machine cannot compute, before anything is computed.

        Raises:
            RecipeError: more workers than the GPUs of this machine allow.
        """
        for kind in get_args(Kind):
            self.workers(kind)

    def workers(self, kind: Kind) -> int:
        """How many processes make the shards of a stage.

        Raises:
            RecipeError: more than this machine's GPUs allow.
        """
        return count_workers(self.recipe, kind, count_gpus())

    def run(
        self,
        jobs: Sequence[ShardJob],
        models: Models,
        terminal: Terminal,
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make the missing shards of the jobs, one job after another; see :meth:`Executor.run`."""
        for job in jobs:
            with terminal.bar(job.title, sum(job.units), job.unit) as advance:
                missing = missing_shards(job)
                advance(sum(job.units) - sum(job.units[number] for number in missing))
                count = self.workers(job.kind)
                if missing and count > 1:
                    from sppo.executors.processes import make_shards

                    devices = visible_devices(count, devices_of_an_engine(self.recipe, job.kind))
                    make_shards(job, missing, models.recipe, devices, advance)
                else:
                    for number in missing:
                        job.make(number, models, advance)
            models.release()
            on_made(job)

    def training_devices(self) -> int:
        """The number of processes that `training.devices` stands for on this machine."""
        from sppo.training import processes

        return processes(self.recipe.training)

    def train(self, job: TrainingJob, on_step: Advance, say: Callable[[str], None]) -> None:
        """Train in this process, or in as many processes as the recipe says."""
        from sppo.training import train

        train(job, on_step, say)


def missing_shards(job: ShardJob) -> list[int]:
    """The numbers of the shards that have to be made."""
    return [number for number, shard in enumerate(job.shards) if not shard.is_whole()]


def count_workers(recipe: Recipe, kind: Kind, gpus: int, machines: int = 1) -> int:
    """The number of workers that a stage of a recipe gets, given the number of GPUs; without GPUs, on the CPU.

    Args:
        recipe: whose `workers` it is.
        kind: of stage.
        gpus: the number of GPUs of all machines together.
        machines: the number of machines; `auto` means one worker on each where there are no GPUs.

    Raises:
        RecipeError: `workers` asks for more than the GPUs allow.
    """
    asked: int | str = getattr(recipe.workers, kind)
    if not computes_with_a_model(recipe, kind):
        return machines if asked == "auto" else int(asked)
    each = devices_of_an_engine(recipe, kind)
    if asked == "auto":
        if gpus and gpus < each:
            raise RecipeError(f"{kind}: one engine spans {each} GPUs, but there are {gpus}")
        return gpus // each if gpus else machines
    if gpus and int(asked) * each > gpus:
        of = "" if each == 1 else f" of {each} GPUs each"
        raise RecipeError(
            f"workers.{kind}: {asked} models{of}, but there are {gpus} GPUs; lower it, or `auto`"
        )
    return int(asked)


def devices_of_an_engine(recipe: Recipe, kind: Kind) -> int:
    """The number of GPUs that one worker of a stage needs."""
    return recipe.sampling.devices if kind == "sample" else 1


def computes_with_a_model(recipe: Recipe, kind: Kind) -> bool:
    """Whether a worker of a stage holds a model of its own, as it does not where the model is behind a server."""
    if kind == "annotate":
        return recipe.oracle is not None and recipe.oracle.holds_a_model
    return kind != "sample" or recipe.sampling.holds_a_model


def visible_devices(count: int, each: int) -> list[str | None]:
    """The value of CUDA_VISIBLE_DEVICES for each of `count` workers; None on a machine without GPUs."""
    gpus = count_gpus()
    if not gpus:
        return [None] * count
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(gpus)]
    # more workers than that compute nothing on a GPU (an oracle without a model): they share
    groups = [",".join(names[start : start + each]) for start in range(0, gpus - each + 1, each)]
    return [groups[number % len(groups)] for number in range(count)]


def count_gpus() -> int:
    """The number of GPUs of this machine."""
    import torch

    return int(torch.cuda.device_count())
