"""A job of toy shards for the tests of worker processes; a module of its own, so that workers can import it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sppo.executors.processes import make_shards
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


def toy_job(folder, **options):
    folder.mkdir(exist_ok=True)
    sources = [[folder / str(number)] for number in range(SHARDS)]
    for (path,) in sources:
        path.touch()
    stage = RunFolder(folder).stage("annotate", 1, {}, [], folder=".")
    return ShardJob(
        "toy", "halves", "annotate", Toy(folder, **options), stage.plan_shards(sources), [2] * SHARDS
    )


def make(job, workers, missing=range(SHARDS)):
    units = []
    for _ in make_shards(job, list(missing), recipe(), [None] * workers, units.append):
        pass
    return sum(units)
