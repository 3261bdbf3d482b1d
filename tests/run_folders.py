"""Writes run folders with known figures, in the form in which a run leaves them behind."""

import json
from pathlib import Path

import yaml

from sppo.recipe import dump, parse
from sppo.rundir import summary
from sppo.rundir.environment import environment, header
from sppo.rundir.folder import write_json
from sppo.rundir.shards import read_shard, shard_metadata, table, write_shard
from sppo.rundir.tables import PREFERENCES, PROMPTS, RESPONSES, EvaluationRow, WinRate, to_table

RECIPE = {
    "iterations": 2,
    "policy": {"model": "tinyworld"},
    "prompts": {"train": "tinyworld/train"},
    "sampling": {"k": 3},
    "oracle": {"type": "panel"},
}
CYCLE = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
LINE = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]]
WIN_RATES = {1: (0.6, 0.6), 2: (0.7, 0.55)}


def interval(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


def repeat_shard(shard: Path, target: Path) -> None:
    """Write the rows of a shard again in another place, as a run would have written them there."""
    write_shard(target, read_shard(shard), shard_metadata(shard))


def write_run(
    folder,
    *,
    iterations=2,
    prompts=6,
    held_out=4,
    text=lambda iteration, prompt, k: f"response {k} to prompt {prompt} in iteration {iteration}",
    versions=None,
    measures=None,
    recipe=None,
):
    """A run in which some iterations of the recipe's two are finished.

    Training prompts alternate between a cycle and an order; a panel of two agrees about the orders alone. The win
    rate on held-out prompt n of 4 is (n + 1) / 5.
    """
    folder.mkdir(parents=True)
    recipe_text = dump(parse(RECIPE)) if recipe is None else yaml.safe_dump(recipe)
    (folder / "recipe.yaml").write_text((versions or header(environment())) + recipe_text, encoding="utf-8")
    for number in range(iterations + 1):
        home = folder / f"iter-{number}"
        _write_evaluation(home, number, held_out, text, (measures or {}).get(number))
        if number == 0:
            asked = [_prompt(f"held-{n}") for n in range(held_out)]
            _write_stage(home, "prompts", "prompts", asked, PROMPTS, {"prompts": held_out})
        else:
            _write_training_stages(home, number, prompts, text)
            _write_metrics(home / "metrics.jsonl", number)
    if iterations:
        content = {
            "iterations": [{"iteration": number} for number in range(1, iterations + 1)],
            "policy": str(folder / f"iter-{iterations}" / "policy"),
            "base": {"policy": "tinyworld"},
        }
        write_json(folder / "summary.json", content)
    return folder


def _write_evaluation(home, number, held_out, text, measures):
    asked = [_prompt(f"held-{n}") for n in range(held_out)]
    answered = [_answered(row, number, n, 2, text) for n, row in enumerate(asked)]
    _write_stage(home, "evaluate", "evaluation", answered, RESPONSES, _measures(number, measures))
    if number:
        rows = [
            EvaluationRow(
                row["prompt_id"], [-1.0, -1.0], [WinRate("base", "oracle", (n + 1) / (held_out + 1))]
            )
            for n, row in enumerate(asked)
        ]
        write_shard(home / "comparisons" / "part-00000.parquet", to_table(rows, EvaluationRow), {})


def _write_training_stages(home, number, prompts, text):
    asked = [_prompt(f"train-{number}-{n}") for n in range(prompts)]
    answered = [_answered(row, number, n, 3, text) for n, row in enumerate(asked)]
    compared = [
        {
            "prompt_id": row["prompt_id"],
            "matrix": matrix,
            "components": [{"oracle": "anna", "matrix": matrix}, {"oracle": "ben", "matrix": LINE}],
        }
        for n, row in enumerate(asked)
        for matrix in [LINE if n % 2 else CYCLE]
    ]
    sampled = {"responses_drawn": 3 * prompts, "response_tokens": 5.0}
    _write_stage(home, "prompts", "prompts", asked, PROMPTS, {"prompts": prompts})
    _write_stage(home, "sample", "responses", answered, RESPONSES, sampled)
    _write_stage(home, "annotate", "preferences", compared, PREFERENCES, {"cyclic_triples": 0.5})
    _write_stage(home, "select", "training", [], PROMPTS, {"trained_responses": 2 * prompts})
    _write_stage(home, "train", "policy", [], PROMPTS, {})


def _write_metrics(path, number):
    lines = [{"stage": stage, "seconds": 10.0 * number, "finished": True} for stage in summary.STAGES]
    lines += [
        {
            "stage": "train",
            "step": step,
            "loss": 9.0 / step,
            "kl": 0.1 * step,
            "peak_memory_gb": 1.25,
            "log_ratio_winners": 0.5 * step,
            "target_winners": 4.0,
            "log_ratio_losers": -0.5 * step,
            "target_losers": -4.0,
            "log_prob_winners": -8.0,
            "log_prob_losers": -20.0,
            "response_tokens_per_second": 321.0,
        }
        for step in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _prompt(name):
    return {
        "prompt_id": name,
        "messages": [{"role": "user", "content": f"prompt {name}"}],
        "prompt_token_ids": [1],
    }


def _answered(row, iteration, number, count, text):
    responses = [
        {
            "token_ids": list(range(3 + iteration + k)),
            "text": text(iteration, number, k),
            "finish_reason": "stop",
            "log_prob": -1.0,
            "token_log_probs": [],
        }
        for k in range(count)
    ]
    return {**row, "responses": responses}


def _measures(number, more):
    found = {
        "response_tokens": 4.0 + number,
        "truncated_share": 0.0,
        "missing_end_of_turn": 0,
        "repetition": 0.01,
    }
    if number:
        base, previous = WIN_RATES.get(number, (0.5, 0.5))
        found |= {"win_rate_vs_base": interval(base), "win_rate_vs_previous": interval(previous)}
        found |= {"kl_to_base": 0.25 * number, "held_out_prompts": 4}
    return found | (more or {})


def _write_stage(home, name, folder, rows, schema, more):
    write_shard(home / folder / "part-00000.parquet", table(rows, schema), {})
    described = {"name": "part-00000.parquet", "bytes": 1, "sha256": "0" * 64}
    record = {
        "stage": name,
        "iteration": int(home.name.removeprefix("iter-")),
        "fingerprint": f"{abs(hash((str(home), name))):064x}"[:64],
        "shards": [described],
        **more,
    }
    write_json(home / ("evaluation.json" if name == "evaluate" else f"{name}.json"), record)
