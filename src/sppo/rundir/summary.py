"""A run in figures: the row after each iteration, summary.json, and three examples at the end."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sppo import randomness
from sppo.progress import Terminal, printable
from sppo.recipe import Section
from sppo.rundir import storage
from sppo.rundir.folder import RunFolder, StageFolder, write_json
from sppo.rundir.shards import read_shard
from sppo.stages.all import HELD_OUT, Stages, Turn

STAGES = ("sample", "annotate", "select", "train", "evaluate")
_COLUMNS = (
    ("iteration", 9),
    ("vs base", 20),
    ("vs previous", 20),
    ("tokens", 6),
    ("KL", 5),
    ("cut", 5),
    (f"seconds ({'+'.join(STAGES)})", 0),
)
_BY_ORACLE = ("vs base by oracle", 20)
_EXAMPLES = 3
_EXAMPLE_LENGTH = 600


def show_header(terminal: Terminal, stages: Stages) -> None:
    """What the rows are about, their heads, and the base policy's row."""
    of = stages.recipe
    base = stages.evaluate_stage(HELD_OUT, stages.base, stages.base).read_record()
    held_out = stages.prompts_stage(HELD_OUT).read_record()["prompts"]
    prompts = [
        stages.prompts_stage(number).read_record()["prompts"] for number in range(1, of.iterations + 1)
    ]
    judge = of.evaluation.judge
    judged = "" if of.oracle is None else f"the {of.oracle.type} oracle"
    judged = judged if judge is None else f"the held-out {judge.type}"
    learnt = f"K = {of.sampling.k}; " if of.algorithm.samples else ""
    measured = (
        f"Win rates by {judged} on {held_out} held-out prompts, with {of.evaluation.confidence:.0%} intervals by"
        " bootstrap over prompts"
        if judged
        else f"No oracle, hence no win rates; of the responses to {held_out} held-out prompts"
    )
    terminal.say(
        f"{of.policy.model}: {of.iterations} iterations over {' + '.join(map(str, prompts))} prompts,"
        f" {learnt}{settings_text(of.algorithm)}.\n{measured};\ntokens per"
        " response, KL to the base in nats per response, share of responses cut at the limit.\n"
    )
    if judge is not None and of.oracle is not None and of.algorithm.preferences:
        terminal.say(
            f"Self-play learns from the {of.oracle.type} oracle, whose own win rates stand beside the judge's.\n"
        )
    columns = _columns(stages)
    terminal.say(_line([title for title, _ in columns], columns), "bold")
    empty = [""] * (len(columns) - 5)
    cells = ["base", *empty, *_response_cells(base, kl=None), _seconds_cell(stages, HELD_OUT)]
    terminal.say(_line(cells, columns))


def show_iteration(terminal: Terminal, stages: Stages, played: Sequence[Turn]) -> None:
    """The row of the iteration played last; summary.json follows unless it knows of later ones."""
    number = played[-1].number
    measured = played[-1].stages["evaluate"].read_record()
    cells = [
        str(number),
        _interval_cell(measured.get("win_rate_vs_base")),
        _interval_cell(measured.get("win_rate_vs_previous")),
        *([_interval_cell(measured["by_oracle"]["win_rate_vs_base"])] if "by_oracle" in measured else []),
        *_response_cells(measured, kl=measured["kl_to_base"]),
        _seconds_cell(stages, number),
    ]
    terminal.say(_line(cells, _columns(stages)))
    counted = oracle_counts(stages.run, number)
    for kind, title in {"sources": "prompts", "candidates": "responses"}.items():
        if counted.get(f"{kind}_cut"):
            terminal.say(
                f"note: {counted[f'{kind}_cut']} of {counted[kind]} {title} were longer than the oracle's limit"
                " and cut there",
                "yellow",
            )
    other_end = measured["missing_end_of_turn"]
    if other_end:
        terminal.say(
            f"note: {other_end} held-out responses ended without the template's end of turn", "yellow"
        )
    if len(played) > len((read(stages.run.path / "summary.json") or {}).get("iterations", [])):
        write(stages, played)


def write(stages: Stages, played: Sequence[Turn]) -> dict[str, Any]:
    """Write summary.json for the iterations played so far, and their rows into their metrics.jsonl."""
    rows: list[dict[str, Any]] = []
    policy = stages.base.folder
    untrained = accepted = stages.evaluate_stage(HELD_OUT, stages.base, stages.base)
    for turn in played:
        measured = turn.stages["evaluate"].read_record()
        selected = turn.stages["select"].read_record()
        found = stages.alarms(turn.stages["evaluate"])
        row: dict[str, Any] = {
            "iteration": turn.number,
            **{
                name: measured[name]
                for name in (
                    "win_rate_vs_base",
                    "win_rate_vs_previous",
                    "response_tokens",
                    "kl_to_base",
                    "truncated_share",
                    "missing_end_of_turn",
                    "repetition",
                )
                if name in measured
            },
            **({"by_oracle": measured["by_oracle"]} if "by_oracle" in measured else {}),
            "seconds": seconds(stages.run, turn.number),
            **_learnt_from(turn),
            "sampler_deviation": selected["sampler_deviation"],
            "oracle": oracle_counts(stages.run, turn.number),
            "trained": {name: selected[name] for name in ("trained_prompts", "trained_responses")},
            "alarms": found,
        }
        rows.append(row)
        if not found or stages.recipe.guard.on_failure == "keep":
            policy, accepted = turn.stages["train"].folder, turn.stages["evaluate"]
        stages.run.forget_metrics(turn.number, "summary")
        stages.run.log(turn.number, {"stage": "summary", **row})
    base = untrained.read_record()
    prompts = stages.prompts_stage(HELD_OUT).read_record()
    content = {
        "iterations": rows,
        "policy": str(policy),
        "base": {
            "policy": str(stages.base.folder),
            **{
                name: base[name]
                for name in ("response_tokens", "truncated_share", "missing_end_of_turn", "repetition")
            },
            "seconds": seconds(stages.run, HELD_OUT),
        },
        "prompts": {name: prompts[name] for name in ("read", "skipped", "doubled_bos")},
        "examples": examples(untrained, accepted, seed=stages.recipe.seed),
    }
    write_json(stages.run.path / "summary.json", content)
    return content


