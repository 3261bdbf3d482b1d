"""This machine as the place where shards are computed: in this process, or in worker processes."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Self, get_args

from sppo.executors import Executor, missing_shards
from sppo.executors.processes import WorkerPool
from sppo.progress import Advance, Terminal
from sppo.recipe import Recipe, RecipeError
from sppo.stages.jobs import Kind, ShardJob
from sppo.stages.models import Models
from sppo.training import TrainingJob


class Local(Executor):
    """This machine: this process alone, or as many worker processes as the recipe's `workers` say.

    Attributes:
        workers: the worker processes, which are there from the job that first needs them to the end of the context.
    """

    _models_of_thread: Models | None = None
    workers: WorkerPool | None = None

    def __enter__(self) -> Self:
        """Have room for worker processes."""
        self.workers = WorkerPool()
        return self

    def __exit__(self, *error: object) -> None:
        """End the worker processes."""
        if self.workers is not None:
            self.workers.end()
        self.workers = None

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
        """Make the missing shards. A job that computes without a model follows the job before shard by shard."""
        for group in [jobs] if self._run_side_by_side(jobs) else [[job] for job in jobs]:
            bars = [(job.title, sum(job.units), job.unit) for job in group]
            with terminal.bars(bars) as advances:
                missing = [missing_shards(job) for job in group]
                for job, numbers, advance in zip(group, missing, advances, strict=True):
                    advance(sum(job.units) - sum(job.units[number] for number in numbers))
                if len(group) == 1:
                    for _ in self._made(group[0], missing[0], models, advances[0]):
                        pass
                    models.release()
                    on_made(group[0])
                else:
                    self._pipeline(group, missing, models, advances, on_made)

    def _made(self, job: ShardJob, missing: Iterable[int], models: Models, advance: Advance) -> Iterator[int]:
        """Make shards in this process or in workers, and yield the number of each that is published."""
        count = count_workers(self.recipe, job.kind, count_gpus())
        if count == 1:
            return job.make_each(missing, models, advance)
        assert self.workers is not None, "worker processes need the executor's context"
        devices = visible_devices(count, devices_of_an_engine(self.recipe, job.kind))
        return self.workers.make(job, list(missing), models.recipe, devices, advance)

    def train(self, job: TrainingJob, on_step: Advance, say: Callable[[str], None]) -> None:
        """Train pi_{t+1} on this machine; worker processes that leave too little memory free end before."""
        from sppo.sampling.memory import has_room_to_keep

        if self.workers is not None and not has_room_to_keep():
            self.workers.end()
        super().train(job, on_step, say)

    def _run_side_by_side(self, jobs: Sequence[ShardJob]) -> bool:
        """Whether the second of two jobs only waits for a server or a function, so that it takes nothing from the first."""
        return (
            len(jobs) == 2
            and not computes_with_a_model(self.recipe, jobs[1].kind)
            and count_workers(self.recipe, jobs[1].kind, count_gpus()) == 1
        )

    def _pipeline(
        self,
        jobs: Sequence[ShardJob],
        missing: Sequence[Sequence[int]],
        models: Models,
        advances: Sequence[Advance],
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make the shards of two jobs, those of the second in a thread, each as soon as the first has made its sources."""
        made: SimpleQueue[int | None] = SimpleQueue()
        for number in set(missing[1]) - set(missing[0]):
            made.put(number)
        if self._models_of_thread is None:  # tokenizers and clients of servers are not shared between threads
            self._models_of_thread = Models(models.recipe)
        follower = _Follower(self._made(jobs[1], iter(made.get, None), self._models_of_thread, advances[1]))
        try:
            for number in self._made(jobs[0], missing[0], models, advances[0]):
                follower.raise_its_error()
                if number in missing[1]:
                    made.put(number)
            models.release()
            on_made(jobs[0])
        except BaseException:
            follower.is_stopped = True
            made.put(None)
            follower.join()  # after a Ctrl-C too: the interpreter may abort if it ends while a thread is at work
            raise
        made.put(None)
        follower.join()
        follower.raise_its_error()
        on_made(jobs[1])


class _Follower(threading.Thread):
    """A thread that makes shards until it is stopped, and keeps the error that ends it."""

    def __init__(self, made: Iterator[int]) -> None:
        super().__init__(daemon=True)
        self.made, self.is_stopped = made, False
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Make the shards."""
        try:
            for _ in self.made:
                if self.is_stopped:
                    break
        except BaseException as error:  # whatever it is, the main thread raises it
            self.error = error

    def raise_its_error(self) -> None:
        """Raise the error that has ended the thread, if there is one."""
        if self.error is not None:
            raise self.error


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
