"""The answers to the questions of measurements/paper_claims.py, from the results of their cells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from paper_claims_cells import (
    AROUND,
    CHOOSING_SEED,
    COLLAPSE_RATES,
    DEFAULT,
    GRID,
    SEEDS,
    Cell,
    Setting,
    eta_settings,
    grid,
    grid_cells,
)

from sppo.compare import results
from sppo.compare.runs import Run
from sppo.rundir.folder import write_json

CONFIDENCE, RESAMPLES = 0.95, 2000


class Results:
    """The results of the cells, each read once; `iterations` are those of (d), (f), (g) and (i)."""

    def __init__(self, home: Path, iterations: int) -> None:
        self.home = home
        self.iterations = iterations
        self._played: dict[Cell, results.Played] = {}

    def played(self, cell: Cell) -> results.Played:
        """Return the results of a cell's run, up to the number of iterations of the cell."""
        if cell not in self._played:
            played = results.read(cell.run(self.home))
            first = slice(cell.iterations)
            self._played[cell] = results.Played(
                played.rows[first], played.by_prompt[first], played.steps[first]
            )
        return self._played[cell]

    def rates(
        self, setting: Setting, iterations: int, at: int = -1, seeds: Sequence[int] = SEEDS
    ) -> list[dict]:
        """For each seed, the win rate against the base on each held-out prompt after iteration `at`, or the last one."""
        of_seeds = [self.played(Cell(setting, seed, iterations)).by_prompt for seed in seeds]
        return [of[min(at, len(of) - 1)] for of in of_seeds]

    def failed(self, setting: Setting, iterations: int) -> int:
        """The number of seeds that the guard has stopped."""
        rows = [self.played(Cell(setting, seed, iterations)).rows for seed in SEEDS]
        return sum(bool(of[-1]["alarms"]) for of in rows)


def half(rates: Sequence[Mapping[str, float]], which: str) -> list[dict[str, float]]:
    """Keep every second held-out prompt: those for `choosing` a setting, or those for `reporting` its results."""
    first = {"choosing": 0, "reporting": 1}[which]
    return [{prompt: of[prompt] for prompt in sorted(of)[first::2]} for of in rates]


