"""The cells of measurements/paper_claims.py: runs with a setting and a seed, and those that each question needs."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sppo.compare.runs import Run, play
from sppo.rundir.folder import RunFolder

SEEDS = (0, 1, 2, 3, 4)
CHOOSING_SEED = 100
RECIPE: dict[str, Any] = {
    "cpu_threads": 1,
    "policy": {"model": "tinyworld"},
    "prompts": {
        "train": "tinyworld/train",
        "held_out": {"source": "tinyworld/held-out", "limit": 160},
        "per_iteration": 64,
    },
    "sampling": {"max_new_tokens": 96},
    "training": {"batch_prompts": 8, "epochs": 2, "pack_tokens": 1024, "checkpoint_steps": None},
    "evaluation": {"responses": 2, "resamples": 500},
    "guard": {"on_failure": "stop"},
}
AROUND: dict[str, dict[str, Any]] = {
    "length_controlled": {"type": "length_controlled", "penalty": -5.17, "scale": 500},
    "length_matched": {"type": "length_matched", "max_ratio": 1.2},
    "near_tie": {"type": "near_tie", "delta": 0.2},
}
"""Oracles that wrap the panel; the penalty is the one that `sppo oracle check` fits to the base's responses."""
STRENGTH = {"sppo": "eta", "dpo": "beta", "ipo": "tau"}
GRID = {"sppo": (30.0, 1000.0), "dpo": (0.1, 0.3), "ipo": (0.03, 0.1)}
GRID_RATES = (3e-4, 1e-3, 3e-3)
ETAS = (1.0, 10.0, 30.0, 100.0, 1e3, 1e4)
PARTITIONS: tuple[tuple[float, Any], ...] = (
    (1.0, "samples"),
    (30.0, "samples"),
    (1e3, "samples"),
    (30.0, 0.0),
)
COLLAPSE_RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Setting:
    """The settings of a cell; two questions that need the same settings and seed share the cell."""

    algorithm: str = "sppo"
    strength: float = 30.0
    learning_rate: float = 1e-3
    selection: str = "best_worst"
    k: int = 5
    oracle: str = "panel"
    log_partition: Any = "half_eta"

    @property
    def name(self) -> str:
        """The folder's name: the algorithm with its parameter and learning rate, and every setting that is not usual."""
        usual = Setting()
        parts = [f"{self.algorithm}-{self.strength:g}-lr{self.learning_rate:g}"]
        parts += [] if self.selection == usual.selection else [self.selection]
        parts += [] if self.k == usual.k else [f"k{self.k}"]
        parts += [] if self.oracle == usual.oracle else [self.oracle]
        parts += [] if self.log_partition == usual.log_partition else [f"logz-{self.log_partition}"]
        return "-".join(parts)

    def recipe(self, seed: int, iterations: int) -> dict[str, Any]:
        """The recipe of a cell."""
        algorithm = {"type": self.algorithm, STRENGTH[self.algorithm]: self.strength}
        if self.algorithm == "sppo":
            algorithm["log_partition"] = self.log_partition
        held_out = "panel" if self.oracle in AROUND else self.oracle.removesuffix("_sums")
        held_out_oracle = {"type": "function", "function": f"paper_claims_oracles:{held_out}"}
        oracle = {"type": "function", "function": f"paper_claims_oracles:{self.oracle}"}
        if self.oracle in AROUND:
            oracle = AROUND[self.oracle] | {"oracle": held_out_oracle}
        return RECIPE | {
            "seed": seed,
            "iterations": iterations,
            "sampling": RECIPE["sampling"] | {"k": self.k},
            "oracle": oracle,
            "selection": self.selection,
            "algorithm": algorithm,
            "training": RECIPE["training"] | {"learning_rate": self.learning_rate},
            "evaluation": RECIPE["evaluation"]
            | ({} if self.oracle == held_out else {"oracle": held_out_oracle}),
        }


DEFAULT = Setting()


@dataclass(frozen=True)
class Cell:
    """A setting with a seed, played for at least the given number of iterations."""

    setting: Setting
    seed: int
    iterations: int

    def run(self, home: Path) -> Run:
        """The run of the cell; its folder does not name the iterations, so that a longer run continues a shorter one."""
        from sppo.recipe import parse

        recipe = parse(self.setting.recipe(self.seed, self.iterations))
        folder = home / "runs" / f"{self.setting.name}-seed-{self.seed}"
        return Run(self.setting.name, self.seed, recipe, RunFolder(folder))

    def is_done(self, home: Path) -> bool:
        """Whether all its iterations are finished or the guard has stopped it."""
        from sppo.rundir.reader import read_summary

        run = home / "runs" / f"{self.setting.name}-seed-{self.seed}"
        rows = (read_summary(run) or {"iterations": []})["iterations"]
        return len(rows) >= self.iterations or bool(rows and rows[-1]["alarms"])


