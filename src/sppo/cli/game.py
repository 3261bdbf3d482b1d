"""`sppo game`: solve, measure and play preference games from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sppo.game.empirical_game import EmpiricalGame
    from sppo.game.preference_games import Array

app = typer.Typer(
    name="game",
    help="Preference games in tables: exact solutions, intransitivity, learning dynamics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Kind(StrEnum):
    """The games that `generate` makes."""

    random = "random"
    bradley_terry = "bradley-terry"
    rock_paper_scissors = "rock-paper-scissors"
    cyclic = "cyclic"
    majority = "majority"


Matrix = Annotated[
    Path,
    typer.Argument(metavar="MATRIX", help="P(row beats column): a .csv, or an .npy of one or many games."),
]
Tolerance = Annotated[float, typer.Option(help="How far P + P^T may be from 1, e.g. in a rounded file.")]
Weights = Annotated[str | None, typer.Option(metavar="W,W,...", help="Probabilities, one per response.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Clip = Annotated[float, typer.Option(help="Keep probabilities this far from 0 and 1 in the log-odds.")]
Bias = Annotated[
    str, typer.Option(metavar="R,P,S", help="Of rock-paper-scissors: how often each beats its victim.")
]


@app.command()
def generate(
    kind: Kind,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write it: .csv or .npy.")],
    n: Annotated[int, typer.Option("-n", help="Number of responses.")] = 5,
    games: Annotated[int, typer.Option(help="Number of games (random only; more than one needs .npy).")] = 1,
    seed: Annotated[int, typer.Option(help="Of random, bradley-terry and majority.")] = 0,
    annotators: Annotated[int, typer.Option(help="Of majority.")] = 5,
    strength: Annotated[float, typer.Option(help="Of cyclic: how often the winner wins.")] = 1.0,
    bias: Bias = "1,1,1",
) -> None:
    """Write a game of a known kind."""
    import numpy as np

    from sppo.game import preference_games, write_table

    names: Sequence[str] | None = None
    if kind is Kind.random:
        payoff = preference_games.random_game(n, games=() if games == 1 else games, seed=seed)
    elif kind is Kind.bradley_terry:
        payoff = preference_games.bradley_terry_game(np.random.default_rng(seed).normal(size=n))
    elif kind is Kind.cyclic:
        payoff = preference_games.cyclic_game(n, strength=strength)
    elif kind is Kind.majority:
        payoff = preference_games.majority_game(np.random.default_rng(seed).random((annotators, n)))
    else:
        rock, paper, scissors = _numbers(bias, 3, "--bias")
        payoff = preference_games.rock_paper_scissors(rock=rock, paper=paper, scissors=scissors)
        names = ("rock", "paper", "scissors")
    write_table(output, payoff, tuple(names) if names else None)
    _say(f"{' x '.join(map(str, payoff.shape))} probabilities in {output}")


@app.command()
def solve(
    matrix: Matrix,
    policy: Weights = None,
    tolerance: Tolerance = 1e-6,
    as_json: AsJson = False,
) -> None:
    """The von Neumann winner of a game, and what else could be called its winner."""
    import numpy as np

    from sppo import game as games

    table = games.read_table(matrix, tolerance=tolerance)
    payoff = table.payoff
    if payoff.ndim > 2:
        _solve_many(payoff, policy, as_json)
        return
    solution = games.solve(payoff)
    given = None if policy is None else games.policy_weights(_numbers(policy, len(payoff), "--policy"))
    columns: dict[str, Any] = {
        "winner": solution.policy,
        "beats winner": games.win_rates_against(payoff, solution.policy),
        "Borda": games.borda_scores(payoff),
        "Copeland": games.copeland_scores(payoff),
        "Condorcet": games.condorcet_winner(payoff),
        "Smith": games.smith_set(payoff),
    }
    if given is not None:
        columns["policy"] = given
        columns["beats policy"] = games.win_rates_against(payoff, given)
    facts: dict[str, Any] = {
        "duality gap of the winner": float(solution.gap),
        "unique": bool(solution.unique),
    }
    if given is not None:
        best = np.flatnonzero(games.best_responses(payoff, given))
        facts["exploitability of the policy"] = float(games.exploitability(payoff, given))
        facts["best responses to it"] = [table.names[i] for i in best]
    if as_json:
        typer.echo(json.dumps({"names": table.names, **_plain(columns), **facts}, indent=2))
        return
    _print_table(
        "von Neumann winner", ["response", *columns], zip(table.names, *columns.values(), strict=True)
    )
    _print_facts(facts)


def _solve_many(payoff: Array, policy: str | None, as_json: bool) -> None:
    import numpy as np

    from sppo import game as games

    if policy is not None:
        raise typer.BadParameter("a policy is compared with one game; this file holds many.")
    solution = games.solve(payoff)
    support = (solution.policy > 1e-6).sum(-1)
    facts = {
        "games": int(np.prod(payoff.shape[:-2])),
        "responses": payoff.shape[-1],
        "largest duality gap of a winner": float(solution.gap.max()),
        "share with one winner only": float(solution.unique.mean()),
        "share with a Condorcet winner": float(games.condorcet_winner(payoff).any(-1).mean()),
        "responses that the winner plays, mean": float(support.mean()),
    }
    typer.echo(json.dumps(facts, indent=2)) if as_json else _print_facts(facts)


@app.command()
def inspect(
    matrix: Matrix,
    clip: Clip = 0.01,
    tolerance: Tolerance = 1e-6,
    as_json: AsJson = False,
) -> None:
    """How intransitive a game is, and what a scalar reward loses on it; means over many games."""
    from sppo import game as games

    payoff = games.read_table(matrix, tolerance=tolerance).payoff
    show_intransitivity(games.intransitivity(payoff, clip=clip).means(), as_json=as_json)


def show_intransitivity(means: dict[str, float], *, as_json: bool) -> None:
    """Print the means of `Intransitivity`, in words or as JSON."""
    if as_json:
        typer.echo(json.dumps(means, indent=2))
    else:
        _print_facts({_MEASURES[name]: value for name, value in means.items()})


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


@app.command()
def converge(
    matrix: Annotated[
        Path | None, typer.Argument(metavar="[MATRIX]", help="A game; rock-paper-scissors where not given.")
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=10, help="Steps of every dynamic, and the largest T.")
    ] = 10_000,
    initial: Weights = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw rates and last iterates: .svg, .png or .pdf.")
    ] = None,
    simplex: Annotated[Path | None, typer.Option(help="Draw the paths of a game of 3 responses.")] = None,
    data: Annotated[Path | None, typer.Option(help="Write the curves as CSV.")] = None,
    tolerance: Tolerance = 1e-6,
) -> None:
    """Theorem 4.1 on a game, and which methods converge in the last iterate."""
    import numpy as np

    from sppo import game as games
    from sppo.game import convergence

    if matrix is None:
        table = games.Table(games.rock_paper_scissors(), ("rock", "paper", "scissors"))
        start = _numbers(initial or "0.8,0.15,0.05", 3, "--initial")
    else:
        table = games.read_table(matrix, tolerance=tolerance)
        n = table.payoff.shape[-1]
        start = _numbers(initial, n, "--initial") if initial else np.full(n, 1 / n).tolist()
    first = games.policy_weights(start, name="--initial")
    times = sorted({round(t) for t in np.geomspace(10, iterations, 13)})
    rates = convergence.average_rates(table.payoff, times, initial=first)
    curves = convergence.last_iterates(table.payoff, iterations, initial=first)
    average = rates.average.reshape(len(times), -1).max(-1)
    last = np.median(rates.last.reshape(len(times), -1), -1)
    _print_table(
        "Multiplicative weights, eta = sqrt(8 ln n / T): exploitability (average: worst game, last: median)",
        ["T", "eta", "bound", "average policy", "last policy"],
        zip(times, rates.eta, rates.bound, average, last, strict=True),
    )
    _print_table(
        f"Exploitability after {iterations} steps (median)",
        ["dynamic", "last policy", "average policy"],
        [(c.name, np.median(c.last[-1]), np.median(c.average[-1])) for c in curves],
    )
    if data is not None:
        _write_curves(data, rates, curves)
    if figure is not None:
        convergence.save(convergence.draw(rates, curves), figure)
        _say(f"figure in {figure}")
    if simplex is not None:
        steps = min(iterations, 2000)
        paths = convergence.last_iterates(table.payoff, steps, initial=first, record=range(1, steps + 1, 4))
        drawn = convergence.draw_simplex(paths, names=table.names, winner=games.nash(table.payoff))
        convergence.save(drawn, simplex)
        _say(f"figure in {simplex}")


@app.command()
def strategies(
    matrix: Matrix,
    averaged: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="Weights of the averaged policy; all alike by default."),
    ] = None,
    tolerance: Tolerance = 1e-6,
    as_json: AsJson = False,
) -> None:
    """Policies as strategies: Nash mixture of a win-rate matrix, gap of the last and the averaged policy."""
    from sppo import game as games

    table = games.read_table(matrix, tolerance=tolerance)
    weights = None if averaged is None else _numbers(averaged, len(table.names), "--averaged")
    found = games.empirical_game(table.payoff, names=table.names, averaged=weights, tolerance=tolerance)
    show_standings(found, as_json=as_json)


def show_standings(found: EmpiricalGame, *, as_json: bool) -> None:
    """Print how the mixtures of an empirical game fare, as tables or as JSON."""
    standings = {"Nash mixture": found.nash, "last policy": found.last, "averaged policy": found.averaged}
    if as_json:
        typer.echo(
            json.dumps({which: _plain(vars(standing)) for which, standing in standings.items()}, indent=2)
        )
        return
    _print_table(
        "Weights",
        ["policy", *standings],
        zip(found.names, *(s.weights for s in standings.values()), strict=True),
    )
    rows = {which: [s.exploitability, s.gap, s.best_response, s.win_rate] for which, s in standings.items()}
    header = ["mixture", "exploitability", "duality gap", "best response", "its win rate"]
    if found.last.interval is not None:
        header.append("exploitability, 95% over prompts")
        for which, s in standings.items():
            low, high = s.interval or (0.0, 0.0)
            rows[which].append(f"{low:.4g} to {high:.4g}")
    _print_table("Standing", header, [[which, *row] for which, row in rows.items()])


def show_matrix(title: str, names: Sequence[str], payoff: Array) -> None:
    """Print a named matrix."""
    rows = ([name, *map(float, row)] for name, row in zip(names, payoff, strict=True))
    _print_table(title, ["", *names], rows)


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise typer.BadParameter(f"{option} {text!r}: expected {count} numbers separated by commas.")
    return numbers


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}


def _cell(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _print_table(title: str, columns: Sequence[str], rows: Any) -> None:
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
        # a pipe has no width, and cutting columns at 80 would lose numbers
        console.width = max(console.width, 200)
    console.print(Text(title), table, "", sep="\n")


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        _say(f"{name:<{width}}  {'no' if value is False else _cell(value)}")


def _write_curves(path: Path, rates: Any, curves: Any) -> None:
    import csv

    import numpy as np

    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["series", "steps", "exploitability_last", "exploitability_average", "bound"])
        for which, t in enumerate(rates.times):
            last, average = np.median(rates.last[which]), rates.average[which].max()
            writer.writerow(
                ["multiplicative weights, a run per T", int(t), last, average, rates.bound[which]]
            )
        for curve in curves:
            for which, t in enumerate(curve.times):
                last, average = np.median(curve.last[which]), np.median(curve.average[which])
                writer.writerow([curve.name, int(t), last, average, ""])
    _say(f"curves in {path}")


def _say(line: str) -> None:
    typer.echo(line)


def _main() -> None:
    import sys

    from sppo.game.preference_games import GameError

    try:
        app()
    except (GameError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    _main()
