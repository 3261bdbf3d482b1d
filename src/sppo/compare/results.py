"""The results of a comparison: each side's measures by iteration, and the game between the sides' last policies.

Every win rate has two intervals. The one over prompts is a percentile bootstrap of each prompt's mean over seeds: it
says what other prompts would change. The one over seeds is Student's t on the seeds' means: it says what other training
runs would change. Neither contains the other.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sppo import oracle as oracles
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.head_to_head import score as head_to_head
from sppo.benchmarks.results import show_table
from sppo.compare.runs import Run
from sppo.game import solve
from sppo.progress import Advance, Terminal, counted_text
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader
from sppo.rundir.tables import PromptRow
from sppo.stages.models import Models
from sppo.winrates import Array

CURVES = ("log_ratio_winners", "log_ratio_losers")
BASE = "base"
_GAMES = pa.schema([("prompt_id", pa.string()), ("payoff", pa.list_(pa.list_(pa.float64())))])


@dataclass(frozen=True)
class Played:
    """The results of one run.

    Attributes:
        rows: the rows of its summary.json, one for each iteration.
        by_prompt: for each iteration, the win rate against the base on each held-out prompt.
        steps: for each iteration, the steps of its optimiser in order, as in metrics.jsonl.
    """

    rows: list[dict[str, Any]]
    by_prompt: list[dict[str, float]]
    steps: list[list[dict[str, Any]]]


def read(run: Run) -> Played:
    """Reads the results of one run.

    Raises:
        RunError: no iteration has been evaluated, or an older version has evaluated it.
    """
    path, reader = run.folder.path, RunReader(run.folder.path)
    summary = reader.summary
    if summary is None:
        raise RunError(f"{path}: no iteration of this run is finished; run it first")
    by_prompt, steps = [], []
    for row in summary["iterations"]:
        number = row["iteration"]
        rates = (reader.record(number, "evaluate") or {}).get("win_rates_vs_base")
        if rates is None:
            raise RunError(
                f"{path}: iteration {number} has no win rates by prompt; remove its evaluation.json"
            )
        prompts = [row.prompt_id for row in reader.held_out(number)]
        named = zip(prompts, rates, strict=True)
        by_prompt.append({prompt: rate for prompt, rate in named if rate is not None})  # None: left out
        steps.append(reader.steps(number))
    return Played(summary["iterations"], by_prompt, steps)


def rate(
    by_prompt: Sequence[Mapping[str, float]], *, confidence: float, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """A win rate over seeds and prompts.

    Args:
        by_prompt: for each seed, the win rate on each prompt; seeds may have different prompts.
        confidence: the level of both intervals.
        resamples: the number of bootstrap samples of the prompts.
        seed: the random seed of the bootstrap.

    Returns:
        `mean`; `prompts` and `seeds`, each with the `low` and `high` of an interval; `of_seeds`, the seeds' own means.
    """
    of_seeds = np.array([np.mean(list(rates.values())) for rates in by_prompt])
    over_seeds: dict[str, list[float]] = defaultdict(list)
    for rates in by_prompt:
        for prompt, value in rates.items():
            over_seeds[prompt].append(value)
    of_prompts = np.array([np.mean(values) for values in over_seeds.values()])
    intervals = {
        "prompts": head_to_head.interval(of_prompts, confidence=confidence, resamples=resamples, seed=seed),
        "seeds": head_to_head.over_seeds(of_seeds, confidence=confidence),
    }
    ends = {over: {end: ends[end] for end in ("low", "high")} for over, ends in intervals.items()}
    return {"mean": float(of_seeds.mean()), **ends, "of_seeds": of_seeds.tolist()}


def at_the_end(steps: Sequence[Mapping[str, Any]], name: str, share: float = 0.2) -> float | None:
    """The mean of a training metric over the last steps of an iteration; None where the steps do not have it.

    Args:
        steps: the steps in order.
        name: the name of the metric.
        share: the share of the steps to average over, at least one step.
    """
    values = [step[name] for step in steps[-max(1, round(share * len(steps))) :] if name in step]
    return float(np.mean(values)) if values else None


def measures(played: Sequence[Played], *, confidence: float, resamples: int) -> list[dict[str, Any]]:
    """The rows of one side, one for each iteration; seeds that the guard stopped are missing in later iterations."""
    rows = []
    for index in range(max(len(run.rows) for run in played)):
        present = [run for run in played if len(run.rows) > index]
        recorded = [run.rows[index] for run in present]
        by_oracle = [row["by_oracle"]["win_rate_vs_base"]["mean"] for row in recorded if "by_oracle" in row]
        by_measure = {name: [row[name] for row in recorded] for name in ("response_tokens", "kl_to_base")}
        by_measure |= {name: [at_the_end(run.steps[index], name) for run in present] for name in CURVES}
        by_measure |= {"win_rate_vs_base_by_oracle": by_oracle} if by_oracle else {}
        row: dict[str, Any] = {"iteration": index + 1, "seeds": len(present)}
        row["failed"] = sum(bool(summary_row["alarms"]) for summary_row in recorded)
        rates = [run.by_prompt[index] for run in present]
        row["win_rate_vs_base"] = rate(rates, confidence=confidence, resamples=resamples)
        for name, values in by_measure.items():
            known = np.array([value for value in values if value is not None])
            row[name] = head_to_head.over_seeds(known, confidence=confidence) if len(known) else None
        rows.append(row)
    return rows


def curves(played: Sequence[Played], name: str) -> tuple[Float[Array, "seeds steps"], list[int]]:
    """A training metric through all iterations, for the seeds that were run to the end, and where iterations end."""
    longest = max(sum(map(len, run.steps)) for run in played)
    whole = [run for run in played if sum(map(len, run.steps)) == longest]
    values = [[step.get(name, np.nan) for steps in run.steps for step in steps] for run in whole]
    return np.array(values), np.cumsum([len(steps) for steps in whole[0].steps]).tolist()


def last_policies(
    home: Path, runs: Sequence[Run], terminal: Terminal, *, confidence: float, resamples: int
) -> dict[str, Any]:
    """The game between the last policies of the sides and the base, by the oracle of the evaluation.

    Policies of the same seed are compared, by the responses that their evaluations have recorded.
    """
    names = [BASE, *dict.fromkeys(run.entry for run in runs)]
    games_of_seeds = [
        _games(home, [run for run in runs if run.seed == seed], names, terminal)
        for seed in dict.fromkeys(run.seed for run in runs)
    ]
    payoff = np.full((len(names), len(names)), 0.5)
    ends = {over: {end: payoff.copy() for end in ("low", "high")} for over in ("prompts", "seeds")}
    for i, j in np.argwhere(~np.eye(len(names), dtype=bool)):
        by_prompt = [{prompt: game[i, j] for prompt, game in games.items()} for games in games_of_seeds]
        win_rate = rate(by_prompt, confidence=confidence, resamples=resamples)
        payoff[i, j] = win_rate["mean"]
        for over, matrices in ends.items():
            for end, matrix in matrices.items():
                matrix[i, j] = win_rate[over][end]
    return {
        "policies": names,
        "win_rates": payoff.tolist(),
        **{over: {end: matrix.tolist() for end, matrix in by_end.items()} for over, by_end in ends.items()},
        "von_neumann_winner": solve(payoff).policy.tolist(),
    }


def _games(
    home: Path, runs: Sequence[Run], names: Sequence[str], terminal: Terminal
) -> dict[str, Float[Array, "m m"]]:
    """For each prompt, the game between the base and the last policies of one seed's runs."""
    last = [max(row["iteration"] for row in read(run).rows) for run in runs]
    first = runs[0]
    policies = [
        (RunReader(run.folder.path), number) for run, number in [(first, 0), *zip(runs, last, strict=True)]
    ]
    responses = [list(run.held_out(number)) for run, number in policies]
    evaluations = [(run.record(number, "evaluate") or {})["fingerprint"] for run, number in policies]
    config = first.recipe.needed_held_out_oracle("a comparison")
    settings = {"oracle": oracles.identity(config), "policies": list(names)}
    stage = evaluation_stage(home, f"head to head, seed {first.seed}", "games", settings, evaluations)
    models = Models(first.recipe)

    def work(part: range, advance: Advance) -> list[dict[str, Any]]:
        prompts = [
            PromptRow(row.prompt_id, row.messages, [], None) for row in responses[0][part.start : part.stop]
        ]
        payoff = head_to_head.games(
            lambda _, texts: models.compare(prompts, texts, held_out=True),
            [prompt.prompt_id for prompt in prompts],
            [[rows_of_policy[index].texts for index in part] for rows_of_policy in responses],
        ).payoff
        advance(len(prompts))
        pairs = zip(prompts, payoff, strict=True)
        return [{"prompt_id": prompt.prompt_id, "payoff": matrix.tolist()} for prompt, matrix in pairs]

    rows = stage.compute(len(responses[0]), work, _GAMES, terminal, "prompts")
    return {row["prompt_id"]: np.array(row["payoff"]) for row in rows}


