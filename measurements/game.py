"""The speed of `sppo.game`, side by side with OpenSpiel's Python learners and with a bare SciPy HiGHS call.

    python measurements/game.py                     both comparisons, about four minutes
    python measurements/game.py --only learning     multiplicative weights only, under a minute
    python measurements/game.py --steps 10000       all 10,000 steps on 1,000 games in each repeat

Its figures stand in docs/experiments.md under "The game in tables". All contenders run in turn within each repeat, so
that a change of the machine's load affects all of them; the ratios of their median times are reported. OpenSpiel is not
a dependency: if `pyspiel` cannot be imported, its rows are left out and the reason is printed. Run with
OMP_NUM_THREADS=1 to compare single cores.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from sppo.game import duality_gap, random_game, solve
from sppo.game.dynamics import MultiplicativeWeights, play

Contender = tuple[str, Callable[[], None], int]


def timed(contenders: list[Contender], repeats: int) -> dict[str, list[float]]:
    """Measure each contender's seconds per unit of work in turn; the first turn of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    for turn in range(repeats + 1):
        for name, work, units in contenders:
            begin = time.perf_counter()
            work()
            if turn:
                seconds[name].append((time.perf_counter() - begin) / units)
    return seconds


def report(title: str, unit: str, scale: float, seconds: dict[str, list[float]]) -> None:
    ours = statistics.median(next(iter(seconds.values())))
    print(f"\n{title}")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values) * scale:.4g} to {max(values) * scale:.4g}"
        print(f"  {name:<58} {median * scale:10.4g} {unit}  ({spread})   {median / ours:8.2f} x ours")


def openspiel_learners(payoff: np.ndarray, steps: int) -> list[Contender]:
    """OpenSpiel's Python learners for matrix games in self-play, which play one game at a time."""
    import pyspiel
    from open_spiel.python.algorithms import mmd_dilated, projected_replicator_dynamics
    from open_spiel.python.egt import dynamics

    n = len(payoff)
    tensor = np.stack([payoff, payoff.T])
    margins = payoff - 0.5
    game = pyspiel.convert_to_turn_based(pyspiel.create_matrix_game(margins.tolist(), (-margins).tolist()))
    mirror_descent = mmd_dilated.MMDDilatedEnt(game, alpha=0.0, stepsize=0.05)
    replicator = dynamics.SinglePopulationDynamics(tensor, dynamics.replicator)

    def magnetic() -> None:
        for _ in range(max(1, steps // 100)):
            mirror_descent.update_sequences()

    def projected(use_approx: bool) -> None:
        projected_replicator_dynamics.projected_replicator_dynamics(
            [payoff, payoff.T], prd_iterations=steps, prd_dt=0.05, prd_gamma=1e-10, use_approx=use_approx
        )

    def single_population() -> None:
        state = np.full(n, 1 / n)
        total = np.zeros(n)
        for _ in range(steps):
            total += state
            state = state + 0.05 * replicator(state)

    return [
        ("OpenSpiel MMDDilatedEnt(alpha=0): the same update", magnetic, max(1, steps // 100)),
        ("OpenSpiel projected_replicator_dynamics", lambda: projected(False), steps),
        ("OpenSpiel projected_replicator_dynamics(use_approx)", lambda: projected(True), steps),
        ("OpenSpiel SinglePopulationDynamics(replicator), Euler", single_population, steps),
    ]


def learning(games: int, responses: int, steps: int, repeats: int) -> None:
    payoffs = random_game(responses, games=games, seed=0)

    def ours() -> None:
        play(MultiplicativeWeights(0.05), payoffs, steps)

    def one_game() -> None:
        play(MultiplicativeWeights(0.05), payoffs[0], steps)

    contenders: list[Contender] = [
        (f"sppo.game, {games} games at once", ours, games * steps),
        ("sppo.game, one game alone", one_game, steps),
    ]
    try:
        contenders += openspiel_learners(payoffs[0], min(steps, 2000))
    except ImportError as error:
        print(f"OpenSpiel's rows are left out: {error} (pip install open_spiel)")
    title = f"Multiplicative weights with its average, n = {responses}, {steps} steps: time per game and step"
    report(title, "us", 1e6, timed(contenders, repeats))


def linear_programme(responses: int, repeats: int, method: str) -> None:
    from scipy.optimize import linprog

    payoff = random_game(responses, seed=1)
    gaps = {}

    def ours() -> None:
        gaps["sppo.game"] = float(solve(payoff).gap)

    def bare() -> None:
        # the shortest form of the programme: min sum x with P^T x >= 1, x >= 0; the winner is x divided by its sum
        result = linprog(np.ones(responses), A_ub=-payoff.T, b_ub=-np.ones(responses), method=method)
        policy = result.x / result.x.sum()
        gaps["bare"] = float(duality_gap(payoff, policy))

    contenders: list[Contender] = [
        ("sppo.game.solve: checked, exact on its support, certified", ours, 1),
        (f"scipy.optimize.linprog(method={method!r}), nothing else", bare, 1),
    ]
    report(f"Von Neumann winner of one game, n = {responses}", "s ", 1.0, timed(contenders, repeats))
    print("  duality gaps: " + ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["learning", "lp"])
    parser.add_argument("--games", type=int, default=1000)
    parser.add_argument(
        "--responses", type=int, default=50, help="number of responses in the comparison of learners"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lp-responses", type=int, default=2000)
    parser.add_argument("--lp-repeats", type=int, default=2)
    parser.add_argument("--lp-method", default="highs-ipm", help="highs-ds needs minutes at n = 2,000")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    if options.only != "lp":
        learning(options.games, options.responses, options.steps, options.repeats)
    if options.only != "learning":
        linear_programme(options.lp_responses, options.lp_repeats, options.lp_method)


if __name__ == "__main__":
    main()