def differences(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Our win rates minus theirs, for each seed and prompt."""
    return [{prompt: a[prompt] - b[prompt] for prompt in a} for a, b in zip(ours, theirs, strict=True)]


def measured(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and intervals of values for each seed and prompt."""
    return results.rate(of_seeds, confidence=CONFIDENCE, resamples=RESAMPLES)


def text(estimate: Mapping[str, Any], how: str = ".3f") -> str:
    """Write a mean with its two intervals."""
    ends = [
        f"[{estimate[over]['low']:{how}}, {estimate[over]['high']:{how}}]" for over in ("prompts", "seeds")
    ]
    return f"{estimate['mean']:{how}}  {ends[0]} over prompts  {ends[1]} over seeds"


def verdict(estimate: Mapping[str, Any]) -> str:
    """Whether zero lies within the wider claim of the two intervals."""
    low, high = (
        choose(estimate[over][end] for over in ("prompts", "seeds"))
        for choose, end in ((min, "low"), (max, "high"))
    )
    return (
        "yes" if low > 0 else "no, the other way round" if high < 0 else "not decided: 0 lies in an interval"
    )


def best_of_grids(runs: Results) -> tuple[dict[str, Setting], dict[str, float]]:
    """Each algorithm's best setting by the win rate on the choosing prompts, and the win rate of every setting."""
    scores: dict[str, float] = {}
    best = {}
    for name in GRID:
        of = {one: _choosing_score(runs, one) for one in grid(name)}
        best[name] = max(of, key=of.__getitem__)
        scores |= {one.name: score for one, score in of.items()}
    return best, scores


def chosen(runs: Results) -> dict[str, Setting] | None:
    """Each algorithm's best setting; None if the grid is not finished."""
    return best_of_grids(runs)[0] if all(cell.is_done(runs.home) for cell in grid_cells()) else None


def _choosing_score(runs: Results, setting: Setting) -> float:
    return measured(half(runs.rates(setting, 3, seeds=[CHOOSING_SEED]), "choosing"))["mean"]


Answer = dict[str, Any]


def answer_a(runs: Results, best: Any) -> Answer:
    rates = [runs.rates(DEFAULT, 3, at) for at in range(3)]
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


def answer_b(runs: Results, best: Mapping[str, Setting]) -> Answer:
    """Measure log pi_2(y|x) - log pi_1(y|x) after one iteration, on the pairs trained on and on held-out pairs."""
    print("  nats after one iteration, mean over pairs and seeds, interval over seeds")
    of: dict[str, Any] = {}
    for name, setting in best.items():
        cells = [log_ratios(Cell(setting, seed, 1).run(runs.home)) for seed in SEEDS]
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
        steps = runs.played(Cell(setting, CHOOSING_SEED, 3)).steps[0]
        pair = [results.at_the_end(steps, side) for side in results.CURVES]
        of["grid"][setting.name] = pair
        print(f"  {setting.name:22s} winners {pair[0]:+.2f}  losers {pair[1]:+.2f}")
    return of


def log_ratios(run: Run) -> dict[str, float]:
    """Mean log pi_2 - log pi_1 of winners and losers, trained on or among the base's held-out responses."""
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
    changes: dict[str, list[float]] = {}
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
                changes.setdefault(f"{where} {side}", []).append(change)
    means = {what: float(np.mean(values)) for what, values in changes.items()}
    write_json(kept, means)
    return means


def answer_c(runs: Results, best: Mapping[str, Setting]) -> Answer:
    _, scores = best_of_grids(runs)
    print("  grid, seed 100, three iterations, on the choosing prompts:")
    for name in GRID:
        print("    " + "  ".join(f"{one.name} {scores[one.name]:.3f}" for one in grid(name)))
    print(
        f"  chosen: {', '.join(one.name for one in best.values())}; on the reporting prompts, {len(SEEDS)} seeds:"
    )
    rates = {name: half(runs.rates(one, 3), "reporting") for name, one in best.items()}
    of = {name: measured(rate) for name, rate in rates.items()}
    for name, one in of.items():
        print(f"  {name}  {text(one)}  stopped: {runs.failed(best[name], 3)}")
    against = {other: measured(differences(rates["sppo"], rates[other])) for other in ("dpo", "ipo")}
    for other, one in against.items():
        print(f"  sppo - {other}  {text(one)}  -> sppo is ahead: {verdict(one)}")
    games = last_policies_compared(runs, best)
    for other, one in games.items():
        print(f"  P(sppo > {other})  {text(one)}")
    return {
        "grid": scores,
        "chosen": {name: one.name for name, one in best.items()},
        "rates": of,
        "differences": against,
        "head_to_head": games,
    }


def last_policies_compared(runs: Results, best: Mapping[str, Setting]) -> dict[str, Any]:
    """P(SPPO's last policy > another's), seed by seed, on the reporting prompts."""
    from paper_claims_oracles import panel

    from sppo.benchmarks.head_to_head.score import win_rates_against
    from sppo.policy.chat_format import plain_text
    from sppo.rundir.reader import RunReader

    def answers(setting: Setting, seed: int) -> dict[str, Any]:
        cell = Cell(setting, seed, 3)
        last = len(runs.played(cell).rows)
        run = RunReader(cell.run(runs.home).folder.path)
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


def compare_settings(runs: Results, settings: Sequence[Setting], iterations: int, against: int = 0) -> Answer:
    """Print the win rates of settings, and how far each is ahead of the setting of index `against`."""
    rates = [runs.rates(one, iterations) for one in settings]
    of: Answer = {}
    for number, (setting, rate) in enumerate(zip(settings, rates, strict=True)):
        row = of[setting.name] = {"rate": measured(rate), "stopped": runs.failed(setting, iterations)}
        print(f"  {setting.name:28s} {text(row['rate'])}  stopped: {row['stopped']}")
        if number != against:
            row["difference"] = measured(differences(rate, rates[against]))
            print(f"  {'':28s} ahead of {settings[against].name} by {text(row['difference'])}")
    return of


def answer_d(runs: Results, best: Any) -> Answer:
    return compare_settings(runs, [replace(DEFAULT, k=2), DEFAULT], runs.iterations)


def answer_e(runs: Results, best: Any) -> Answer:
    settings = eta_settings()
    return compare_settings(runs, settings, 1, against=settings.index(DEFAULT))


def answer_f(runs: Results, best: Any) -> Answer:
    return compare_settings(runs, [replace(DEFAULT, selection="all"), DEFAULT], runs.iterations)


def answer_g(runs: Results, best: Any) -> Answer:
    of: Answer = {}
    for name in ("panel", "majority"):
        both = [replace(DEFAULT, oracle=f"{name}_sums"), replace(DEFAULT, oracle=name)]
        cyclic = [
            runs.played(Cell(both[1], seed, runs.iterations)).rows[0]["cyclic_triples"] for seed in SEEDS
        ]
        print(f"  {name}: {np.mean(cyclic):.1%} of the triples of the base's responses are cyclic")
        of[name] = {
            "cyclic_triples": float(np.mean(cyclic)),
            **compare_settings(runs, both, runs.iterations),
        }
    return of


def answer_i(runs: Results, best: Any) -> Answer:
    """Compare the oracles that wrap the panel; win rates are the panel's, which is held out for these oracles."""
    settings = [DEFAULT, *(replace(DEFAULT, oracle=name) for name in AROUND)]
    of = compare_settings(runs, settings, runs.iterations)
    for setting in settings:
        rows = [runs.played(Cell(setting, seed, runs.iterations)).rows[-1] for seed in SEEDS]
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


def answer_h(runs: Results, best: Mapping[str, Setting]) -> Answer:
    """Count the seeds that collapse within one iteration, that is, those that the guard stops."""
    of: Answer = {}
    for name, chosen in best.items():
        rows = {}
        for rate in COLLAPSE_RATES:
            setting = replace(chosen, learning_rate=rate)
            row = rows[f"{rate:g}"] = {
                "rate": measured(runs.rates(setting, 1, 0)),
                "collapsed": sum(
                    bool(runs.played(Cell(setting, seed, 1)).rows[0]["alarms"]) for seed in SEEDS
                ),
            }
            print(f"  {setting.name:22s} {text(row['rate'])}  collapsed: {row['collapsed']} of {len(SEEDS)}")
        most = [rate for rate, row in rows.items() if 2 * row["collapsed"] > len(SEEDS)]
        first = most[0] if most else None
        print(f"  {name}: most seeds collapse from {first or f'beyond {COLLAPSE_RATES[-1]:g}'} on")
        of[name] = {"rates": rows, "collapses_at": first}
    return of