def show(terminal: Terminal, comparison: Mapping[str, Any]) -> None:
    """Shows the table of sides and iterations, and the matrix of the last policies."""
    rows = [(side["name"], row) for side in comparison["sides"] for row in side["iterations"]]
    is_by_oracle = any("win_rate_vs_base_by_oracle" in row for _, row in rows)
    heads = ["", "iteration", "seeds", "vs base", "over prompts", "over seeds"]
    heads += ["by oracle"] if is_by_oracle else []
    heads += ["tokens", "KL", "winners", "losers", "failed"]
    title = (
        f"Win rates on held-out prompts with {comparison['confidence']:.0%} intervals; tokens per response; KL to the base"
        " in nats;\nlog-ratios of winners and losers in nats, at the end of the iteration's training; failed: the number"
        " of seeds with alarms of the guard"
    )
    show_table(terminal, heads, [_row(name, row, is_by_oracle) for name, row in rows], title)
    game = comparison["head_to_head"]
    names = game["policies"]
    over = "seeds" if len(comparison["seeds"]) > 1 else "prompts"

    def cell(i: int, j: int) -> str:
        ends = {end: game[over][end][i][j] for end in ("low", "high")}
        return "-" if i == j else f"{game['win_rates'][i][j]:.3f} {_ends(ends)}"

    indices = range(len(names))
    winner = game["von_neumann_winner"]
    matrix = [[names[i], *(cell(i, j) for j in indices), f"{winner[i]:.3f}"] for i in indices]
    terminal.show("")
    title = f"The last policies, with intervals over {over}; winner: the von Neumann winner, the mixture that none beats"
    show_table(terminal, ["P(row > column)", *names, "winner"], matrix, title)


