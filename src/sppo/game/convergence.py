r"""Theorem 4.1 of SPPO with its constant, and figures that show which dynamics converge.

SPPO (arXiv:2405.00675), Theorem 4.1, says that the average :math:`\bar\pi_T = \frac1T\sum_{t=1}^T \pi_t` of
multiplicative weights with a step of the order of :math:`1/\sqrt T` has a duality gap of the order of
:math:`1/\sqrt T`. The constant follows from the regret of Hedge with payoffs in [0, 1] (Freund and
Schapire, 1999): for every response y

.. math:: \sum_{t=1}^T P(y \succ \pi_t) - \tfrac T2 \le \frac{-\ln \pi_1(y)}{\eta} + \frac{\eta T}{8}

since :math:`P(\pi_t \succ \pi_t) = \tfrac12`; and the left side divided by T is what y gains over the average
policy. From the uniform policy with :math:`\eta = \sqrt{8 \ln n / T}` this is :math:`\sqrt{\ln n/(2T)}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.game.dynamics import (
    COMAL,
    INPO,
    SPPO,
    Dynamic,
    Extragradient,
    MagneticMirrorDescent,
    MultiplicativeWeights,
    NashMD,
    OptimisticMultiplicativeWeights,
    log_spaced,
    play,
)
from sppo.game.exploitability import exploitability
from sppo.game.preference_games import Array, GameError, policy_weights, preference_game

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def theorem_step_size(n: int, iterations: int) -> float:
    r"""The step size :math:`\eta = \sqrt{8 \ln n / T}`, at which the bound is smallest."""
    _require_game_length(n, iterations)
    return float(np.sqrt(8 * np.log(n) / iterations))


def theorem_bound(n: int, iterations: int) -> float:
    r"""Bound on the exploitability of the average policy from the uniform policy: :math:`\sqrt{\ln n / (2T)}`.

    The duality gap of Theorem 4.1 is at most twice as large.
    """
    _require_game_length(n, iterations)
    return float(np.sqrt(np.log(n) / (2 * iterations)))


def regret_bound(initial: npt.ArrayLike, eta: float, iterations: int) -> float:
    r"""The bound for any first policy and step size: :math:`\max_y \frac{-\ln\pi_1(y)}{\eta T} + \frac\eta8`.

    It is infinite if the first policy never plays some response, because self-play then never finds it.
    """
    first = policy_weights(initial, name="initial")
    _require_game_length(first.shape[-1], iterations)
    rarest = float(first.min())
    return float(np.inf if rarest == 0 else -np.log(rarest) / (eta * iterations) + eta / 8)


@dataclass(frozen=True)
class AverageRates:
    """Exploitability after T steps of multiplicative weights, for several T with the theorem's step size for each.

    Attributes:
        times: [runs] the T of each run.
        eta: [runs] the step size of each run.
        average: [runs, ...] exploitability of the average policy.
        last: [runs, ...] exploitability of the last policy.
        bound: [runs] upper bound on `average`.
    """

    times: npt.NDArray[np.int_]
    eta: Array
    average: Array
    last: Array
    bound: Array


def average_rates(
    payoff: npt.ArrayLike, times: Sequence[int], *, initial: npt.ArrayLike | None = None
) -> AverageRates:
    """Run multiplicative weights once for each T, with the theorem's step size for that T.

    Args:
        payoff: [..., n, n] preference matrices.
        times: the T of each run.
        initial: [n] the first policy; uniform if not given.
    """
    game = preference_game(payoff)
    n = game.shape[-1]
    first = policy_weights(np.full(n, 1 / n) if initial is None else initial, n, name="initial")
    eta = [theorem_step_size(n, t) for t in times]
    average, last = [], []
    for step, t in zip(eta, times, strict=True):
        run = play(MultiplicativeWeights(step), game, t, initial=first)
        average.append(exploitability(game, run.average[0]))
        last.append(exploitability(game, run.last[0]))
    bound = [regret_bound(first, step, t) for step, t in zip(eta, times, strict=True)]
    return AverageRates(np.array(times), np.array(eta), np.array(average), np.array(last), np.array(bound))


@dataclass(frozen=True)
class Curve:
    """The exploitability of one dynamic by the number of steps.

    Attributes:
        name: name of the dynamic.
        times: [records] the number of steps before each record.
        last: [records, ...] exploitability of the last policy.
        average: [records, ...] exploitability of the average policy.
        policies: [records, ..., n] the last policies themselves.
    """

    name: str
    times: npt.NDArray[np.int_]
    last: Array
    average: Array
    policies: Array


def last_iterates(
    payoff: npt.ArrayLike,
    iterations: int,
    *,
    initial: npt.ArrayLike | None = None,
    reference: npt.ArrayLike | None = None,
    dynamics: Sequence[Dynamic] | None = None,
    record: Sequence[int] | None = None,
) -> list[Curve]:
    """Run several dynamics from the same first policy.

    Args:
        payoff: [..., n, n] preference matrices.
        iterations: number of steps of each dynamic.
        initial: [..., n] the first policy; uniform if not given.
        reference: [..., n] the policy that regularised methods are pulled to; uniform if not given.
        dynamics: the dynamics to run; those of `standard_dynamics` if not given.
        record: the steps to record; if not given, about 60 of them, evenly spaced in their logarithm.
    """
    game = preference_game(payoff)
    n = game.shape[-1]
    anchor = np.full(n, 1 / n) if reference is None else reference
    times = record or log_spaced(iterations)
    curves = []
    for dynamic in standard_dynamics(n, iterations) if dynamics is None else dynamics:
        run = play(dynamic, game, iterations, initial=initial, reference=anchor, record=times)
        last, average = exploitability(game, run.last), exploitability(game, run.average)
        curves.append(Curve(run.name, run.times, last, average, run.last))
    return curves


def standard_dynamics(n: int, iterations: int) -> list[Dynamic]:
    """The dynamics that `sppo game converge` compares, with step sizes that suit games of moderate size."""
    return [
        MultiplicativeWeights(theorem_step_size(n, iterations)),
        SPPO(theorem_step_size(n, iterations)),
        OptimisticMultiplicativeWeights(0.5),
        NashMD(0.02, 0.1),
        MagneticMirrorDescent(0.2, 0.05, magnet_rate=0.01),
        INPO(0.2, 0.1),
        COMAL(0.3, 0.1, inner=50),
        Extragradient(0.5, 0.1),
    ]


def draw(rates: AverageRates, curves: Sequence[Curve]) -> Figure:
    """Draw the guarantee of the average policy on the left, and the dynamics' last policies on the right.

    Several games are drawn as their median; for the average policy the worst game is drawn as well.
    """
    figure = _figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(rates.times, rates.bound, color="black", linestyle="--", label="bound on the average")
    average = rates.average.reshape(len(rates.times), -1)
    last = rates.last.reshape(len(rates.times), -1)
    if average.shape[1] > 1:
        left.plot(rates.times, average.max(-1), color="C0", linestyle=":", label="average policy, worst game")
    left.plot(rates.times, np.median(average, -1), color="C0", marker=".", label="average policy")
    left.plot(rates.times, np.median(last, -1), color="C3", marker=".", label="last policy")
    left.set(title="multiplicative weights, one run for each T", xlabel="T", ylabel="exploitability")
    left.legend(fontsize="small")
    for number, curve in enumerate(curves):
        values = np.median(curve.last.reshape(len(curve.times), -1), -1)
        # different dashes keep curves that coincide, such as multiplicative weights and SPPO, both visible
        style = ("-", "--", "-.")[number % 3]
        right.plot(curve.times, np.maximum(values, 1e-12), linestyle=style, label=curve.name)
    right.set(title="last policy", xlabel="step")
    right.legend(fontsize="x-small")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-9, 1)
        axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    return figure


def draw_simplex(curves: Sequence[Curve], *, names: Sequence[str], winner: Array) -> Figure:
    """Draw the paths of the last policies of one game with three responses in the triangle of policies.

    Raises:
        ValueError: the curves are not of one game with three responses.
    """
    if any(curve.policies.ndim != 2 or curve.policies.shape[-1] != 3 for curve in curves):
        raise GameError("only one game with exactly 3 responses has paths in the triangle of policies.")
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(2.2 * columns, 2.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, curve in zip(grid, curves, strict=False):
        path = curve.policies @ corners
        axes.fill(*corners.T, facecolor="none", edgecolor="grey", linewidth=0.8)
        axes.plot(*path.T, linewidth=0.7)
        axes.plot(*(winner @ corners), marker="*", color="C3", linestyle="none")
        for corner, name, side in zip(corners, names, ("right", "left", "center"), strict=True):
            below = "bottom" if corner[1] else "top"
            axes.annotate(name, corner, fontsize=6, ha=side, va=below)
        axes.set_title(curve.name, fontsize=7)
    for axes in grid:
        axes.set_aspect("equal")
        axes.axis("off")
    figure.tight_layout()
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the same data give the same bytes.

    Raises:
        ValueError: the path does not end in .svg, .png or .pdf.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise GameError(f"{path}: a figure is written as .svg, .png or .pdf; choose one of these endings.")
    import matplotlib

    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    with matplotlib.rc_context({"svg.hashsalt": "sppo", "svg.fonttype": "none", "path.simplify": True}):
        figure.savefig(path, metadata=metadata, dpi=150)


def _figure(width: float, height: float) -> Figure:
    # matplotlib.figure, unlike pyplot, needs no window system and has no global state
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _require_game_length(n: int, iterations: int) -> None:
    if n < 2 or iterations < 1:
        raise GameError(f"n = {n}, T = {iterations}: a game needs at least 2 responses and 1 iteration.")
