"""SPPO's claims on tinyworld: what holds, with intervals, whether it agrees with the paper or not.

    python measurements/paper_claims.py [--only a,b,...] [--home DIR] [--processes 2] [--minutes M] [--iterations 3]

Every cell (a setting and a seed) is a run folder in DIR, which questions share and which is gone on with when the
command is started again; `--minutes` begins no further cell after so many. Questions whose cells are all there are
answered, the others named. Also written: DIR/paper_claims.json and DIR/paper_claims.svg.

(a) does the win rate rise over three iterations of SPPO?
(b) does the winner's log-probability rise under SPPO and fall under DPO?
(c) SPPO against DPO and IPO after three iterations, each at its best of a grid chosen on other held-out prompts
(d) K = 2 against K = 5
(e) eta from 1 to 1e4, and the log-partition
(f) best and worst against all K
(g) pairwise probabilities against sums of scores
(h) at which learning rate does each collapse?
(i) what length control, length matching and shrunken near ties do to win rate and length
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sppo.compare import results
from sppo.compare.runs import Run, play
from sppo.rundir.folder import RunFolder, write_json

SEEDS = (0, 1, 2, 3, 4)
CHOOSING_SEED = 100
CONFIDENCE, RESAMPLES = 0.95, 2000
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
"""Oracles around the panel; the penalty is the one that `sppo oracle check` fits to the base's responses."""
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
    """What a cell is played with; two questions that want the same setting and seed share the cell."""

    algorithm: str = "sppo"
    strength: float = 30.0
    learning_rate: float = 1e-3
    selection: str = "best_worst"
    k: int = 5
    oracle: str = "panel"
    log_partition: Any = "half_eta"

    @property
    def name(self) -> str:
        """Of its folder: the algorithm with its parameter and learning rate, and what is not as usual."""
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
        judged = "panel" if self.oracle in AROUND else self.oracle.removesuffix("_sums")
        judge = {"type": "function", "function": f"paper_claims_oracles:{judged}"}
        oracle = {"type": "function", "function": f"paper_claims_oracles:{self.oracle}"}
        if self.oracle in AROUND:
            oracle = AROUND[self.oracle] | {"oracle": judge}
        return RECIPE | {
            "seed": seed,
            "iterations": iterations,
            "sampling": RECIPE["sampling"] | {"k": self.k},
            "oracle": oracle,
            "selection": self.selection,
            "algorithm": algorithm,
            "training": RECIPE["training"] | {"learning_rate": self.learning_rate},
            "evaluation": RECIPE["evaluation"] | ({} if self.oracle == judged else {"judge": judge}),
        }


DEFAULT = Setting()


@dataclass(frozen=True)
class Cell:
    """A setting with a seed, played for so many iterations at least."""

    setting: Setting
    seed: int
    iterations: int

    def run(self, home: Path) -> Run:
        """Its run; the folder's name says nothing of the iterations, so that a longer one goes on with it."""
        from sppo.recipe import parse

        recipe = parse(self.setting.recipe(self.seed, self.iterations))
        folder = home / "runs" / f"{self.setting.name}-seed-{self.seed}"
        return Run(self.setting.name, self.seed, recipe, RunFolder(folder))

    def is_done(self, home: Path) -> bool:
        """Whether all its iterations are there, or the guard has stopped it."""
        from sppo.rundir.reader import read_summary

        run = home / "runs" / f"{self.setting.name}-seed-{self.seed}"
        rows = (read_summary(run) or {"iterations": []})["iterations"]
        return len(rows) >= self.iterations or bool(rows and rows[-1]["alarms"])


