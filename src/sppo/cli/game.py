"""`sppo game`: solve, measure and play preference games, from files or between the policies of runs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sppo.cli import options
from sppo.cli.options import parse_numbers
from sppo.cli.tables import (
    show_facts,
    show_intransitivity,
    show_matrix,
    show_solution,
    show_standings,
    show_table,
)

if TYPE_CHECKING:
    from sppo.game.preference_games import Array
    from sppo.progress import Terminal

app = typer.Typer(
    name="game",
    help="Solve and measure preference games given as tables, and simulate learning dynamics on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Kind(StrEnum):
    """The kinds of games that `generate` writes."""

    random = "random"
    bradley_terry = "bradley-terry"
    rock_paper_scissors = "rock-paper-scissors"
    cyclic = "cyclic"
    majority = "majority"


Matrix = Annotated[
    Path,
    typer.Argument(
        metavar="MATRIX",
        help="The probabilities P(row beats column): a .csv file, or an .npy file of one or many games.",
    ),
]
Tolerance = Annotated[
    float, typer.Option(help="How far P + P^T may be from 1, for files with rounded numbers.")
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="W,W,...", help="A policy: one probability for each response."),
]


@app.command(epilog="Example: sppo game generate rock-paper-scissors --bias 0.9,0.7,0.6 -o rps.csv")
@options.described_by_docstring
def generate(
    kind: Annotated[Kind, typer.Argument(metavar="KIND")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    common: options.OutputOptions,
    n: Annotated[int, typer.Option("-n")] = 5,
    games: int = 1,
    seed: int = 0,
    annotators: int = 5,
    strength: float = 1.0,
    bias: Annotated[str, typer.Option(metavar="R,P,S")] = "1,1,1",
) -> None:
    """Write a game of a known kind to a file.

    Args:
        kind: The kind of game.
        output: The .csv or .npy file to write.
        n: Number of responses.
        games: Number of random games; more than one needs an .npy file.
        seed: Random seed for random, bradley-terry and majority.
        annotators: Number of annotators for majority.
        strength: For cyclic: how often the winner wins.
        bias: For rock-paper-scissors: how often each beats the one that it beats.
    """
    import numpy as np

    from sppo.game import preference_games, write_table

    names: tuple[str, ...] | None = None
    match kind:
        case Kind.random:
            payoff = preference_games.random_game(n, games=() if games == 1 else games, seed=seed)
        case Kind.bradley_terry:
            payoff = preference_games.bradley_terry_game(np.random.default_rng(seed).normal(size=n))
        case Kind.cyclic:
            payoff = preference_games.cyclic_game(n, strength=strength)
        case Kind.majority:
            payoff = preference_games.majority_game(np.random.default_rng(seed).random((annotators, n)))
        case Kind.rock_paper_scissors:
            names = ("rock", "paper", "scissors")
            biases = dict(zip(names, parse_numbers(bias, "--bias", 3), strict=True))
            payoff = preference_games.rock_paper_scissors(**biases)
    write_table(output, payoff, names)
    common.terminal.show(f"wrote {' x '.join(map(str, payoff.shape))} probabilities to {output}")
    common.terminal.show_json({"file": str(output), "shape": list(payoff.shape)})


@app.command(epilog="Example: sppo game solve rps.csv --policy 0.2,0.3,0.5")
@options.described_by_docstring
def solve(
    matrix: Matrix, common: options.OutputOptions, policy: Weights = None, tolerance: Tolerance = 1e-6
) -> None:
    """Find the von Neumann winner of a game, beside the winners that other rules name."""
    import numpy as np

    from sppo import game as games

    table = games.read_table(matrix, tolerance=tolerance)
    payoff = table.payoff
    if payoff.ndim > 2:
        if policy is not None:
            raise typer.BadParameter("--policy works with one game only, and this file holds many.")
        show_facts(_summary_of_winners(payoff), common.terminal)
        return
    solution = games.solve(payoff)
    columns: dict[str, Any] = {
        "winner": solution.policy,
        "beats winner": games.win_rates_against(payoff, solution.policy),
        "Borda": games.borda_scores(payoff),
        "Copeland": games.copeland_scores(payoff),
        "Condorcet": games.condorcet_winner(payoff),
        "Smith": games.smith_set(payoff),
    }
    facts: dict[str, Any] = {
        "duality gap of the winner": float(solution.gap),
        "unique": bool(solution.unique),
    }
    if policy is not None:
        weights = games.policy_weights(parse_numbers(policy, "--policy", len(payoff)))
        columns["policy"] = weights
        columns["beats policy"] = games.win_rates_against(payoff, weights)
        facts["exploitability of the policy"] = float(games.exploitability(payoff, weights))
        best = np.flatnonzero(games.best_responses(payoff, weights))
        facts["best responses to it"] = [table.names[i] for i in best]
    show_solution(columns, facts, table.names, common.terminal)


def _summary_of_winners(payoff: Array) -> dict[str, float]:
    """A summary of the von Neumann winners of many games."""
    import numpy as np

    from sppo import game as games

    solution = games.solve(payoff)
    return {
        "games": int(np.prod(payoff.shape[:-2])),
        "responses": payoff.shape[-1],
        "largest duality gap of a winner": float(solution.gap.max()),
        "share with one winner only": float(solution.unique.mean()),
        "share with a Condorcet winner": float(games.condorcet_winner(payoff).any(-1).mean()),
        "responses that the winner plays, mean": float((solution.policy > 1e-6).sum(-1).mean()),
    }


@app.command(epilog="Example: sppo game inspect game.npy --json")
@options.described_by_docstring
def inspect(
    matrix: Matrix, common: options.OutputOptions, clip: options.Clip = 0.01, tolerance: Tolerance = 1e-6
) -> None:
    """Measure how intransitive a game is and what a scalar reward loses on it; many games are averaged."""
    from sppo import game as games

    payoff = games.read_table(matrix, tolerance=tolerance).payoff
    show_intransitivity(games.intransitivity(payoff, clip=clip).means(), common.terminal)


@app.command(epilog="Example: sppo game converge rps.csv --iterations 1000 --figure rates.svg")
@options.described_by_docstring
def converge(
    common: options.OutputOptions,
    matrix: Annotated[Path | None, typer.Argument(metavar="MATRIX")] = None,
    iterations: Annotated[int, typer.Option(min=10)] = 10_000,
    initial: Weights = None,
    figure: Path | None = None,
    simplex: Path | None = None,
    data: Path | None = None,
    tolerance: Tolerance = 1e-6,
) -> None:
    """Check the rate of Theorem 4.1 on a game, and show which dynamics converge in their last iterate.

    Args:
        matrix: A game, as for `solve`. [default: a biased rock-paper-scissors]
        iterations: The number of steps of each dynamic, and the largest T.
        figure: Draw rates and last iterates to this .svg, .png or .pdf file.
        simplex: Draw the paths of a game of 3 responses to this file.
        data: Write the curves to this CSV file.
    """
    import numpy as np

    from sppo import game as games
    from sppo.game import convergence

    if matrix is None:
        table = games.Table(games.rock_paper_scissors(), ("rock", "paper", "scissors"))
        initial = initial or "0.8,0.15,0.05"
    else:
        table = games.read_table(matrix, tolerance=tolerance)
    n = table.payoff.shape[-1]
    start = parse_numbers(initial, "--initial", n) if initial else np.full(n, 1 / n)
    first = games.policy_weights(start, name="--initial")
    times = sorted({round(t) for t in np.geomspace(10, iterations, 13)})
    rates = convergence.average_rates(table.payoff, times, initial=first)
    curves = convergence.last_iterates(table.payoff, iterations, initial=first)
    terminal = common.terminal
    _show_convergence(rates, curves, times, iterations, terminal)
    if data is not None:
        _write_curves(data, rates, curves)
        terminal.show(f"wrote the curves to {data}")
    if figure is not None:
        convergence.save(convergence.draw(rates, curves), figure)
        terminal.show(f"wrote the figure to {figure}")
    if simplex is not None:
        steps = min(iterations, 2000)
        paths = convergence.last_iterates(table.payoff, steps, initial=first, record=range(1, steps + 1, 4))
        winner = games.nash(table.payoff)
        convergence.save(convergence.draw_simplex(paths, names=table.names, winner=winner), simplex)
        terminal.show(f"wrote the figure to {simplex}")


def _show_convergence(
    rates: Any, curves: Any, times: Sequence[int], iterations: int, terminal: Terminal
) -> None:
    import numpy as np

    average = rates.average.reshape(len(times), -1).max(-1)
    last = np.median(rates.last.reshape(len(times), -1), -1)
    bounds = [
        dict(zip(("T", "eta", "bound", "average policy", "last policy"), row, strict=True))
        for row in zip(times, rates.eta, rates.bound, average, last, strict=True)
    ]
    dynamics = [
        {
            "dynamic": curve.name,
            "last policy": np.median(curve.last[-1]),
            "average policy": np.median(curve.average[-1]),
        }
        for curve in curves
    ]
    title = (
        "Multiplicative weights, eta = sqrt(8 ln n / T): exploitability (average: worst game, last: median)"
    )
    for heading, rows in ((title, bounds), (f"Exploitability after {iterations} steps (median)", dynamics)):
        show_table(terminal, heading, list(rows[0]), [row.values() for row in rows])
    terminal.show_json({"rates": bounds, "dynamics": dynamics})


def _write_curves(path: Path, rates: Any, curves: Any) -> None:
    import csv

    import numpy as np

    rows: list[list[Any]] = []
    for i, t in enumerate(rates.times):
        last, average = np.median(rates.last[i]), rates.average[i].max()
        rows.append(["multiplicative weights, a run per T", int(t), last, average, rates.bound[i]])
    for curve in curves:
        for i, t in enumerate(curve.times):
            rows.append([curve.name, int(t), np.median(curve.last[i]), np.median(curve.average[i]), ""])
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["series", "steps", "exploitability_last", "exploitability_average", "bound"])
        writer.writerows(rows)


@app.command(epilog="Example: sppo game strategies policies.csv --averaged 1,1,2")
@options.described_by_docstring
def strategies(
    matrix: Matrix,
    common: options.OutputOptions,
    averaged: Annotated[str | None, typer.Option(metavar="W,W,...")] = None,
    tolerance: Tolerance = 1e-6,
) -> None:
    """Treat policies as strategies: the Nash mixture of a matrix of win rates, and how others fare against it.

    Args:
        averaged: Weights of the averaged policy. [default: equal weights]
    """
    from sppo import game as games

    table = games.read_table(matrix, tolerance=tolerance)
    weights = None if averaged is None else parse_numbers(averaged, "--averaged", len(table.names))
    game = games.empirical_game(table.payoff, names=table.names, averaged=weights, tolerance=tolerance)
    show_standings(game, common.terminal)


@app.command(epilog="Example: sppo game policies runs/quickstart")
@options.described_by_docstring
def policies(runs: options.Runs, common: options.OutputOptions) -> None:
    """Play the policies of one or more runs against each other: their Nash mixture, and how the others fare."""
    from sppo import game as games
    from sppo.compare import game as run_games

    terminal = common.terminal
    names, payoff, rivals, challenges = run_games.policies(
        runs, run_games.oracle_of(runs[0]).compare, terminal
    )
    game = games.empirical_game(payoff, names=names, challengers=challenges, challenger_names=rivals)
    show_matrix(terminal, "Win rate of the row policy against the column policy", game.names, game.payoff)
    show_standings(game, terminal)


@app.command(epilog="Example: sppo game certify runs/quickstart --seeds 2 --rates 1,2")
@options.described_by_docstring
def certify(
    run: options.RunFolderArgument,
    common: options.OutputOptions,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    rates: Annotated[str, typer.Option(metavar="X,X,...")] = "1,2",
    iterations: Annotated[int, typer.Option(min=1)] = 2,
    prompts: Annotated[int, typer.Option(min=1)] = 240,
    responses: Annotated[int, typer.Option(min=1)] = 4,
    adapter_rank: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Bound from below how exploitable a run's last and averaged policies are, by best responses trained against them.

    The best response is chosen on one half of the held-out prompts and measured on the other half.

    Args:
        seeds: Number of seeds to train best responses with.
        rates: Step sizes, as multiples of the recipe's learning rate.
        iterations: Iterations of each training, all of them against the same opponent.
        prompts: The largest number of the run's training prompts to train on.
        responses: How many of the opponent's responses to each training prompt are drawn.
        adapter_rank: Train LoRA adapters of this rank as best responses, which larger models need; a run of adapters goes on
            with its own.
    """
    from sppo.compare import certificate

    multiples = parse_numbers(rates, "--rates")
    if not all(0 < rate < float("inf") for rate in multiples) or len(set(multiples)) < len(multiples):
        raise typer.BadParameter(f"--rates {rates!r}: expected different positive numbers, such as 1,2.")
    effort = certificate.Effort(seeds, multiples, iterations, prompts, responses, adapter_rank)
    terminal = common.terminal
    found = certificate.certify(run, effort, terminal)
    terminal.show_json({of.target: of.record() for of in found})
    rows = [
        [of.target, of.candidates[of.bound.best], *vars(of.bound.measured).values(), len(of.candidates)]
        for of in found
    ]
    header = [
        "policy",
        "best response",
        "exploitable by at least",
        "95% from",
        "to",
        "prompts",
        "responses tried",
    ]
    show_table(
        terminal, "Lower bounds of the exploitability (win rate of the best response - 1/2)", header, rows
    )
    for of in found:
        terminal.show(of.sentence)
