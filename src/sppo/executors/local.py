"""This machine as the place where shards are computed: in this process, or in worker processes."""

import os
from collections.abc import Callable, Sequence
from typing import get_args

from sppo.executors import Executor, missing_shards
from sppo.progress import Terminal
from sppo.recipe import Recipe, RecipeError
from sppo.stages.jobs import Kind, ShardJob
from sppo.stages.models import Models


class Local(Executor):
    """This machine: this process alone, or as many worker processes as the recipe's `workers` say."""

    def check(self) -> None:
        """Refuse an address, and more workers than the GPUs of this machine allow."""
        if self.address is not None:
            raise RecipeError(f"--on local:{self.address}: this machine takes no address; use --on local")
        for kind in get_args(Kind):
            count_workers(self.recipe, kind, count_gpus())

    def run(
        self,
        jobs: Sequence[ShardJob],
        models: Models,
        terminal: Terminal,
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make the missing shards of the jobs, one job after another."""
        for job in jobs:
            with terminal.bar(job.title, sum(job.units), job.unit) as advance:
                missing = missing_shards(job)
                advance(sum(job.units) - sum(job.units[number] for number in missing))
                count = count_workers(self.recipe, job.kind, count_gpus())
                if missing and count > 1:
                    from sppo.executors.processes import make_shards

                    devices = visible_devices(count, devices_of_an_engine(self.recipe, job.kind))
                    make_shards(job, missing, models.recipe, devices, advance)
                else:
                    for number in missing:
                        job.make(number, models, advance)
            models.release()
            on_made(job)


def count_workers(recipe: Recipe, kind: Kind, gpus: int, machines: int = 1) -> int:
    """The number of workers for a stage; without GPUs they compute on CPUs.

    Args:
        recipe: the recipe, whose `workers` are counted.
        kind: the kind of stage.
        gpus: the number of GPUs of all machines together.
        machines: the number of machines; without GPUs `auto` means one worker on each.

    Raises:
        RecipeError: `workers` asks for more than the GPUs allow.
    """
    asked: int | str = getattr(recipe.workers, kind)
    if not computes_with_a_model(recipe, kind):
        return machines if asked == "auto" else int(asked)
    devices = devices_of_an_engine(recipe, kind)
    if asked == "auto":
        if gpus and gpus < devices:
            raise RecipeError(f"{kind}: one engine spans {devices} GPUs, but there are {gpus}")
        return gpus // devices if gpus else machines
    if gpus and int(asked) * devices > gpus:
        size = "" if devices == 1 else f" of {devices} GPUs each"
        raise RecipeError(
            f"workers.{kind}: {asked} models{size}, but there are {gpus} GPUs; lower it, or use `auto`"
        )
    return int(asked)


def devices_of_an_engine(recipe: Recipe, kind: Kind) -> int:
    """The number of GPUs that one worker of a stage needs."""
    return recipe.sampling.devices if kind == "sample" else 1


def computes_with_a_model(recipe: Recipe, kind: Kind) -> bool:
    """Whether each worker of a stage holds a model; it holds none if the model is behind a server."""
    if kind == "annotate":
        return recipe.oracle is not None and recipe.oracle.holds_a_model
    return kind != "sample" or recipe.sampling.holds_a_model


def visible_devices(count: int, devices: int) -> list[str | None]:
    """The value of CUDA_VISIBLE_DEVICES for each of `count` workers; None on a machine without GPUs."""
    gpus = count_gpus()
    if not gpus:
        return [None] * count
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(gpus)]
    groups = [",".join(names[start : start + devices]) for start in range(0, gpus - devices + 1, devices)]
    # Workers share GPUs only if there are more workers than groups, and then they compute without a model.
    return [groups[number % len(groups)] for number in range(count)]


def count_gpus() -> int:
    """The number of GPUs of this machine."""
    import torch

    return int(torch.cuda.device_count())
