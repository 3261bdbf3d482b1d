"""The section about the oracle: whether its components agree, and how far its preferences are cyclic."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sppo import game
from sppo.progress import printable
from sppo.report import charts
from sppo.report.charts import Chart, Line, Table
from sppo.report.run_figures import RunFigures
from sppo.report.samples import ComparedResponses
from sppo.report.sections import Section, number, share

MAX_GAMES = 500
"""The measures of intransitivity are computed from the games of at most this many prompts."""
_INTRANSITIVITY: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "cyclic_triples": ("cyclic triples", share),
    "cyclic_share": ("part of the squared log-odds that no scalar reward can express", share),
    "condorcet": ("prompts with a response that beats all others", share),
    "scalar_exploitability": ("exploitability of the response with the best mean win rate", number),
    "winner_support": ("responses in the von Neumann winner", number),
}


def section(run: RunFigures, prefix: str, compared: Mapping[int, ComparedResponses]) -> Section | None:
    """The section; None before the oracle has compared anything."""
    if not compared:
        return None
    read = ", ".join(f"{len(sample.matrix)} of {sample.responses.total}" for sample in compared.values())
    figures = [
        chart for chart in (_agreement(prefix, compared, read), _cycles(run, prefix)) if chart is not None
    ]
    columns = [_measures(sample) for sample in compared.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    table = Table(["measure", *(f"iteration {iteration}" for iteration in compared)], rows)
    tables = [(f"The oracle on the run's own responses; prompts read in each iteration: {read}", table)]
    counts = {
        iteration.number: iteration.oracle_counts for iteration in run.started if iteration.oracle_counts
    }
    kinds = list(dict.fromkeys(kind for by_kind in counts.values() for kind in by_kind))
    if kinds:
        rows = [[str(n), *(number(by_kind.get(kind), 0) for kind in kinds)] for n, by_kind in counts.items()]
        heads = ["iteration", *(printable(kind).replace("_", " ") for kind in kinds)]
        tables.append(("What the oracle counted while it annotated", Table(heads, rows)))
    lead = "Whether the oracle's components agree, and what a scalar reward would lose of its preferences."
    return Section(f"{prefix}-oracle", "The oracle", lead, figures, tables)


def _agreement(prefix: str, compared: Mapping[int, ComparedResponses], read: str) -> Chart | None:
    by_iteration = {iteration: sample.agreement() for iteration, sample in compared.items()}
    components = list(dict.fromkeys(name for shares in by_iteration.values() for name in shares))
    lines = []
    for name in components:
        values = {iteration: shares[name] for iteration, shares in by_iteration.items() if name in shares}
        lines.append(Line(printable(name), list(values), list(values.values())))
    if not lines:
        return None
    least = min(lines, key=lambda line: line.last)
    caption = (
        "The share of pairs on which a component prefers the same response as the whole oracle. In the last iteration"
        f" {least.name} agrees least, on {least.last:.1%}. Prompts read: {read}."
    )
    return charts.lines(
        f"{prefix}-agreement",
        "Agreement of components with the oracle",
        caption,
        lines,
        x="iteration",
        y="share of pairs",
    )


def _cycles(run: RunFigures, prefix: str) -> Chart | None:
    values = {
        iteration.number: iteration.records["annotate"]["cyclic_triples"]
        for iteration in run.started
        if iteration.records.get("annotate", {}).get("cyclic_triples") is not None
    }
    if not values:
        return None
    line = Line("cyclic triples", list(values), list(values.values()))
    if line.last:
        found = (
            f"It is {line.last:.1%} in the last iteration: a scalar reward cannot express these preferences."
        )
    else:
        found = "There are none in the last iteration: a ranking of each prompt's responses agrees with the oracle."
    caption = (
        f"The share of triples of responses in which each is preferred to one and loses to another. {found}"
    )
    return charts.lines(
        f"{prefix}-cycles", "Cyclic preferences", caption, [line], x="iteration", y="share of triples"
    )


def _measures(sample: ComparedResponses) -> dict[str, str]:
    """The measures of an iteration's preferences by what they are called on the page."""
    margins, disagreement = sample.margins(), sample.disagreement
    spread = np.ptp(sample.win_rates, axis=1)
    games = sample.matrix[:MAX_GAMES] if sample.is_whole and sample.matrix.shape[-1] > 1 else None
    means = {} if games is None else game.intransitivity(games, clip=0.01).means()
    return {
        "mean distance of a preference from one half": number(_mean(margins)),
        "pairs closer than 0.05 to a tie": share(_mean(margins < 0.05)),
        "mean difference of a prompt's best and worst win rate": number(_mean(spread)),
        "pairs on which the components disagree": share(_mean(disagreement)),
        "prompts whose game was solved": "none, because pairs were left out"
        if games is None
        else str(len(games)),
        **{name: words(means.get(key)) for key, (name, words) in _INTRANSITIVITY.items()},
    }


def _mean(values: Any) -> float | None:
    """The mean of the values that are numbers; None where there are none."""
    return float(np.nanmean(values)) if len(values) and not np.isnan(values).all() else None
