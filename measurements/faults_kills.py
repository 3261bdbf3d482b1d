"""SIGKILL at random moments: `python measurements/faults.py kills`.

A run is killed again and again, and started again with the same command, until it ends or has been killed often enough; then
it must hold the bytes of a run that was left alone. What is killed is the run's own process, one of its workers, or on Ray
also the raylet of a node.
"""

import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attack
import psutil
import yaml
from faults_damage import SMALLEST, differences, snapshot
from ray_nodes import RayNodes

KILLS_OF_A_RUN = 15
LONGER = SMALLEST | {
    "prompts": {
        "train": {"source": "tinyworld/train", "limit": 16},
        "held_out": {"source": "tinyworld/held-out", "limit": 6},
    },
    "training": SMALLEST["training"] | {"checkpoint_steps": 1},
}
SPREAD = LONGER | {"iterations": 1, "workers": {"sample": 2, "select": 2}}


@dataclass(frozen=True)
class Place:
    """Where runs are killed.

    Attributes:
        name: the place's name.
        share: the share of the kills that fall here.
        recipe: the recipe of the runs.
        targets: what is killed, with weights.
        pause: the longest time before a kill, without that of other programs, as a share of the time of a run that is left alone.
        limit: the seconds of a run that hangs.
    """

    name: str
    share: float
    recipe: Mapping[str, Any]
    targets: Mapping[str, float]
    pause: float = 0.2
    limit: float = 400.0


PLACES = (
    Place("one process", 0.7, LONGER, {"run": 1}),
    Place("workers", 0.1, SPREAD, {"run": 0.5, "worker": 0.5}),
    Place("storage", 0.15, LONGER, {"run": 1}),
    Place("Ray", 0.05, SPREAD, {"run": 0.4, "worker": 0.4, "node": 0.2}, pause=0.5, limit=1500),
)


class Killer:
    """Kills the runs of one place.

    Args:
        place: the place.
        folder: where the runs lie.
        seed: of the moments and the targets.
        cluster: the Ray cluster of the place, if it has one.
    """

    def __init__(self, place: Place, folder: Path, seed: int, cluster: RayNodes | None) -> None:
        self.place, self.folder, self.cluster = place, folder, cluster
        self.draw = random.Random(f"{seed} {place.name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(place.recipe)), encoding="utf-8")
        alone = self.start("alone")
        alone.finish(place.limit)
        outcome = alone.end()
        assert outcome.code == 0, outcome.text
        self.seconds = outcome.seconds
        self.wanted = self._snapshot("alone")

    def start(self, run: str) -> attack.Forked:
        """Start a run, or continue it."""
        target = f"file://{self.folder}/store/{run}" if self.place.name == "storage" else run
        arguments = ["run", "recipe.yaml", "--run-dir", target, "--no-report"]
        if self.cluster is not None:
            arguments += ["--on", f"ray:{self.cluster.address}"]
        environment = {"SPPO_WORKING_COPIES": str(self.folder / "copies")}
        return attack.Forked(attack.command(*arguments), self.folder, environment)

    def play(self, run: str, kills: int) -> tuple[str, Counter[str], attack.Outcome]:
        """Kill a run up to so many times, let it end, and return the verdict, what was killed, and the last outcome."""
        killed: Counter[str] = Counter()
        errors = 0
        while True:
            fork = self.start(run)
            stopped = self._disturb(fork, kills, killed)
            if not stopped:
                fork.finish(self.place.limit)
            outcome = fork.end(children=not stopped)
            if stopped:
                continue
            if outcome.fault:
                return f"FAILED: {outcome.fault}", killed, outcome
            if outcome.code == 0:
                break
            errors += 1  # a worker was killed twice at the same shard, which the message says
            if errors > KILLS_OF_A_RUN:
                return "FAILED: it does not end", killed, outcome
        differing = differences(self.wanted, self._snapshot(run))
        left = [  # files: in storage on a disk, empty folders stay
            str(path)
            for path in self._where(run).rglob("*")
            if path.is_file() and (path.suffix == ".tmp" or {".training", ".policy"} & {*path.parts})
        ]
        if differing or left:
            return f"FAILED: differs {', '.join([*differing, *left])}", killed, outcome
        return "identical bytes", killed, outcome

    def _disturb(self, fork: attack.Forked, kills: int, killed: Counter[str]) -> bool:
        """Kill the run or its workers at random moments; whether the run itself was killed."""
        while killed.total() < kills:
            moment = fork.seconds() + self.draw.uniform(0, self.place.pause * self.seconds)
            while fork.seconds() < moment:
                if fork.wait(0.01):
                    return False
            names, weights = zip(*self.place.targets.items(), strict=True)
            target = self.draw.choices(names, weights)[0]
            if target == "run":
                fork.kill()
                fork.wait(20)
                killed["run"] += 1
                return True
            if target == "node" and self.cluster.kill_node():
                killed["node"] += 1
            elif target == "worker":
                workers = self._workers(fork)
                if workers:
                    with contextlib.suppress(psutil.Error):
                        self.draw.choice(workers).send_signal(signal.SIGKILL)
                        killed["worker"] += 1
        return False

    def _workers(self, fork: attack.Forked) -> list[psutil.Process]:
        if self.cluster is not None:
            return self.cluster.find("ray::")
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(fork.pid).children(recursive=True)
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return []

    def _where(self, run: str) -> Path:
        return self.folder / "store" / run if self.place.name == "storage" else self.folder / run

    def _snapshot(self, run: str) -> dict[str, Any]:
        found = snapshot(self._where(run))
        summary = found.get("summary.json", {})
        summary.pop("policy", None)  # the path of the run itself
        found.pop("recipe.yaml", None)  # which says how many threads its process had when it was continued
        return {name: value for name, value in found.items() if not name.startswith(".lock")}


@contextlib.contextmanager
def _cluster(place: Place, folder: Path) -> Iterator[RayNodes | None]:
    if place.name != "Ray":
        yield None
        return
    import ray.data  # noqa: F401

    folder.mkdir(parents=True, exist_ok=True)
    cluster = RayNodes(folder)
    try:
        yield cluster
    finally:
        cluster.close()


def attack_processes(
    ledger: attack.Ledger, count: int, seconds: float, seed: int, only: str | None = None
) -> int:
    """Kill runs until there are `count` kills or the time is over; return the number of failures."""
    folder = ledger.path.parent
    end = time.monotonic() + seconds
    for place in [place for place in PLACES if only in (None, place.name)]:
        done = [case for case in ledger.cases.values() if case["place"] == place.name]
        left = (round(count * place.share) if only is None else count) - sum(
            sum(case["killed"].values()) for case in done
        )
        if left <= 0 or time.monotonic() > end:
            continue
        with _cluster(place, folder / "cluster") as cluster:
            killer = Killer(place, folder / "runs", seed + len(done), cluster)
            number = len(done)
            while left > 0 and time.monotonic() < end:
                run = f"run-{number}"
                verdict, killed, outcome = killer.play(run, min(left, KILLS_OF_A_RUN))
                ledger.add(f"{place.name} {run}", verdict, outcome, place=place.name, killed=dict(killed))
                left, number = left - killed.total(), number + 1
    shutil.rmtree(folder / "runs", ignore_errors=True)
    total: Counter[str] = Counter()
    for case in ledger.cases.values():
        total.update(case["killed"])
    print(f"{total.total()} kills:", ", ".join(f"{name} {number}" for name, number in total.items()))
    return ledger.report(by="place")
