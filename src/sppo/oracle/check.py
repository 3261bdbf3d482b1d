"""`sppo oracle check`: an oracle on a run's responses, or on a file's."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from sppo import oracle as oracles
from sppo.compare import game as run_games
from sppo.oracle.behaviour import Check, check
from sppo.policy.chat_format import as_messages, plain_text
from sppo.progress import Terminal, printable
from sppo.recipe import ANSWERS, OracleConfig, keep_answers_in, load
from sppo.rundir.folder import RunError
from sppo.rundir.shards import read_shard
from sppo.stages.models import Models


class Material(NamedTuple):
    """What an oracle is checked on: prompts as text, and the responses to each."""

    prompts: list[str]
    responses: list[list[str]]


def of_run(run: Path, iteration: int | None, limit: int) -> Material:
    """The first so many prompts of a run's first sampled iteration, or of one, with their responses.

    Raises:
        RunError: nothing has been sampled.
    """
    models = Models(load(run / "recipe.yaml"))
    for number in [iteration] if iteration is not None else run_games.iterations(run):
        shards = sorted((run / f"iter-{number}" / "responses").glob("part-*.parquet"))
        rows: list[dict[str, Any]] = []
        for shard in shards:
            rows += read_shard(shard, columns=["messages", "responses"]).to_pylist()
            if len(rows) >= limit:
                break
        if rows:
            rows = rows[:limit]
            texts = [[response["text"] for response in row["responses"]] for row in rows]
            return Material(models.prompt_texts([row["messages"] for row in rows]), texts)
    which = "" if iteration is None else f" in iteration {iteration}"
    raise RunError(
        f"{run}: nothing has been sampled{which}; run `sppo sample` first, or give --responses FILE"
    )


def of_file(path: Path, limit: int) -> Material:
    """The first so many rows of a .jsonl file: `prompt` (text or messages) and `responses` (a list of texts).

    Raises:
        RunError: it cannot be read, or a row is something else; the message names the line.
    """
    found = Material([], [])
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and len(found.prompts) < limit:
                    prompt, responses = _row(line, f"{path}, line {number}")
                    found.prompts.append(prompt)
                    found.responses.append(responses)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: the responses cannot be read: {error}") from error
    if not found.prompts:
        raise RunError(f"{path}: it is empty; a line is {_LINE}")
    return found


_LINE = '{"prompt": "...", "responses": ["...", "..."]}'


def _row(line: str, where: str) -> tuple[str, list[str]]:
    try:
        row = json.loads(line)
        prompt, responses = row["prompt"], row["responses"]
        if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
            raise ValueError("responses must be a list of texts")
        if len(responses) < 2:
            raise ValueError(f"{len(responses)} responses; at least 2 are needed")
        return plain_text(as_messages(prompt)), responses
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{where}: not a prompt with responses: {said}; a line is {_LINE}") from error


def check_oracle(
    config: OracleConfig, material: Material, terminal: Terminal, *, run: Path | None, tie: float
) -> Check:
    """Ask the oracle about everything, and measure; a judge's answers are kept in the run's folder, if there is one."""
    if run is not None:
        config = keep_answers_in(config, run / ANSWERS)
    oracle = oracles.load(config.model_dump())
    scale = getattr(config, "scale", 500.0)
    with terminal.bar("oracle check", len(material.prompts), "prompts") as advance:
        return check(
            oracle, material.prompts, material.responses, tie=tie, length_scale=scale, advance=advance
        )


def show(found: Check, terminal: Terminal, *, as_json: bool) -> None:
    """Print what was measured, as a table or as JSON."""
    if as_json:
        terminal.console.print_json(json.dumps(asdict(found)))
        return
    _print(terminal, "Answers", _answers(found))
    for name, of in found.orders.items():
        rows = {
            "mean |M_ij + M_ji| (nats)": f"{of.inconsistency:.4g}",
            "pairs whose winner depends on the order": f"{of.flips:.1%}",
            "mean P of the response that stands first": f"{of.first_wins:.4f}",
        }
        _print(terminal, f"Both orders: {name}", rows)
    if found.counts:
        counts = {name.replace("_", " "): f"{count:,}" for name, count in found.counts.items()}
        _print(terminal, "Counted", counts)


def _answers(found: Check) -> dict[str, str]:
    return {
        "prompts": f"{found.prompts:,}",
        "pairs of responses": f"{found.pairs:,}",
        "mean |P - 1/2|": f"{found.mean_margin:.4f}",
        f"near ties (|P - 1/2| < {found.tie:g})": f"{found.near_ties:.1%}",
        "triples of responses that go round": f"{found.cyclic_triples:.2%}",
        "mean P of the longer response": f"{found.longer_wins:.4f}",
        "rank correlation of P with length": f"{found.length_correlation:+.3f}",
        f"fitted length penalty (nats, scale {found.length_scale:g})": f"{found.length_penalty:+.4f}",
        "pairs per second": f"{found.pairs_per_second:,.1f}",
    }


def _print(terminal: Terminal, title: str, rows: dict[str, str]) -> None:
    table = Table(title=Text(printable(title)), title_justify="left", show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    terminal.console.print(table)


def responses_for(run: Path | None, file: Path | None, iteration: int | None, limit: int) -> Material:
    """What an oracle is to be checked on: a file's responses, or a run's.

    Raises:
        RunError: there is neither.
    """
    if file is not None:
        return of_file(file, limit)
    if run is None:
        raise RunError(
            f"there are no responses to compare; give a run, or --responses FILE with lines like {_LINE}"
        )
    return of_run(run, iteration, limit)