def _learnt_from(turn: Turn) -> dict[str, Any]:
    """What the responses of pi_t were like, and how cyclic what the oracle said of them; where there are such."""
    found: dict[str, Any] = {}
    if "sample" in turn.stages:
        sampled = turn.stages["sample"].read_record()
        names = ("responses_drawn", "response_tokens", "truncated_share", "missing_end_of_turn")
        found["sampled"] = {name: sampled[name] for name in names}
    if "annotate" in turn.stages:
        found["cyclic_triples"] = turn.stages["annotate"].read_record()["cyclic_triples"]
    return found


def finish(terminal: Terminal, stages: Stages, played: Sequence[Turn]) -> dict[str, Any]:
    """Show where the policy lies and three examples of before and after."""
    content = write(stages, played)
    for example in content["examples"]:
        terminal.say(f"\nprompt  {_shown(example['prompt'])}", "bold")
        terminal.say(f"before  {_shown(example['before'])}")
        terminal.say(f"after   {_shown(example['after'])}", "green")
    terminal.say(
        f"\nThe policy is in {content['policy']}; talk to it with: sppo chat {storage.shown(stages.run.path)}"
    )
    return content


def examples(base: StageFolder, after: StageFolder, *, seed: int) -> list[dict[str, str]]:
    """The first responses of the base and of the accepted policy to held-out prompts drawn by the seed."""
    found = []
    for stage in (base, after):
        rows = [
            row
            for path in stage.shards()
            for row in read_shard(path, columns=["prompt_id", "messages", "responses"]).to_pylist()
        ]
        rows.sort(key=lambda row: randomness.digest("example", seed, row["prompt_id"]))
        found.append(rows[:_EXAMPLES])
    return [
        {
            "prompt_id": before["prompt_id"],
            "prompt": before["messages"][-1]["content"],
            "before": before["responses"][0]["text"],
            "after": after["responses"][0]["text"],
        }
        for before, after in zip(*found, strict=True)
    ]


def read(path: Path) -> dict[str, Any] | None:
    """A summary.json; None where there is none, or a damaged one."""
    found = read_mapping(path)
    return found if found is not None and isinstance(found.get("iterations"), list) else None


def read_mapping(path: Path) -> dict[str, Any] | None:
    """A file of a mapping; None where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def seconds(run: RunFolder, iteration: int) -> dict[str, float]:
    """Seconds spent in each stage of an iteration, resumed work included; what a kill cut short is not counted."""
    spent = dict.fromkeys(STAGES, 0.0)
    for record in run.read_metrics(iteration):
        if record.get("stage") in spent and "seconds" in record:
            spent[record["stage"]] += record["seconds"]
    return {name: round(value, 2) for name, value in spent.items()}


def oracle_counts(run: RunFolder, iteration: int) -> dict[str, int]:
    """What the oracle counted while it annotated an iteration, such as texts that were cut."""
    of_shards = {
        record["shard"]: record["oracle"]
        for record in run.read_metrics(iteration)
        if record.get("stage") == "annotate" and "oracle" in record
    }
    total: Counter[str] = Counter()
    for counts in of_shards.values():
        total.update(counts)
    return dict(total)


def versions() -> str:
    """The versions that a recipe is run with, as comment lines of YAML."""
    names = ("sppo", "torch", "transformers", "accelerate", "numpy", "pyarrow")
    installed = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"# {installed}, Python {platform.python_version()}\n"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def settings_text(section: Section) -> str:
    """A section of the recipe that has a type, in a line."""
    values = section.model_dump(exclude={"type"}, exclude_none=True)
    shown = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    ]
    kind: str = section.model_dump()["type"]
    return f"{kind} ({', '.join(shown)})" if shown else kind


def _columns(stages: Stages) -> tuple[tuple[str, int], ...]:
    of = stages.recipe
    beside = () if of.evaluation.judge is None or of.oracle is None else (_BY_ORACLE,)
    return (*_COLUMNS[:3], *beside, *_COLUMNS[3:])


def _line(cells: list[str], columns: Sequence[tuple[str, int]]) -> str:
    return "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, columns, strict=True)).rstrip()


def _interval_cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _response_cells(measured: Mapping[str, Any], kl: float | None) -> list[str]:
    return [
        f"{measured['response_tokens']:.1f}",
        "" if kl is None else f"{kl:.2f}",
        f"{measured['truncated_share']:.1%}",
    ]


def _seconds_cell(stages: Stages, iteration: int) -> str:
    return " + ".join(f"{value:.0f}" for value in seconds(stages.run, iteration).values())


def _shown(text: str) -> str:
    shown = printable(text if len(text) <= _EXAMPLE_LENGTH else text[: _EXAMPLE_LENGTH - 3] + "...")
    return shown.strip().replace("\n", "\n        ")
