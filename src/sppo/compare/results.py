"""What a comparison finds: each side's measures by iteration, and the game between the sides' last policies.

Every win rate has two intervals. That over prompts is a percentile bootstrap of the mean over prompts of each prompt's
mean over seeds: what other prompts would change. That over seeds is Student's t on the seeds' means: what another
training run would change. Neither contains the other.
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
from sppo.progress import Advance, Terminal
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader
from sppo.rundir.tables import PromptRow
from sppo.stages.models import Models
from sppo.winrates import Array

CURVES = ("log_ratio_winners", "log_ratio_losers")
MEASURES = ("response_tokens", "kl_to_base", *CURVES)
BASE = "base"
_GAMES = pa.schema([("prompt_id", pa.string()), ("payoff", pa.list_(pa.list_(pa.float64())))])


@dataclass(frozen=True)
class Played:
    """What one run has left behind.

    Attributes:
        rows: of its summary.json, one for each iteration.
        by_prompt: for each iteration the win rate against the base on each held-out prompt.
        steps: for each iteration its optimiser's steps in order, as in metrics.jsonl.
    """

    rows: list[dict[str, Any]]
    by_prompt: list[dict[str, float]]
    steps: list[list[dict[str, Any]]]


def read(run: Run) -> Played:
    """What a run has left behind.

    Raises:
        RunError: nothing of it has been evaluated, or not by this version.
    """
    reader = RunReader(run.folder.path)
    found = reader.summary
    if found is None:
        raise RunError(f"{run.folder.path}: no iteration of it is finished; run it first")
    by_prompt, steps = [], []
    for row in found["iterations"]:
        number = row["iteration"]
        rates = (reader.record(number, "evaluate") or {}).get("win_rates_vs_base")
        if rates is None:
            raise RunError(
                f"{run.folder.path}: iteration {number} has no win rates by prompt; remove its evaluation.json"
            )
        prompts = [row.prompt_id for row in reader.held_out(number)]
        by_prompt.append(dict(zip(prompts, rates, strict=True)))
        steps.append(reader.steps(number))
    return Played(found["iterations"], by_prompt, steps)


def rate(
    by_prompt: Sequence[Mapping[str, float]], *, confidence: float, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """A win rate over seeds and prompts.

    Args:
        by_prompt: for each seed the win rate on each prompt; seeds may have other prompts.
        confidence: of both intervals.
        resamples: of the bootstrap over prompts.
        seed: of its draws.

    Returns:
        `mean`; `prompts` and `seeds`, each with `low` and `high`; `of_seeds`, the seeds' own means.
    """
    of_seeds = np.array([np.mean(list(rates.values())) for rates in by_prompt])
    gathered: dict[str, list[float]] = defaultdict(list)
    for rates in by_prompt:
        for prompt, value in rates.items():
            gathered[prompt].append(value)
    of_prompts = np.array([np.mean(values) for values in gathered.values()])
    over_prompts = head_to_head.interval(of_prompts, confidence=confidence, resamples=resamples, seed=seed)
    over_seeds = head_to_head.over_seeds(of_seeds, confidence=confidence)
    return {
        "mean": float(of_seeds.mean()),
        "prompts": {end: over_prompts[end] for end in ("low", "high")},
        "seeds": {end: over_seeds[end] for end in ("low", "high")},
        "of_seeds": of_seeds.tolist(),
    }


def at_the_end(steps: Sequence[Mapping[str, Any]], name: str, share: float = 0.2) -> float | None:
    """Mean of a training metric over the last steps of an iteration; None where the steps do not tell it.

    Args:
        steps: in order.
        name: of the metric.
        share: of the steps, at least one.
    """
    values = [step[name] for step in steps[-max(1, round(share * len(steps))) :] if name in step]
    return float(np.mean(values)) if values else None


def measures(played: Sequence[Played], *, confidence: float, resamples: int) -> list[dict[str, Any]]:
    """One side's rows, one for each iteration that any seed has played; a seed that was stopped is missing in later ones."""
    rows = []
    for index in range(max(len(one.rows) for one in played)):
        present = [one for one in played if len(one.rows) > index]
        of_each: dict[str, list[float | None]] = {
            "response_tokens": [one.rows[index]["response_tokens"] for one in present],
            "kl_to_base": [one.rows[index]["kl_to_base"] for one in present],
            **{name: [at_the_end(one.steps[index], name) for one in present] for name in CURVES},
        }
        told = {name: [value for value in values if value is not None] for name, values in of_each.items()}
        row: dict[str, Any] = {
            "iteration": index + 1,
            "seeds": len(present),
            "win_rate_vs_base": rate(
                [one.by_prompt[index] for one in present], confidence=confidence, resamples=resamples
            ),
            **{
                name: head_to_head.over_seeds(np.array(values), confidence=confidence) if values else None
                for name, values in told.items()
            },
            "failed": sum(bool(one.rows[index]["alarms"]) for one in present),
        }
        by_oracle = [one.rows[index]["by_oracle"] for one in present if "by_oracle" in one.rows[index]]
        if by_oracle:
            means = np.array([found["win_rate_vs_base"]["mean"] for found in by_oracle])
            row["win_rate_vs_base_by_oracle"] = head_to_head.over_seeds(means, confidence=confidence)
        rows.append(row)
    return rows