def over_seeds(settings: Iterable[Setting], iterations: int, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Cells of settings with every seed."""
    return [Cell(setting, seed, iterations) for setting, seed in product(settings, seeds)]


# The cells of each question.


def grid(algorithm: str) -> list[Setting]:
    """The settings among which an algorithm's best is chosen."""
    return [Setting(algorithm, strength, rate) for strength, rate in product(GRID[algorithm], GRID_RATES)]


def grid_cells() -> list[Cell]:
    """Every algorithm's grid, with the one seed that is used for choosing alone."""
    return over_seeds([one for name in GRID for one in grid(name)], 3, [CHOOSING_SEED])


def of_eta() -> list[Setting]:
    """Step sizes with the paper's log-partition, and other log-partitions."""
    return [Setting(strength=eta) for eta in ETAS] + [
        Setting(strength=eta, log_partition=partition) for eta, partition in PARTITIONS
    ]


ORACLES = ("panel", "panel_sums", "majority", "majority_sums")


def fixed_cells(question: str, iterations: int) -> list[Cell]:
    """The cells that a question needs whatever is found; (d), (f), (g) and (i) look at so many iterations."""
    match question:
        case "a":
            return over_seeds([DEFAULT], 3)
        case "b" | "c" | "h":
            return grid_cells()
        case "d":
            return over_seeds([DEFAULT, replace(DEFAULT, k=2)], iterations)
        case "e":
            return over_seeds(of_eta(), 1)
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
            at = [replace(one, learning_rate=rate) for one in best.values() for rate in COLLAPSE_RATES]
            return over_seeds(at, 1)
    return []


def wanted_cells(question: str, best: Mapping[str, Setting] | None, iterations: int) -> list[Cell]:
    """All cells of a question, as far as they are known: best is None where no setting has been chosen yet."""
    return [*fixed_cells(question, iterations), *(chosen_cells(question, best) if best else [])]


# Playing them.


def play_cells(home: Path, cells: Sequence[Cell], processes: int, deadline: float) -> None:
    """Play what is not done; what cells of a seed begin with is equal, and taken over from the first that has it."""
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
    """Play a cell, unless the time is up; says so in a line and in seconds.jsonl."""
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


# Reading them.


class Found:
    """The results of the cells, each read once; `iterations` are those of (d), (f), (g) and (i)."""

    def __init__(self, home: Path, iterations: int) -> None:
        self.home = home
        self.iterations = iterations
        self._played: dict[Cell, results.Played] = {}

    def played(self, cell: Cell) -> results.Played:
        """What a cell's run has left behind, as far as it was asked for."""
        if cell not in self._played:
            found = results.read(cell.run(self.home))
            of = slice(cell.iterations)
            self._played[cell] = results.Played(found.rows[of], found.by_prompt[of], found.steps[of])
        return self._played[cell]

    def rates(
        self, setting: Setting, iterations: int, at: int = -1, seeds: Sequence[int] = SEEDS
    ) -> list[dict]:
        """By seed, the win rate against the base on each held-out prompt after an iteration; the last one played."""
        of_seeds = [self.played(Cell(setting, seed, iterations)).by_prompt for seed in seeds]
        return [of[min(at, len(of) - 1)] for of in of_seeds]

    def failed(self, setting: Setting, iterations: int) -> int:
        """How many seeds the guard has stopped."""
        rows = [self.played(Cell(setting, seed, iterations)).rows for seed in SEEDS]
        return sum(bool(of[-1]["alarms"]) for of in rows)


def half(rates: Sequence[Mapping[str, float]], which: str) -> list[dict[str, float]]:
    """Every second held-out prompt: `choosing` or `reporting`."""
    first = {"choosing": 0, "reporting": 1}[which]
    return [{prompt: of[prompt] for prompt in sorted(of)[first::2]} for of in rates]


def differences(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Seed by seed and prompt by prompt, ours less theirs."""
    return [{prompt: a[prompt] - b[prompt] for prompt in a} for a, b in zip(ours, theirs, strict=True)]


def measured(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and intervals of what was measured seed by seed and prompt by prompt."""
    return results.rate(of_seeds, confidence=CONFIDENCE, resamples=RESAMPLES)


def text(found: Mapping[str, Any], how: str = ".3f") -> str:
    """A mean with both intervals."""
    ends = [f"[{found[over]['low']:{how}}, {found[over]['high']:{how}}]" for over in ("prompts", "seeds")]
    return f"{found['mean']:{how}}  {ends[0]} over prompts  {ends[1]} over seeds"


def verdict(found: Mapping[str, Any]) -> str:
    """Whether zero lies within the wider claim of the two intervals."""
    low, high = (
        choose(found[over][end] for over in ("prompts", "seeds"))
        for choose, end in ((min, "low"), (max, "high"))
    )
    return (
        "yes" if low > 0 else "no, the other way round" if high < 0 else "not decided: 0 lies in an interval"
    )


def best_of_grids(found: Found) -> tuple[dict[str, Setting], dict[str, float]]:
    """Each algorithm's best setting by the win rate on the choosing prompts, and every setting's."""
    scores: dict[str, float] = {}
    best = {}
    for name in GRID:
        of = {one: _choosing_score(found, one) for one in grid(name)}
        best[name] = max(of, key=of.__getitem__)
        scores |= {one.name: score for one, score in of.items()}
    return best, scores


def chosen(found: Found) -> dict[str, Setting] | None:
    """Each algorithm's best setting; None where the grid is not there yet."""
    return best_of_grids(found)[0] if all(cell.is_done(found.home) for cell in grid_cells()) else None


def _choosing_score(found: Found, setting: Setting) -> float:
    return measured(half(found.rates(setting, 3, seeds=[CHOOSING_SEED]), "choosing"))["mean"]


# The answers.

Answer = dict[str, Any]


def answer_a(found: Found, best: Any) -> Answer:
    rates = [found.rates(DEFAULT, 3, at) for at in range(3)]
    rows = [measured(of) for of in rates]
    rises = [measured(differences(rates[0], [dict.fromkeys(of, 0.5) for of in rates[0]]))]
    rises += [measured(differences(rates[at], rates[at - 1])) for at in (1, 2)]
    for at in range(3):
        print(
            f"  iteration {at + 1}  {text(rows[at])}\n     rise      {text(rises[at])}  -> {verdict(rises[at])}"
        )
    each = [[row["of_seeds"][seed] for row in rows] for seed in range(len(SEEDS))]
    rising = sum(all(b > a for a, b in zip([0.5, *of], of, strict=False)) for of in each)
    print(f"  seeds that rise at every iteration: {rising} of {len(SEEDS)}")
    return {"rates": rows, "rises": rises, "seeds_rising": rising}


def answer_b(found: Found, best: Mapping[str, Setting]) -> Answer:
    """Log pi_2(y|x) - log pi_1(y|x) after one iteration, of the pairs trained on and of pairs held out."""
    print("  nats after one iteration, mean over pairs and seeds, interval over seeds")
    of: dict[str, Any] = {}
    for name, setting in best.items():
        cells = [log_ratios(Cell(setting, seed, 1).run(found.home)) for seed in SEEDS]
        of[name] = {
            what: results.head_to_head.over_seeds(
                np.array([one[what] for one in cells]), confidence=CONFIDENCE
            )
            for what in cells[0]
        }
        for what, value in of[name].items():
            print(
                f"  {setting.name:22s} {what:18s} {value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"
            )
    print(
        "  the winner's log-ratio over the whole grid, at the end of the first iteration's training, one seed:"
    )
    of["grid"] = {}
    for setting in (one for name in GRID for one in grid(name)):
        steps = found.played(Cell(setting, CHOOSING_SEED, 3)).steps[0]
        pair = [results.at_the_end(steps, side) for side in results.CURVES]
        of["grid"][setting.name] = pair
        print(f"  {setting.name:22s} winners {pair[0]:+.2f}  losers {pair[1]:+.2f}")
    return of


def log_ratios(run: Run) -> dict[str, float]:
    """Mean log pi_2 - log pi_1 of winners and losers: those trained on, and among the base's held-out responses."""
    kept = run.folder.path / "log_ratios.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    from sppo.rundir.shards import read_shard
    from sppo.rundir.tables import ResponsesRow, read_rows
    from sppo.stages.models import Models

    models = Models(run.recipe)
    home, base = run.folder.iteration(1), run.folder.iteration(0)
    trained = [
        row for path in sorted((home / "training").glob("*.parquet")) for row in read_shard(path).to_pylist()
    ]
    rows = [
        row
        for path in sorted((base / "evaluation").glob("*.parquet"))
        for row in read_rows(path, ResponsesRow)
    ]
    matrices = models.compare(rows, [row.texts for row in rows])
    held_out = [row.to_row() for row in rows]
    scores = models.scorer(home / "policy")
    found: dict[str, list[float]] = {}
    for where, rows, before, rates in (
        (
            "trained",
            trained,
            "opponent_log_prob",
            [[one["win_rate"] for one in row["responses"]] for row in trained],
        ),
        ("held-out", held_out, "log_prob", matrices.mean(axis=-1)),
    ):
        for row, after, of in zip(
            rows,
            scores(
                [row["prompt_token_ids"] for row in rows],
                [[one["token_ids"] for one in row["responses"]] for row in rows],
            ),
            rates,
            strict=True,
        ):
            if len(after) < 2 or max(of) == min(of):
                continue  # a pair with a winner is needed
            for side, index in (("winners", int(np.argmax(of))), ("losers", int(np.argmin(of)))):
                change = after[index] - row["responses"][index][before]
                found.setdefault(f"{where} {side}", []).append(change)
    means = {what: float(np.mean(values)) for what, values in found.items()}
    write_json(kept, means)
    return means


def answer_c(found: Found, best: Mapping[str, Setting]) -> Answer:
    _, scores = best_of_grids(found)
    print("  grid, seed 100, three iterations, on the choosing prompts:")
    for name in GRID:
        print("    " + "  ".join(f"{one.name} {scores[one.name]:.3f}" for one in grid(name)))
    print(
        f"  chosen: {', '.join(one.name for one in best.values())}; on the reporting prompts, {len(SEEDS)} seeds:"
    )
    rates = {name: half(found.rates(one, 3), "reporting") for name, one in best.items()}
    of = {name: measured(rate) for name, rate in rates.items()}
    for name, one in of.items():
        print(f"  {name}  {text(one)}  stopped: {found.failed(best[name], 3)}")
    against = {other: measured(differences(rates["sppo"], rates[other])) for other in ("dpo", "ipo")}
    for other, one in against.items():
        print(f"  sppo - {other}  {text(one)}  -> sppo is ahead: {verdict(one)}")
    games = head_to_head_of(found, best)
    for other, one in games.items():
        print(f"  P(sppo > {other})  {text(one)}")
    return {
        "grid": scores,
        "chosen": {name: one.name for name, one in best.items()},
        "rates": of,
        "differences": against,
        "head_to_head": games,
    }


def head_to_head_of(found: Found, best: Mapping[str, Setting]) -> dict[str, Any]:
    """P(SPPO's last policy > another's), seed by seed, on the reporting prompts."""
    from paper_claims_oracles import panel

    from sppo.benchmarks.head_to_head.score import win_rates_against
    from sppo.policy.chat_format import plain_text
    from sppo.rundir.reader import RunReader

    def answers(setting: Setting, seed: int) -> dict[str, Any]:
        cell = Cell(setting, seed, 3)
        last = len(found.played(cell).rows)
        run = RunReader(cell.run(found.home).folder.path)
        return {row.prompt_id: row for row in run.held_out(last)}

    games: dict[str, list[dict[str, float]]] = {"dpo": [], "ipo": []}
    for seed in SEEDS:
        ours = answers(best["sppo"], seed)
        for other, of in games.items():
            theirs = answers(best[other], seed)
            texts = [[side[name].texts for name in ours] for side in (ours, theirs)]
            prompts = [plain_text(row.messages) for row in ours.values()]
            of.append(dict(zip(ours, win_rates_against(panel, prompts, *texts).tolist(), strict=True)))
    return {other: measured(half(of, "reporting")) for other, of in games.items()}


def compare_settings(found: Found, settings: Sequence[Setting], iterations: int, against: int = 0) -> Answer:
    """Win rates of settings, and how far each is ahead of one of them."""
    rates = [found.rates(one, iterations) for one in settings]
    of: Answer = {}
    for number, (setting, rate) in enumerate(zip(settings, rates, strict=True)):
        row = of[setting.name] = {"rate": measured(rate), "stopped": found.failed(setting, iterations)}
        print(f"  {setting.name:28s} {text(row['rate'])}  stopped: {row['stopped']}")
        if number != against:
            row["difference"] = measured(differences(rate, rates[against]))
            print(f"  {'':28s} ahead of {settings[against].name} by {text(row['difference'])}")
    return of


def answer_d(found: Found, best: Any) -> Answer:
    return compare_settings(found, [replace(DEFAULT, k=2), DEFAULT], found.iterations)


def answer_e(found: Found, best: Any) -> Answer:
    settings = of_eta()
    return compare_settings(found, settings, 1, against=settings.index(DEFAULT))


def answer_f(found: Found, best: Any) -> Answer:
    return compare_settings(found, [replace(DEFAULT, selection="all"), DEFAULT], found.iterations)


def answer_g(found: Found, best: Any) -> Answer:
    of: Answer = {}
    for name in ("panel", "majority"):
        both = [replace(DEFAULT, oracle=f"{name}_sums"), replace(DEFAULT, oracle=name)]
        cyclic = [
            found.played(Cell(both[1], seed, found.iterations)).rows[0]["cyclic_triples"] for seed in SEEDS
        ]
        print(f"  {name}: {np.mean(cyclic):.1%} of the triples of the base's responses go round")
        of[name] = {
            "cyclic_triples": float(np.mean(cyclic)),
            **compare_settings(found, both, found.iterations),
        }
    return of


def answer_i(found: Found, best: Any) -> Answer:
    """Win rates are the panel's own, which is held out where another oracle is learnt from."""
    settings = [DEFAULT, *(replace(DEFAULT, oracle=name) for name in AROUND)]
    of = compare_settings(found, settings, found.iterations)
    for setting in settings:
        rows = [found.played(Cell(setting, seed, found.iterations)).rows[-1] for seed in SEEDS]
        tokens = results.head_to_head.over_seeds(
            np.array([row["response_tokens"] for row in rows]), confidence=CONFIDENCE
        )
        own = [row.get("by_oracle", row)["win_rate_vs_base"]["mean"] for row in rows]
        of[setting.name] |= {"tokens": tokens, "by_oracle": float(np.mean(own))}
        print(
            f"  {setting.name:38s} {tokens['mean']:.1f} tokens [{tokens['low']:.1f}, {tokens['high']:.1f}] over seeds;"
            f" by the oracle that was learnt from {np.mean(own):.3f}"
        )
    return of


def answer_h(found: Found, best: Mapping[str, Setting]) -> Answer:
    """One iteration; a seed has collapsed where the guard stops it."""
    of: Answer = {}
    for name, chosen in best.items():
        rows = {}
        for rate in COLLAPSE_RATES:
            setting = replace(chosen, learning_rate=rate)
            row = rows[f"{rate:g}"] = {
                "rate": measured(found.rates(setting, 1, 0)),
                "collapsed": sum(
                    bool(found.played(Cell(setting, seed, 1)).rows[0]["alarms"]) for seed in SEEDS
                ),
            }
            print(f"  {setting.name:22s} {text(row['rate'])}  collapsed: {row['collapsed']} of {len(SEEDS)}")
        most = [rate for rate, row in rows.items() if 2 * row["collapsed"] > len(SEEDS)]
        first = most[0] if most else None
        print(f"  {name}: most seeds collapse from {first or f'beyond {COLLAPSE_RATES[-1]:g}'} on")
        of[name] = {"rates": rows, "collapses_at": first}
    return of


TITLES = dict(line[1:].split(") ", 1) for line in (__doc__ or "").splitlines() if line.startswith("("))
ANSWERS: dict[str, Callable[[Found, Any], Answer]] = {
    letter: globals()[f"answer_{letter}"] for letter in TITLES
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(TITLES), help="questions with commas between them")
    parser.add_argument("--iterations", type=int, default=3, help="of (d), (f), (g) and (i)")
    parser.add_argument("--home", type=Path, default=Path("runs/paper-claims"))
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    options = parser.parse_args()
    questions = options.only.split(",")
    if unknown := set(questions) - TITLES.keys():
        parser.error(f"--only {','.join(sorted(unknown))}: one or more of {','.join(TITLES)}")
    home, deadline = options.home.resolve(), time.time() + 60 * options.minutes
    (home / "runs").mkdir(parents=True, exist_ok=True)
    found = Found(home, options.iterations)

    def play_wanted(best: dict[str, Setting] | None) -> None:
        cells = [cell for one in questions for cell in wanted_cells(one, best, options.iterations)]
        play_cells(home, cells, options.processes, deadline)

    best = chosen(found)
    play_wanted(best)
    if best is None and (best := chosen(found)) is not None:  # what depends on the grid is known now
        play_wanted(best)
    answers: dict[str, Any] = {}
    for question in questions:
        missing = sum(not cell.is_done(home) for cell in wanted_cells(question, best, options.iterations))
        print(f"\n({question}) {TITLES[question]}")
        if missing:
            more = " and those at the best of the grid" if best is None and question in "bch" else ""
            print(f"  not answered: {missing} of its cells{more} are missing")
            continue
        answers[question] = ANSWERS[question](found, best)
    kept = home / "paper_claims.json"
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    write_json(kept, before | answers)
    draw(before | answers, home / "paper_claims.svg")
    show_seconds(home)


def draw(answers: Mapping[str, Answer], path: Path) -> None:
    """The answers that are pictures, in one figure; bars are intervals over prompts, dots seeds."""
    from matplotlib.figure import Figure

    from sppo.game.convergence import save

    drawn = [letter for letter in "abceh" if letter in answers]
    if not drawn:
        return
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows))
    grid_of_axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid_of_axes[len(drawn) :]:
        axes.axis("off")
    for axes, letter in zip(grid_of_axes, drawn, strict=False):
        axes.set_title(f"({letter}) {PICTURES[letter][0]}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, alpha=0.3)
        PICTURES[letter][1](axes, answers[letter])
    figure.tight_layout()
    save(figure, path)


def _points(
    axes: Any, at: Sequence[float], rates: Sequence[Mapping[str, Any]], colour: str, label: str
) -> None:
    means = [of["mean"] for of in rates]
    bars = [[abs(of["prompts"][end] - of["mean"]) for of in rates] for end in ("low", "high")]
    axes.errorbar(at, means, bars, color=colour, capsize=2, marker="o", markersize=3, label=label)
    for where, of in zip(at, rates, strict=True):
        axes.plot([where] * len(of["of_seeds"]), of["of_seeds"], ".", color=colour, markersize=3, alpha=0.5)


def _draw_a(axes: Any, answer: Answer) -> None:
    _points(axes, [1, 2, 3], answer["rates"], "C0", "sppo")
    axes.set_xticks([1, 2, 3])
    axes.set_xlabel("iteration", fontsize=7)


def _draw_b(axes: Any, answer: Answer) -> None:
    for number, name in enumerate(GRID):
        for place, what in enumerate(
            ("trained winners", "trained losers", "held-out winners", "held-out losers")
        ):
            of = answer[name][what]
            bar = [[of["mean"] - of["low"]], [of["high"] - of["mean"]]]
            at, label = [place + 0.2 * (number - 1)], name if place == 0 else None
            axes.errorbar(at, [of["mean"]], bar, fmt="o", color=f"C{number}", capsize=2, label=label)
    axes.legend(fontsize=6)
    axes.set_xticks(range(4), ["winners", "losers", "winners,\nheld out", "losers,\nheld out"])


def _draw_c(axes: Any, answer: Answer) -> None:
    for number, (name, rate) in enumerate(answer["rates"].items()):
        _points(axes, [number], [rate], f"C{number}", name)
    axes.set_xticks(range(len(answer["chosen"])), list(answer["chosen"].values()), rotation=15)


def _draw_e(axes: Any, answer: Answer) -> None:
    for number, partition in enumerate(("half_eta", "samples")):
        of = [one for one in of_eta() if one.log_partition == partition]
        _points(
            axes,
            [one.strength for one in of],
            [answer[one.name]["rate"] for one in of],
            f"C{number}",
            partition,
        )
    axes.set_xscale("log")
    axes.set_xlabel("eta", fontsize=7)
    axes.legend(fontsize=6)


def _draw_h(axes: Any, answer: Answer) -> None:
    for number, (name, of) in enumerate(answer.items()):
        at = [float(rate) * 1.05**number for rate in of["rates"]]
        _points(axes, at, [row["rate"] for row in of["rates"].values()], f"C{number}", name)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=7)
    axes.legend(fontsize=6)


PICTURES: dict[str, tuple[str, Callable[[Any, Answer], None]]] = {
    "a": ("SPPO: win rate against the base", _draw_a),
    "b": ("log pi_2/pi_1 in nats", _draw_b),
    "c": ("win rate after three iterations", _draw_c),
    "e": ("win rate after one iteration", _draw_e),
    "h": ("win rate after one iteration", _draw_h),
}


def show_seconds(home: Path) -> None:
    """What all cells together have cost."""
    path = home / "seconds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    wall, cpu = (sum(line[kind] for line in lines) for kind in ("wall", "cpu"))
    print(
        f"\n{len(lines)} cells in this folder took {wall / 60:.1f} minutes of a process, {cpu / 60:.1f} of a CPU"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
