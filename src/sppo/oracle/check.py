"""`sppo oracle check`: measures an oracle on the responses of a run or of a file."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sppo import oracle as oracles
from sppo.oracle.behaviour import Check, check
from sppo.policy.chat_format import as_messages, plain_text
from sppo.policy.opening import open_policy
from sppo.progress import Terminal
from sppo.reading import parse, regular
from sppo.recipe import ANSWERS, OracleConfig, keep_answers_in
from sppo.recipe.oracle import Text
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, with_run_policies


class Material(NamedTuple):
    """The prompts as text, and the responses, that an oracle is checked on."""

    prompts: list[str]
    responses: list[list[str]]


def oracle_of_run(path: Path, *, held_out: bool) -> OracleConfig:
    """The oracle that a run learns from, or its held-out oracle.

    Raises:
        RunError: the run has no such oracle.
    """
    recipe = RunReader(path).recipe
    config = recipe.evaluation.oracle if held_out else recipe.oracle
    if config is None:
        other = "leave --held-out out" if held_out else "see --held-out"
        raise RunError(f"{path}: the recipe has no {'evaluation.oracle' if held_out else 'oracle'}; {other}")
    return config


def of_run(path: Path, iteration: int | None, limit: int, form: Text = "prompt") -> Material:
    """The first prompts, with their responses, of a given iteration or of the first iteration that has any.

    Raises:
        RunError: nothing has been sampled.
    """
    run = RunReader(path)
    for number in [iteration] if iteration is not None else run.iterations:
        rows = list(islice(run.responses(number), limit))
        if rows:
            return Material(
                shown_prompts(run, [row.messages for row in rows], form), [row.texts for row in rows]
            )
    which = "" if iteration is None else f" in iteration {iteration}"
    raise RunError(
        f"{path}: nothing has been sampled{which}; run `sppo sample` first, or give --responses FILE"
    )


def shown_prompts(run: RunReader, conversations: Sequence[list[Any]], form: Text) -> list[str]:
    """The prompts as an oracle sees them that sees them in the given form."""
    recipe = run.recipe
    if form != "chat":
        return [plain_text(messages) for messages in conversations]
    chat = open_policy(recipe.policy.model, run=run.path).chat
    return [chat.text(messages) for messages in conversations]


def of_file(path: Path, limit: int) -> Material:
    """The first rows of a .jsonl file: `prompt` (text or messages) and `responses` (a list of texts).

    Raises:
        RunError: the file cannot be read, or a row has another form; the message names the line.
    """
    found = Material([], [])
    try:
        with regular(path).open(encoding="utf-8") as file:
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
        row = parse(line)
        prompt, responses = row["prompt"], row["responses"]
        if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
            raise ValueError("responses must be a list of texts")
        if len(responses) < 2:
            raise ValueError(f"{len(responses)} responses; at least 2 are needed")
        return plain_text(as_messages(prompt)), responses
    except (ValueError, KeyError, TypeError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{where}: not a prompt with responses: {said}; a line is {_LINE}") from error


def check_oracle(
    config: OracleConfig, material: Material, terminal: Terminal, *, run: Path | None, tie: float
) -> Check:
    """Compare all responses and measure the oracle; a judge's answers are kept in the run's folder if a run is given."""
    if run is not None:
        config = keep_answers_in(with_run_policies(RunReader(run), config), run / ANSWERS)
    oracle = oracles.load(config.model_dump())
    scale = getattr(config, "scale", 500.0)
    with terminal.bar("oracle check", len(material.prompts), "prompts") as advance:
        return check(
            oracle, material.prompts, material.responses, tie=tie, length_scale=scale, advance=advance
        )


def show(found: Check, terminal: Terminal) -> None:
    """Print the measures."""
    terminal.show_json(asdict(found))
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
        "rank correlation of P with length": f"{found.length_correlation:+z.3f}",
        f"fitted length penalty (nats, scale {found.length_scale:g})": f"{found.length_penalty:+z.4f}",
        "pairs per second": f"{found.pairs_per_second:,.1f}",
    }


def _print(terminal: Terminal, title: str, rows: dict[str, str]) -> None:
    widths = [max(map(len, column)) for column in (rows, rows.values())]
    terminal.show(title, "italic")
    for name, value in rows.items():
        terminal.show(f" {name.ljust(widths[0])}  {value.rjust(widths[1])}")


def responses_for(
    run: Path | None, file: Path | None, iteration: int | None, limit: int, form: Text
) -> Material:
    """The prompts and responses of a file, or else of a run.

    Raises:
        RunError: neither is given.
    """
    if file is not None:
        return of_file(file, limit)
    if run is None:
        raise RunError(
            f"there are no responses to compare; give a run, or --responses FILE with lines like {_LINE}"
        )
    return of_run(run, iteration, limit, form)