def curves(played: Sequence[Played], name: str) -> tuple[Float[Array, "seeds steps"], list[int]]:
    """A training metric through all iterations, of the seeds that were played to the end, and where iterations end."""
    longest = max(sum(map(len, one.steps)) for one in played)
    whole = [one for one in played if sum(map(len, one.steps)) == longest]
    values = [[step.get(name, np.nan) for steps in one.steps for step in steps] for one in whole]
    return np.array(values), np.cumsum([len(steps) for steps in whole[0].steps]).tolist()


def last_policies(
    home: Path, runs: Sequence[Run], terminal: Terminal, *, confidence: float, resamples: int
) -> dict[str, Any]:
    """The game between the last policies of the sides and the base, seed by seed, by the evaluation's oracle.

    Policies meet those of their own seed with the responses that their evaluation has recorded.
    """
    names = [BASE, *dict.fromkeys(run.entry for run in runs)]
    of_seeds = []
    for seed in dict.fromkeys(run.seed for run in runs):
        of_seeds.append(_games(home, [run for run in runs if run.seed == seed], names, terminal))
    count = len(names)
    payoff = np.full((count, count), 0.5)
    ends = {over: {end: payoff.copy() for end in ("low", "high")} for over in ("prompts", "seeds")}
    for i, j in np.argwhere(~np.eye(count, dtype=bool)):
        found = rate(
            [{prompt: game[i, j] for prompt, game in games.items()} for games in of_seeds],
            confidence=confidence,
            resamples=resamples,
        )
        payoff[i, j] = found["mean"]
        for over, of in ends.items():
            for end, matrix in of.items():
                matrix[i, j] = found[over][end]
    return {
        "policies": names,
        "win_rates": payoff.tolist(),
        **{over: {end: matrix.tolist() for end, matrix in of.items()} for over, of in ends.items()},
        "von_neumann_winner": solve(payoff).policy.tolist(),
    }


def _games(
    home: Path, runs: Sequence[Run], names: Sequence[str], terminal: Terminal
) -> dict[str, Float[Array, "m m"]]:
    """Prompt by prompt the game between the base and the last policies of one seed's runs."""
    last = [max(row["iteration"] for row in read(run).rows) for run in runs]
    first = runs[0]
    played = [
        (RunReader(run.folder.path), number) for run, number in [(first, 0), *zip(runs, last, strict=True)]
    ]
    responses = [list(run.held_out(number)) for run, number in played]
    of_evaluations = [(run.record(number, "evaluate") or {})["fingerprint"] for run, number in played]
    config = first.recipe.needed_held_out_oracle("a comparison")
    settings = {"oracle": oracles.identity(config), "policies": list(names)}
    found = evaluation_stage(home, f"head to head, seed {first.seed}", "games", settings, of_evaluations)
    models = Models(first.recipe)

    def work(part: range, advance: Advance) -> list[dict[str, Any]]:
        rows = [responses[0][index] for index in part]
        prompts = [PromptRow(row.prompt_id, row.messages, [], None) for row in rows]
        payoff = head_to_head.games(
            lambda _, texts: models.compare(prompts, texts, held_out=True),
            [row.prompt_id for row in prompts],
            [[rows_of_policy[index].texts for index in part] for rows_of_policy in responses],
        ).payoff
        advance(len(rows))
        return [
            {"prompt_id": row.prompt_id, "payoff": matrix.tolist()}
            for row, matrix in zip(rows, payoff, strict=True)
        ]

    rows = found.compute(len(responses[0]), work, _GAMES, terminal, "prompts")
    return {row["prompt_id"]: np.array(row["payoff"]) for row in rows}


