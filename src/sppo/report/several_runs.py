"""The section about several runs: their win rates, distances and costs in the same charts."""

from collections.abc import Sequence

from sppo.report import charts
from sppo.report.charts import Chart, Table
from sppo.report.run_figures import RunFigures
from sppo.report.sections import Section, interval, measured_line, number
from sppo.rundir.summary import settings_text


def section(runs: Sequence[RunFigures]) -> Section:
    """The section of the page that is about all runs."""
    names = [run.name for run in runs]
    labels = [
        name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]
    figures = [
        _chart(
            runs, labels, "all-wins", "Win rate against the base, by run", "win_rate_vs_base", "win rate", 0.5
        ),
        _chart(runs, labels, "all-kl", "KL to the base, by run", "kl_to_base", "nats per response"),
        _chart(runs, labels, "all-tokens", "Tokens per response, by run", "response_tokens", "tokens"),
    ]
    heads = (
        "run",
        "algorithm",
        "oracle",
        "iterations",
        "win rate against the base",
        "KL",
        "seconds",
        "alarms",
    )
    rows = [[label, *_row(run)] for run, label in zip(runs, labels, strict=True)]
    lead = (
        "The win rates of each run are against its own base policy and by its own oracle: compare only runs that share"
        " both."
    )
    shown = [figure for figure in figures if figure is not None]
    return Section("all", "All runs", lead, shown, [("The last iteration of each run", Table(heads, rows))])


def _row(run: RunFigures) -> list[str]:
    recipe = run.recipe
    measures = run.evaluated[-1].measures if run.evaluated else {}
    return [
        "unreadable" if recipe is None else settings_text(recipe.algorithm),
        "unreadable" if recipe is None else "none" if recipe.oracle is None else recipe.oracle.type,
        str(len(run.evaluated)),
        interval(measures.get("win_rate_vs_base")),
        number(measures.get("kl_to_base")),
        number(sum(sum(iteration.seconds.values()) for iteration in run.iterations), 0),
        str(len(run.warnings)),
    ]


def _chart(
    runs: Sequence[RunFigures],
    labels: Sequence[str],
    identity: str,
    title: str,
    measure: str,
    unit: str,
    level: float | None = None,
) -> Chart | None:
    named = zip(runs, labels, strict=True)
    lines = [
        line for run, label in named if (line := measured_line(run.evaluated, measure, label)) is not None
    ]
    if not lines:
        return None
    highest, lowest = (choose(lines, key=lambda line: line.last) for choose in (max, min))
    caption = (
        f"After its last iteration, {highest.name} has the highest value, {highest.last:.3f}, and {lowest.name} the"
        f" lowest, {lowest.last:.3f}."
    )
    return charts.lines(identity, title, caption, lines, x="iteration", y=unit, level=level)