def _row(name: str, row: Mapping[str, Any], is_by_oracle: bool) -> list[Any]:
    rates = row["win_rate_vs_base"]
    return [
        name if row["iteration"] == 1 else "",
        row["iteration"],
        row["seeds"],
        f"{rates['mean']:.3f}",
        _ends(rates["prompts"]),
        _ends(rates["seeds"]) if row["seeds"] > 1 else "",
        *([_mean(row.get("win_rate_vs_base_by_oracle"), ".3f")] if is_by_oracle else []),
        _mean(row["response_tokens"], ".1f"),
        _mean(row["kl_to_base"], "z.2f"),
        _mean(row["log_ratio_winners"], "+z.2f"),
        _mean(row["log_ratio_losers"], "+z.2f"),
        row["failed"] or "",
    ]


def _ends(interval: Mapping[str, float]) -> str:
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def _mean(measure: Mapping[str, float] | None, how: str) -> str:
    return "" if measure is None else format(measure["mean"], how)


def last_win_rate(run: Run) -> str:
    """The win rate of a run's last policy against the base, in words."""
    rows = read(run).rows
    rate = rows[-1]["win_rate_vs_base"]
    return f"win rate against the base {rate['mean']:.3f} {_ends(rate)} after {counted_text(len(rows), 'iteration')}"


def gather(
    home: Path, runs: Sequence[Run], stopped: Mapping[str, str], terminal: Terminal
) -> tuple[dict[str, Any], dict[str, list[Played]]]:
    """The contents of comparison.json, and the results of each side's runs."""
    evaluation = runs[0].recipe.evaluation
    interval: dict[str, Any] = {"confidence": evaluation.confidence, "resamples": evaluation.resamples}
    played: dict[str, list[Played]] = {}
    for run in runs:
        played.setdefault(run.entry, []).append(read(run))
    recipes = {run.entry: run.recipe for run in runs}
    comparison = {
        "confidence": evaluation.confidence,
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "sides": [
            {
                "name": name,
                "algorithm": recipes[name].algorithm.model_dump(mode="json"),
                "selection": recipes[name].selection,
                "iterations": measures(of_seeds, **interval),
            }
            for name, of_seeds in played.items()
        ],
        "stopped": dict(stopped),
        "head_to_head": last_policies(home, runs, terminal, **interval),
    }
    return comparison, played