def show(terminal: Terminal, found: Mapping[str, Any]) -> None:
    """The table of sides and iterations, and the matrix of their last policies."""
    judged = any("win_rate_vs_base_by_oracle" in row for side in found["sides"] for row in side["iterations"])
    heads = ["", "iteration", "seeds", "vs base", "over prompts", "over seeds"]
    heads += ["by oracle"] if judged else []
    heads += ["tokens", "KL", "winners", "losers", "failed"]
    rows = []
    for side in found["sides"]:
        for row in side["iterations"]:
            rates = row["win_rate_vs_base"]
            rows.append(
                [
                    side["name"] if row["iteration"] == 1 else "",
                    row["iteration"],
                    row["seeds"],
                    f"{rates['mean']:.3f}",
                    _ends(rates["prompts"]),
                    _ends(rates["seeds"]) if row["seeds"] > 1 else "",
                    *([_mean(row.get("win_rate_vs_base_by_oracle"), ".3f")] if judged else []),
                    _mean(row["response_tokens"], ".1f"),
                    _mean(row["kl_to_base"], ".2f"),
                    _mean(row["log_ratio_winners"], "+.2f"),
                    _mean(row["log_ratio_losers"], "+.2f"),
                    row["failed"] or "",
                ]
            )
    title = (
        f"Win rates on held-out prompts with {found['confidence']:.0%} intervals; tokens per response; KL to the base"
        " in nats;\nlog pi/pi_t of winners and losers in nats, at the end of the iteration's training; failed: seeds"
        " that the guard found fault with"
    )
    show_table(terminal, heads, rows, title)
    game = found["head_to_head"]
    names = game["policies"]
    over = "seeds" if len(found["seeds"]) > 1 else "prompts"
    matrix = [
        [
            names[i],
            *(
                "-"
                if i == j
                else f"{game['win_rates'][i][j]:.3f} {_ends({end: game[over][end][i][j] for end in ('low', 'high')})}"
                for j in range(len(names))
            ),
            f"{game['von_neumann_winner'][i]:.3f}",
        ]
        for i in range(len(names))
    ]
    terminal.say("")
    show_table(
        terminal,
        ["P(row > column)", *names, "winner"],
        matrix,
        f"The last policies, with intervals over {over}; winner: the von Neumann winner, the mixture that none beats",
    )


def _ends(interval: Mapping[str, float]) -> str:
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def _mean(found: Mapping[str, float] | None, how: str) -> str:
    return "" if found is None else format(found["mean"], how)


def gather(
    home: Path, runs: Sequence[Run], stopped: Mapping[str, str], terminal: Terminal
) -> tuple[dict[str, Any], dict[str, list[Played]]]:
    """Everything that the runs have found, as in comparison.json, and what it was made of."""
    of = runs[0].recipe.evaluation
    interval: dict[str, Any] = {"confidence": of.confidence, "resamples": of.resamples}
    played: dict[str, list[Played]] = {}
    for run in runs:
        played.setdefault(run.entry, []).append(read(run))
    recipes = {run.entry: run.recipe for run in runs}
    found = {
        "confidence": of.confidence,
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "sides": [
            {
                "name": name,
                "algorithm": recipes[name].algorithm.model_dump(mode="json"),
                "selection": recipes[name].selection,
                "iterations": measures(ones, **interval),
            }
            for name, ones in played.items()
        ],
        "stopped": dict(stopped),
        "head_to_head": last_policies(home, runs, terminal, **interval),
    }
    return found, played
