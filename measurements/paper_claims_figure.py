"""The figure of measurements/paper_claims.py: the answers that can be drawn, in one file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_claims_answers import Answer
from paper_claims_cells import GRID, eta_settings


def draw(answers: Mapping[str, Answer], path: Path) -> None:
    """Draw the answers in one figure; bars are intervals over prompts, dots are seeds."""
    from matplotlib.figure import Figure

    from sppo.game.convergence import save

    drawn = [letter for letter in "abceh" if letter in answers]
    if not drawn:
        return
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows))
    grid_of_axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid_of_axes[len(drawn) :]:
        axes.axis("off")
    for axes, letter in zip(grid_of_axes, drawn, strict=False):
        axes.set_title(f"({letter}) {PICTURES[letter][0]}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, alpha=0.3)
        PICTURES[letter][1](axes, answers[letter])
    figure.tight_layout()
    save(figure, path)


def _points(
    axes: Any, at: Sequence[float], rates: Sequence[Mapping[str, Any]], colour: str, label: str
) -> None:
    means = [of["mean"] for of in rates]
    bars = [[abs(of["prompts"][end] - of["mean"]) for of in rates] for end in ("low", "high")]
    axes.errorbar(at, means, bars, color=colour, capsize=2, marker="o", markersize=3, label=label)
    for where, of in zip(at, rates, strict=True):
        axes.plot([where] * len(of["of_seeds"]), of["of_seeds"], ".", color=colour, markersize=3, alpha=0.5)


def _draw_a(axes: Any, answer: Answer) -> None:
    _points(axes, [1, 2, 3], answer["rates"], "C0", "sppo")
    axes.set_xticks([1, 2, 3])
    axes.set_xlabel("iteration", fontsize=7)


def _draw_b(axes: Any, answer: Answer) -> None:
    for number, name in enumerate(GRID):
        for place, what in enumerate(
            ("trained winners", "trained losers", "held-out winners", "held-out losers")
        ):
            of = answer[name][what]
            bar = [[of["mean"] - of["low"]], [of["high"] - of["mean"]]]
            at, label = [place + 0.2 * (number - 1)], name if place == 0 else None
            axes.errorbar(at, [of["mean"]], bar, fmt="o", color=f"C{number}", capsize=2, label=label)
    axes.legend(fontsize=6)
    axes.set_xticks(range(4), ["winners", "losers", "winners,\nheld out", "losers,\nheld out"])


def _draw_c(axes: Any, answer: Answer) -> None:
    for number, (name, rate) in enumerate(answer["rates"].items()):
        _points(axes, [number], [rate], f"C{number}", name)
    axes.set_xticks(range(len(answer["chosen"])), list(answer["chosen"].values()), rotation=15)


def _draw_e(axes: Any, answer: Answer) -> None:
    for number, partition in enumerate(("half_eta", "samples")):
        of = [one for one in eta_settings() if one.log_partition == partition]
        _points(
            axes,
            [one.strength for one in of],
            [answer[one.name]["rate"] for one in of],
            f"C{number}",
            partition,
        )
    axes.set_xscale("log")
    axes.set_xlabel("eta", fontsize=7)
    axes.legend(fontsize=6)


def _draw_h(axes: Any, answer: Answer) -> None:
    for number, (name, of) in enumerate(answer.items()):
        at = [float(rate) * 1.05**number for rate in of["rates"]]
        _points(axes, at, [row["rate"] for row in of["rates"].values()], f"C{number}", name)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=7)
    axes.legend(fontsize=6)


PICTURES: dict[str, tuple[str, Callable[[Any, Answer], None]]] = {
    "a": ("SPPO: win rate against the base", _draw_a),
    "b": ("log pi_2/pi_1 in nats", _draw_b),
    "c": ("win rate after three iterations", _draw_c),
    "e": ("win rate after one iteration", _draw_e),
    "h": ("win rate after one iteration", _draw_h),
}
