"""The figure of a comparison: win rates, the game of the last policies, lengths, KL, and log-ratios in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppo.compare.results import CURVES, Played, curves
from sppo.game.convergence import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(comparison: Mapping[str, Any], played: Mapping[str, Sequence[Played]], path: Path) -> None:
    """Writes the figure. Points are seeds, lines their means, and bars the intervals over prompts.

    Args:
        comparison: the content of comparison.json.
        played: the results of each side's runs.
        path: the file to write: .svg, .png or .pdf.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6))
    (rates, matrix, tokens), (divergence, winners, losers) = figure.subplots(2, 3)
    titles = {
        rates: "win rate against the base",
        tokens: "tokens per response",
        divergence: "KL to the base, nats",
        winners: "log-ratio of winners in training, nats",
        losers: "log-ratio of losers in training, nats",
    }
    for axes, title in titles.items():
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, alpha=0.3)
        axes.set_xlabel("step" if axes in (winners, losers) else "iteration", fontsize=7)
    sides = comparison["sides"]
    measured = {rates: "win_rate_vs_base", tokens: "response_tokens", divergence: "kl_to_base"}
    for number, side in enumerate(sides):
        colour, rows, runs = f"C{number}", side["iterations"], played[side["name"]]
        # the sides stand a little apart, so that no bar hides another
        places = [row["iteration"] + 0.06 * (number - (len(sides) - 1) / 2) for row in rows]
        for axes, name in measured.items():
            means = [row[name]["mean"] for row in rows]
            if axes is rates:
                ends = [
                    [abs(row[name]["mean"] - row[name]["prompts"][end]) for row in rows]
                    for end in ("low", "high")
                ]
                bars = [[0, *lengths] for lengths in ends]
                axes.errorbar([0, *places], [0.5, *means], bars, color=colour, capsize=2, label=side["name"])
            else:
                axes.plot(places, means, color=colour)
            for run in runs:
                values = [row[name]["mean"] if axes is rates else row[name] for row in run.rows]
                axes.plot(places[: len(values)], values, ".", color=colour, markersize=4, alpha=0.6)
        for axes, name in zip((winners, losers), CURVES, strict=True):
            _draw_curve(axes, runs, name, colour)
    longest = max(len(side["iterations"]) for side in sides)
    for axes in measured:
        axes.set_xticks(range(0 if axes is rates else 1, longest + 1))
    rates.legend(fontsize=7)
    _draw_matrix(matrix, comparison["head_to_head"])
    figure.tight_layout()
    save(figure, path)


def _draw_curve(axes: "Axes", runs: Sequence[Played], name: str, colour: str) -> None:
    values, ends = curves(runs, name)
    if not values.size or np.isnan(values).all():
        return
    start = 0
    for end in ends:  # a line for each iteration, because each has another opponent
        axes.plot(range(start, end), values[:, start:end].mean(axis=0), color=colour, linewidth=1)
        start = end


def _draw_matrix(axes: "Axes", game: Mapping[str, Any]) -> None:
    names, payoff = game["policies"], np.array(game["win_rates"])
    axes.imshow(payoff, cmap="RdBu", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(payoff):
        colour = "white" if abs(value - 0.5) > 0.3 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=30)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title("P(row > column), last policies", fontsize=8)
