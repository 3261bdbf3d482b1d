"""A section of the page, how its figures are formatted, and the sections that only show what a run has recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppo.progress import printable
from sppo.recipe.oracle import oracle_name
from sppo.report.charts import Chart, Line, Table
from sppo.report.head_to_head import HeadToHead
from sppo.report.run_figures import Iteration, RunFigures, is_number
from sppo.rundir.reader import STAGES
from sppo.rundir.summary import settings_text

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: unique on the page.
        title: the heading.
        lead: the paragraph below it.
        charts: charts with their tables.
        tables: tables with a caption each.
        matrices: matrices of win rates with a caption each.
        text: text to be shown as it is, such as a recipe.
        is_folded: whether the tables are long and seldom wanted.
    """

    id: str
    title: str
    lead: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, Table]] = ()
    matrices: Sequence[tuple[str, HeadToHead]] = ()
    text: str = ""
    is_folded: bool = False


def head_to_head(prefix: str, matrices: Sequence[tuple[str, HeadToHead]]) -> Section | None:
    """Every policy against every other."""
    lead = (
        "Each cell says how probably the response of the policy in its row is preferred to that of the policy in its"
        " column, with a confidence interval. Blue cells are above one half, orange cells below."
    )
    return Section(f"{prefix}-matrix", "Head to head", lead, matrices=matrices) if matrices else None


def benchmarks(prefix: str, tables: Sequence[tuple[str, Table]]) -> Section | None:
    """The benchmarks that policies of the run were evaluated on, with the published rows below them."""
    lead = "The run's policies come first, then the published results; each row names its source."
    return Section(f"{prefix}-benchmarks", "Benchmarks", lead, tables=tables) if tables else None


def recipe(run: RunFigures, prefix: str) -> Section:
    """The resolved recipe, and the versions of the packages."""
    lead = f"The run was made with {run.versions}."
    return Section(f"{prefix}-recipe", "Recipe and versions", lead, text=run.recipe_text)


def fingerprints(run: RunFigures, prefix: str) -> Section | None:
    """The fingerprint of every finished stage."""
    rows = [
        [
            str(iteration.number),
            stage,
            printable(str(iteration.records[stage].get("fingerprint", NOT_RECORDED))),
        ]
        for iteration in run.iterations
        for stage in STAGES
        if stage in iteration.records
    ]
    lead = "A fingerprint covers a stage's settings and the fingerprints of everything that the stage reads."
    tables = [("Finished stages", Table(["iteration", "stage", "fingerprint"], rows))]
    return (
        Section(f"{prefix}-fingerprints", "Fingerprints", lead, tables=tables, is_folded=True)
        if rows
        else None
    )


def measured_line(
    iterations: Sequence[Iteration], name: str, label: str, group: str | None = None
) -> Line | None:
    """A measure of the evaluations by iteration, with its interval where it has one; None where none recorded it.

    Args:
        iterations: the iterations.
        name: the measure's name in the evaluation's record.
        label: the name of the line.
        group: the key in the record that the measure stands below, such as `by_oracle`.
    """
    values: dict[int, Any] = {
        policy.number: (policy.measures.get(group, {}) if group else policy.measures).get(name)
        for policy in iterations
    }
    intervals = {number: value for number, value in values.items() if isinstance(value, Mapping)}
    if intervals:
        ends = (
            [float(value.get(key, np.nan)) for value in intervals.values()] for key in ("mean", "low", "high")
        )
        return Line(label, list(intervals), *ends)
    numbers = {number: value for number, value in values.items() if is_number(value)}
    return Line(label, list(numbers), list(numbers.values())) if numbers else None


def interval(value: Any) -> str:
    """A mean with its interval, as text."""
    if not isinstance(value, Mapping) or "mean" not in value:
        return NOT_RECORDED
    return f"{value['mean']:.3f} [{value.get('low', np.nan):.3f}, {value.get('high', np.nan):.3f}]"


def number(value: Any, digits: int = 3) -> str:
    """A number with so many digits behind the point, as text."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else NOT_RECORDED


def share(value: Any) -> str:
    """A share as a percentage."""
    return f"{value:.1%}" if isinstance(value, int | float) else NOT_RECORDED


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def counted(count: int, noun: str) -> str:
    """A number of things, such as `1 iteration` or `3 iterations`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def measuring_oracle(run: RunFigures) -> str:
    """The oracle that the win rates are by, in words."""
    held_out = None if run.recipe is None else run.recipe.evaluation.oracle
    return "the run's own oracle" if held_out is None else f"the held-out oracle ({held_out.type})"


FILTERS = {
    function.__name__: function
    for function in (counted, interval, measuring_oracle, number, oracle_name, settings_text, share, signed)
}
"""What the templates format with, by name."""
