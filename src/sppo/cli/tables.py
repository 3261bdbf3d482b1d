"""Printing of the game commands' results, as tables for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from sppo.game.empirical_game import EmpiricalGame
    from sppo.game.preference_games import Array

_MEASURES = {
    "cyclic_triples": "share of triples that are cycles",
    "cyclic_share": "share of the squared log-odds that no reward explains",
    "bradley_terry_divergence": "nats per comparison to the nearest Bradley-Terry model",
    "bradley_terry_error": "its largest error of a probability",
    "condorcet": "a response beats all others (share of games)",
    "scalar_exploitability": "exploitability of a scalar reward's choice",
    "winner_support": "responses that the von Neumann winner plays",
    "winner_entropy": "its entropy (nats)",
}


def show_intransitivity(means: Mapping[str, float], *, as_json: bool) -> None:
    """Print the means of `Intransitivity`."""
    show_facts(means if as_json else {_MEASURES[name]: mean for name, mean in means.items()}, as_json=as_json)


def show_standings(game: EmpiricalGame, *, as_json: bool) -> None:
    """Print how the mixtures of an empirical game fare against its policies."""
    standings = {"Nash mixture": game.nash, "last policy": game.last, "averaged policy": game.averaged}
    if as_json:
        show_json({mixture: vars(standing) for mixture, standing in standings.items()})
        return
    weights = [standing.weights for standing in standings.values()]
    show_table("Weights", ["policy", *standings], zip(game.names, *weights, strict=True))
    header = ["mixture", "exploitability", "duality gap", "best response", "its win rate"]
    if game.last.interval is not None:
        header.append("exploitability, 95% over prompts")
    rows = []
    for mixture, standing in standings.items():
        rows.append(
            [mixture, standing.exploitability, standing.gap, standing.best_response, standing.win_rate]
        )
        if standing.interval is not None:
            rows[-1].append("{:.4g} to {:.4g}".format(*standing.interval))
    show_table("Standing", header, rows)


def show_matrix(title: str, names: Sequence[str], payoff: Array) -> None:
    """Print a matrix with a name for each row and column."""
    show_table(title, ["", *names], ([name, *row] for name, row in zip(names, payoff, strict=True)))


def show_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print named values, one in each line."""
    if as_json:
        show_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {'no' if value is False else _cell(value)}")


def show_json(values: Mapping[str, Any]) -> None:
    """Print values as JSON, arrays as lists."""
    typer.echo(json.dumps(values, indent=2, default=lambda array: array.tolist()))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        # a pipe has no width; rich assumes 80 columns and would truncate numbers
        console.width = max(console.width, 200)
    console.print(Text(title), table, "", sep="\n")


def _cell(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:z.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
