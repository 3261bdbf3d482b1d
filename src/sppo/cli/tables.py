"""Printing of the game commands' results, as tables for people or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppo.compare.people import Inspected
    from sppo.game.empirical_game import EmpiricalGame
    from sppo.game.preference_games import Array
    from sppo.progress import Terminal

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


def show_intransitivity(means: Mapping[str, float], terminal: Terminal) -> None:
    """Print the means of `Intransitivity`."""
    _show_lines({_MEASURES[name]: mean for name, mean in means.items()}, terminal)
    terminal.show_json(means)


def show_standings(game: EmpiricalGame, terminal: Terminal) -> None:
    """Print how the mixtures of an empirical game fare against its policies."""
    standings = {"Nash mixture": game.nash, "last policy": game.last, "averaged policy": game.averaged}
    weights = [standing.weights for standing in standings.values()]
    show_table(terminal, "Weights", ["policy", *standings], zip(game.names, *weights, strict=True))
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
    show_table(terminal, "Standing", header, rows)
    by_mixture = {mixture: vars(standing) for mixture, standing in standings.items()}
    terminal.show_json({"policies": game.names, "win_rates": game.payoff, **by_mixture})


def show_votes(sides: Sequence[Inspected], terminal: Terminal) -> None:
    """Print the cycles of votes beside those of transitive votes, and what Bradley-Terry loses."""
    counts = ["votes", "ties", "voters", "prompts", "items", "pairs"]
    records = [side.record() for side in sides]
    show_table(
        terminal, "Votes", ["", *counts], [[of["name"], *(of[name] for name in counts)] for of in records]
    )
    header = ["", "triples", "cycles", "of transitive votes", "95%", "p"]
    levels = {
        "Cycles within prompts": ("triples", "cyclic"),
        "Cycles over all prompts": ("pooled_triples", "pooled_cyclic"),
    }
    for title, (count, name) in levels.items():
        rows = [[of["name"], of[count], *_against(of[name], "{:.2%}")] for of in records if of[count]]
        if rows:
            show_table(terminal, f"{title}, share of triples", header, rows)
    header = [
        "",
        "on the same votes",
        "of transitive votes",
        "95%",
        "p",
        "on new prompts",
        "95% over prompts",
    ]
    rows = []
    for of in records:
        found = of["predicted"]
        ends = (
            ["", ""]
            if found is None
            else [f"{found['gain']:z.4f}", "{low:z.4f} to {high:z.4f}".format(**found)]
        )
        rows.append([of["name"], *_against(of["lost"], "{:.4f}"), *ends])
    show_table(
        terminal, "What Bradley-Terry loses against free pairs, nats per vote that is not a tie", header, rows
    )
    terminal.show_json({"sides": records})


def _against(of: Mapping[str, float], form: str) -> list[str]:
    found, expected, low, high = (form.format(of[name]) for name in ("found", "expected", "low", "high"))
    return [found, expected, f"{low} to {high}", f"{of['p']:.3f}"]


def show_matrix(terminal: Terminal, title: str, names: Sequence[str], payoff: Array) -> None:
    """Print a matrix with a name for each row and column."""
    show_table(terminal, title, ["", *names], ([name, *row] for name, row in zip(names, payoff, strict=True)))


def show_facts(facts: Mapping[str, Any], terminal: Terminal) -> None:
    """Print named values, one in each line, or as JSON."""
    _show_lines(facts, terminal)
    terminal.show_json(facts)


def show_solution(
    columns: Mapping[str, Any], facts: Mapping[str, Any], names: Sequence[str], terminal: Terminal
) -> None:
    """Print a value of each response by column, and facts about them all."""
    rows = zip(names, *columns.values(), strict=True)
    show_table(terminal, "von Neumann winner", ["response", *columns], rows)
    _show_lines(facts, terminal)
    terminal.show_json({"names": names, **columns, **facts})


def show_table(terminal: Terminal, title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table for people whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    terminal.show_table(title, table)


def _show_lines(facts: Mapping[str, Any], terminal: Terminal) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        terminal.show(f"{name:<{width}}  {'no' if value is False else _cell(value)}")


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