def over_seeds(settings: Iterable[Setting], iterations: int, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """The cells of each setting with each seed."""
    return [Cell(setting, seed, iterations) for setting, seed in product(settings, seeds)]


# The cells of each question.


def grid(algorithm: str) -> list[Setting]:
    """The settings among which an algorithm's best is chosen."""
    return [Setting(algorithm, strength, rate) for strength, rate in product(GRID[algorithm], GRID_RATES)]


def grid_cells() -> list[Cell]:
    """Every algorithm's grid, with the seed that is only used to choose a setting."""
    return over_seeds([setting for name in GRID for setting in grid(name)], 3, [CHOOSING_SEED])


def eta_settings() -> list[Setting]:
    """Step sizes with the paper's log-partition, and other log-partitions."""
    return [Setting(strength=eta) for eta in ETAS] + [
        Setting(strength=eta, log_partition=partition) for eta, partition in PARTITIONS
    ]


ORACLES = ("panel", "panel_sums", "majority", "majority_sums")


def fixed_cells(question: str, iterations: int) -> list[Cell]:
    """The cells that a question needs in any case; `iterations` is their length for (d), (f), (g) and (i)."""
    match question:
        case "a":
            return over_seeds([DEFAULT], 3)
        case "b" | "c" | "h":
            return grid_cells()
        case "d":
            return over_seeds([DEFAULT, replace(DEFAULT, k=2)], iterations)
        case "e":
            return over_seeds(eta_settings(), 1)
        case "f":
            return over_seeds([DEFAULT, replace(DEFAULT, selection="all")], iterations)
        case "g":
            return over_seeds([replace(DEFAULT, oracle=name) for name in ORACLES], iterations)
        case "i":
            return over_seeds([DEFAULT, *(replace(DEFAULT, oracle=name) for name in AROUND)], iterations)
    raise AssertionError(question)


def chosen_cells(question: str, best: Mapping[str, Setting]) -> list[Cell]:
    """The cells that depend on each algorithm's best setting."""
    match question:
        case "b":
            return over_seeds(best.values(), 1)
        case "c":
            return over_seeds(best.values(), 3)
        case "h":
            at = [replace(chosen, learning_rate=rate) for chosen in best.values() for rate in COLLAPSE_RATES]
            return over_seeds(at, 1)
    return []


def wanted_cells(question: str, best: Mapping[str, Setting] | None, iterations: int) -> list[Cell]:
    """The cells of a question as far as they are known; best is None if no setting has been chosen yet."""
    return [*fixed_cells(question, iterations), *(chosen_cells(question, best) if best else [])]


# Playing them.


def play_cells(home: Path, cells: Sequence[Cell], processes: int, deadline: float) -> None:
    """Play the cells that are not done; a cell takes finished stages from those of the same seed, if they are equal."""
    longest: dict[tuple[Setting, int], Cell] = {}
    for cell in cells:
        key = (cell.setting, cell.seed)
        if key not in longest or longest[key].iterations < cell.iterations:
            longest[key] = cell
    waiting = [cell for cell in longest.values() if not cell.is_done(home)]
    print(f"{len(longest)} cells, {len(waiting)} of them to be played", flush=True)
    tasks = [(home, cell, deadline) for cell in waiting]
    if processes == 1 or len(tasks) < 2:
        played = sum(map(_play_cell, tasks))
    else:
        with multiprocessing.get_context("spawn").Pool(min(processes, len(tasks))) as pool:
            played = sum(pool.imap_unordered(_play_cell, tasks))
    if played < len(waiting):
        print(f"{len(waiting) - played} cells are left for another time", flush=True)


def _play_cell(task: tuple[Path, Cell, float]) -> bool:
    """Play a cell unless the time is up, and record its seconds in seconds.jsonl."""
    from rich.console import Console

    from sppo.progress import Terminal

    home, cell, deadline = task
    if time.time() > deadline:
        return False
    run, begin, cpu = cell.run(home), time.perf_counter(), time.process_time()
    donors = [Run("", cell.seed, run.recipe, RunFolder(path)) for path in _folders(home, cell.seed)]
    with open(os.devnull, "w") as nowhere:
        stopped = play(run, donors, Terminal(Console(file=nowhere)))
    seconds = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    with (home / "seconds.jsonl").open("a") as file:
        file.write(json.dumps({"cell": run.folder.path.name, **seconds}) + "\n")
    print(
        f"{run.folder.path.name}: {seconds['wall']:.0f} s, {seconds['cpu']:.0f} of them the CPU's"
        f"{'; stopped by the guard' if stopped else ''}",
        flush=True,
    )
    return True


def _folders(home: Path, seed: int) -> list[Path]:
    return sorted((home / "runs").glob(f"*-seed-{seed}"))
