"""A job of toy shards for the tests of worker processes; a module of its own, so that workers can import it."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sppo.executors.processes import WorkerPool
from sppo.oracle import OracleError
from sppo.recipe import parse
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import table
from sppo.rundir.tables import PREFERENCES
from sppo.stages.jobs import ShardJob, Work

SHARDS = 6
RECIPE = {
    "policy": {"model": "tinyworld"},
    "prompts": {"train": "tinyworld/train"},
    "sampling": {"max_new_tokens": 30},
    "oracle": {"type": "panel"},
}


def recipe(**changes):
    return parse(RECIPE, changes)


@dataclass(frozen=True)
class Toy(Work):
    """Rows that say which process made them; its shards can be told to kill that process, or to fail."""

    folder: Path
    kill: int = -1
    deaths: int = 0
    fail: int = -1
    seconds: float = 0.0

    def __call__(self, models, sources, advance):
        number = int(sources[0].name)
        (self.folder / f"begun-{number}-{os.getpid()}").touch()
        advance(1)
        time.sleep(self.seconds)
        if number == self.kill and len(list(self.folder.glob(f"begun-{number}-*"))) <= self.deaths:
            while len(list(self.folder.rglob("*.parquet"))) < SHARDS - 3:
                time.sleep(0.01)  # so that some are finished, whichever worker is the faster
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.fail:
            raise OracleError("the oracle's answer is nonsense", 3)
        advance(1)
        return table([{"prompt_id": f"{number}", "matrix": [[0.5]]}], PREFERENCES)


def toy_job(folder, work=Toy, **options):
    folder.mkdir(exist_ok=True)
    sources = [[folder / str(number)] for number in range(SHARDS)]
    for (path,) in sources:
        path.touch()
    stage = RunFolder(folder).stage("annotate", 1, {}, [], folder=".")
    return ShardJob(
        "toy", "halves", "annotate", work(folder, **options), stage.plan_shards(sources), [2] * SHARDS
    )


class ToyDeadOnArrival(Toy):
    """Kills its process before it takes a shard, as a model that does not fit into the memory may do."""

    def stream(self, models, shards, advance):
        (self.folder / f"arrived-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def worker_pool():
    """Worker processes that end with the context."""
    pool = WorkerPool()
    try:
        yield pool
    finally:
        pool.end()


def make(job, workers, missing=range(SHARDS), pool=None, devices=None):
    """Make the shards of a job in the workers of a pool, or else in new ones; the sum of the units."""
    units = []
    with worker_pool() if pool is None else contextlib.nullcontext(pool) as workers_of_job:
        for _ in workers_of_job.make(job, list(missing), recipe(), [devices] * workers, units.append):
            pass
    return sum(units)
