"""Several runs on one page: their win rates, distances and costs in the same figures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sppo.report import charts
from sppo.report.charts import Chart, Line, Table
from sppo.report.run_figures import Iteration, RunFigures
from sppo.report.sections import Section
from sppo.rundir.summary import settings_text


def section(runs: Sequence[RunFigures]) -> Section:
    """The part of the page that is about all runs."""
    labels = _labels(runs)
    figures = [
        _figure(
            runs, labels, "all-wins", "Win rate against the base, by run", "win rate", _win_rate, level=0.5
        ),
        _figure(runs, labels, "all-kl", "KL to the base, by run", "nats a response", _measure("kl_to_base")),
        _figure(
            runs, labels, "all-tokens", "Tokens per response, by run", "tokens", _measure("response_tokens")
        ),
    ]
    rows = [
        [
            label,
            "unreadable" if run.recipe is None else settings_text(run.recipe.algorithm),
            _oracle(run),
            f"{len(run.evaluated)}",
            _last(run, "win_rate_vs_base"),
            _last(run, "kl_to_base"),
            f"{sum(sum(one.seconds.values()) for one in run.iterations):,.0f}",
            f"{len(run.warnings)}",
        ]
        for run, label in zip(runs, labels, strict=True)
    ]
    heads = [
        "run",
        "algorithm",
        "oracle",
        "iterations",
        "win rate against the base",
        "KL",
        "seconds",
        "alarms",
    ]
    lead = "Win rates are each run's own, against its own base and by its own oracle: compare runs that share both."
    return Section(
        "all",
        "All runs",
        lead,
        [one for one in figures if one is not None],
        [("Last iterations", Table(heads, rows))],
    )


def _labels(runs: Sequence[RunFigures]) -> list[str]:
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]


def _figure(
    runs: Sequence[RunFigures],
    labels: Sequence[str],
    identity: str,
    title: str,
    unit: str,
    read: Callable[[Iteration], tuple[float, float, float] | None],
    level: float | None = None,
) -> Chart | None:
    series, rows = [], []
    for run, label in zip(runs, labels, strict=True):
        found = [(one.number, values) for one in run.evaluated if (values := read(one)) is not None]
        if found:
            numbers = [number for number, _ in found]
            mean, low, high = zip(*(values for _, values in found), strict=True)
            series.append(Line(label, numbers, mean, low, high))
            rows += [[label, str(number), f"{values[0]:.3f}"] for number, values in found]
    if not series:
        return None
    words = " ".join(f"{line.name}: {line.y[-1]:.3f} at iteration {line.x[-1]:g}." for line in series)
    return charts.lines(
        identity,
        title,
        words,
        series,
        Table(["run", "iteration", unit], rows),
        x="iteration",
        y=unit,
        level=level,
    )


def _oracle(run: RunFigures) -> str:
    if run.recipe is None:
        return "unreadable"
    return "none" if run.recipe.oracle is None else run.recipe.oracle.type


def _win_rate(one: Iteration) -> tuple[float, float, float] | None:
    found: Any = one.measured.get("win_rate_vs_base")
    return (found["mean"], found["low"], found["high"]) if isinstance(found, dict) else None


def _measure(name: str) -> Callable[[Iteration], tuple[float, float, float] | None]:
    def read(one: Iteration) -> tuple[float, float, float] | None:
        value = one.measured.get(name)
        return (value, value, value) if isinstance(value, int | float) and np.isfinite(value) else None

    return read


def _last(run: RunFigures, name: str) -> str:
    found = run.evaluated[-1].measured.get(name) if run.evaluated else None
    if isinstance(found, dict):
        return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found:.3f}" if isinstance(found, int | float) else "not recorded"
