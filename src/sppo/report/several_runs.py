"""The section about several runs: their win rates, distances and costs in the same charts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sppo.report import charts
from sppo.report.charts import Chart, Table
from sppo.report.run_figures import RunFigures
from sppo.report.sections import Section, interval, measured_line, number
from sppo.rundir.summary import settings_text


def section(runs: Sequence[RunFigures]) -> Section:
    """The section of the page that is about all runs."""
    names = [run.name for run in runs]
    labels = {
        run.path: run.name if names.count(run.name) == 1 else f"{run.path.resolve().parent.name}/{run.name}"
        for run in runs
    }
    figures = [
        _chart(
            labels, runs, "wins", "Win rate against the base, by run", "win_rate_vs_base", "win rate", 0.5
        ),
        _chart(labels, runs, "kl", "KL to the base, by run", "kl_to_base", "nats per response"),
        _chart(labels, runs, "tokens", "Tokens per response, by run", "response_tokens", "tokens"),
    ]
    columns: dict[str, Callable[[RunFigures], str]] = {"run": lambda run: labels[run.path], **_COLUMNS}
    lead = (
        "The win rates of each run are against its own base policy and by its own oracle: compare only runs that share"
        " both."
    )
    tables = [("The last iteration of each run", Table.of(runs, columns))]
    return Section("all", "All runs", lead, [figure for figure in figures if figure is not None], tables)


def _algorithm(run: RunFigures) -> str:
    return "unreadable" if run.recipe is None else settings_text(run.recipe.algorithm)


def _oracle(run: RunFigures) -> str:
    if run.recipe is None:
        return "unreadable"
    return "none" if run.recipe.oracle is None else run.recipe.oracle.type


_COLUMNS: Mapping[str, Callable[[RunFigures], str]] = {
    "algorithm": _algorithm,
    "oracle": _oracle,
    "iterations": lambda run: str(len(run.evaluated)),
    "win rate against the base": lambda run: interval(run.policies[-1].measures.get("win_rate_vs_base")),
    "KL": lambda run: number(run.policies[-1].measures.get("kl_to_base")),
    "seconds": lambda run: number(run.seconds, 0),
    "alarms": lambda run: str(len(run.alarms)),
}


def _chart(
    labels: Mapping[Path, str],
    runs: Sequence[RunFigures],
    name: str,
    title: str,
    measure: str,
    unit: str,
    level: float | None = None,
) -> Chart | None:
    measured = [measured_line(run.evaluated, measure, labels[run.path]) for run in runs]
    lines = [line for line in measured if line is not None]
    if not lines:
        return None
    highest, lowest = (choose(lines, key=lambda line: line.last) for choose in (max, min))
    caption = (
        f"After its last iteration, {highest.name} has the highest value, {highest.last:.3f}, and {lowest.name} the"
        f" lowest, {lowest.last:.3f}."
    )
    return charts.lines(f"all-{name}", title, caption, lines, x="iteration", y=unit, level=level)
