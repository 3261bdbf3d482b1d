"""Charts as SVG inside the page, with a caption, a table of their numbers, a CSV file and values to show on hover.

Matplotlib draws the chart; the colours that it writes are replaced by the page's variables, which differ in light and
dark mode. No two series differ by colour alone: each has its own marker and its own dashes.
"""

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sppo.progress import printable

T = TypeVar("T")

INK, GRID = "#0b0b01", "#0c0c02"
SERIES = tuple(f"#0d0d{number:02d}" for number in range(10, 18))
"""Placeholder colours that occur nowhere else; the style sheet defines the real ones for light and dark mode."""
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")
MAX_CURVE_POINTS = 200
"""A curve through training has at most this many points; more steps are averaged in bins."""
MAX_MARKED_POINTS = 20
"""A curve of at most this many points has a marker on each, so that a single point can be seen."""


@dataclass(frozen=True)
class Table:
    """Cells of text below a row of heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, items: Iterable[T], columns: Mapping[str, Callable[[T], str]]) -> "Table":
        """A row for each item; `columns` gives each column's head and its cell for an item."""
        return cls(list(columns), [[cell(item) for cell in columns.values()] for item in items])


class Point(NamedTuple):
    """A value of a chart, which the page shows on hover.

    Attributes:
        x: the horizontal position, in data coordinates in :class:`Chart`'s making and in SVG units on the page.
        y: the vertical position, likewise.
        series: the index of the series that the value belongs to.
        place: the position in words, such as `2`.
        value: the value in words, such as `0.7 [0.6, 0.8]`.
    """

    x: float
    y: float
    series: int
    place: str
    value: str


@dataclass(frozen=True)
class Chart:
    """A chart with its words and its numbers.

    Attributes:
        id: unique on the page.
        title: the chart's title.
        caption: whole sentences that say what the chart means for this run.
        svg: the drawing.
        values: the numbers behind the chart, below a row of heads.
        place: what the horizontal positions are, such as `iteration`.
        series: the names of the series.
        points: the values to show on hover.
    """

    id: str
    title: str
    caption: str
    svg: Markup
    values: Sequence[Sequence[Any]]
    place: str
    series: Sequence[str]
    points: Sequence[Point]

    @property
    def table(self) -> Table:
        """The numbers, formatted to be read."""
        heads, *rows = [
            [value if isinstance(value, str) else _number(value) for value in row] for row in self.values
        ]
        return Table(heads, rows)

    @property
    def csv(self) -> str:
        """The address of a CSV file of the numbers, which the page itself holds."""
        text = io.StringIO()
        csv.writer(text).writerows([[_csv_cell(value) for value in row] for row in self.values])
        return f"data:text/csv;charset=utf-8,{quote(text.getvalue())}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _csv_cell(value: str | float) -> str | float:
    # spreadsheets run a text that begins like a formula, and names of oracles and runs are free text
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


@dataclass(frozen=True)
class Line:
    """A series: y at x, with an interval where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @property
    def last(self) -> float:
        """The last value."""
        return self.y[-1]

    @property
    def columns(self) -> list[Sequence[float]]:
        """The values, followed by the ends of their intervals where there are any."""
        return [self.y] if self.low is None or self.high is None else [self.y, self.low, self.high]


def lines(
    identity: str,
    title: str,
    caption: str,
    series: Sequence[Line],
    *,
    x: str,
    y: str,
    level: float | None = None,
    breaks: Sequence[float] = (),
    is_curve: bool = False,
) -> Chart:
    """Draws several series over a common axis.

    Args:
        identity: the id of the chart, unique on the page.
        title: the chart's title.
        caption: whole sentences that say what the chart means for this run.
        series: the series to draw.
        x: the label of the horizontal axis.
        y: the label of the vertical axis.
        level: where to draw a horizontal line to compare with.
        breaks: where to draw vertical lines.
        is_curve: whether the series are curves through training; otherwise x is the number of an iteration.
    """

    def draw(axes: Any) -> list[Point]:
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        for place in breaks:
            axes.axvline(place, color=INK, linewidth=0.6, linestyle=(0, (1, 3)))
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if is_curve:
            return [point for number, line in enumerate(series) for point in _draw_line(axes, number, line)]
        axes.set_xlim(min(min(line.x) for line in series) - 0.5, max(max(line.x) for line in series) + 0.5)
        # series that share an iteration stand side by side, so that no interval hides another
        shifts = 0.06 * (np.arange(len(series)) - (len(series) - 1) / 2)
        drawn = zip(range(len(series)), series, shifts.tolist(), strict=True)
        return [point for number, line, shift in drawn for point in _draw_line(axes, number, line, shift)]

    columns: list[tuple[str, dict[float, float]]] = [
        (f"{line.name}{end}", dict(zip(line.x, column, strict=True)))
        for line in series
        for end, column in zip(("", ", low", ", high"), line.columns, strict=False)
    ]
    places = sorted({place for line in series for place in line.x})
    rows: list[list[Any]] = [[place, *(column.get(place, "") for _, column in columns)] for place in places]
    values = [[x, *(name for name, _ in columns)], *rows]
    return _chart(identity, title, caption, draw, [line.name for line in series], x, values)


def _draw_line(axes: Any, number: int, line: Line, shift: float = 0) -> list[Point]:
    """Draws a series, and returns its values for the hover."""
    style = {"color": SERIES[number % 8], "linestyle": DASHES[number % 8], "label": line.name}
    if len(line.x) <= MAX_MARKED_POINTS:
        style["marker"] = MARKERS[number % 8]
    errors = None
    if line.low is not None and line.high is not None:
        errors = np.clip([np.subtract(line.y, line.low), np.subtract(line.high, line.y)], 0, None)
    axes.errorbar(np.add(line.x, shift), line.y, errors, capsize=3, **style)
    points = []
    for place, value, *ends in zip(line.x, *line.columns, strict=True):
        interval = " [{}, {}]".format(*map(_number, ends)) if ends else ""
        points.append(Point(place + shift, value, number, _number(place), f"{_number(value)}{interval}"))
    return points


def boxes(
    identity: str, title: str, caption: str, groups: Sequence[tuple[str, Sequence[int]]], *, x: str, y: str
) -> Chart:
    """Draws the quartiles of each group's values, with whiskers from the 5th to the 95th percentile."""
    percentiles = [np.percentile(values, [5, 25, 50, 75, 95]) for _, values in groups]

    def draw(axes: Any) -> list[Point]:
        keys = ("whislo", "q1", "med", "q3", "whishi")
        line = {"color": INK}
        axes.bxp(
            [
                {"label": name, "fliers": [], **dict(zip(keys, found, strict=True))}
                for (name, _), found in zip(groups, percentiles, strict=True)
            ],
            patch_artist=True,
            boxprops={"facecolor": SERIES[0], "edgecolor": INK, "alpha": 0.55},
            medianprops={"color": INK, "linewidth": 1.8},
            whiskerprops=line,
            capprops=line,
            showfliers=False,
        )
        axes.set(xlabel=x, ylabel=y)
        axes.set_ylim(0, 1.05 * max(max(marks) for marks in percentiles) or 1)
        return [
            Point(at, median, 0, name, f"{median:.0f} (half lie between {first:.0f} and {third:.0f})")
            for at, ((name, _), (_, first, median, third, _)) in enumerate(
                zip(groups, percentiles, strict=True), 1
            )
        ]

    heads = [x, "responses read", "5%", "25%", "median", "75%", "95%"]
    rows = [
        [name, len(group), *map(float, marks)]
        for (name, group), marks in zip(groups, percentiles, strict=True)
    ]
    return _chart(identity, title, caption, draw, ["median"], x, [heads, *rows])


def bars(
    identity: str,
    title: str,
    caption: str,
    rows: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float]]],
    *,
    row: str,
    x: str,
) -> Chart:
    """Draws a horizontal bar for each row, made of parts; hatches tell the parts apart as well as colours.

    Args:
        identity: the id of the chart, unique on the page.
        title: the chart's title.
        caption: whole sentences that say what the chart means for this run.
        rows: the name of each row.
        parts: the name of each part and its values, one for each row.
        row: what the rows are, such as `iteration`.
        x: the label of the horizontal axis.
    """

    def draw(axes: Any) -> list[Point]:
        left = np.zeros(len(rows))
        points = []
        for number, (name, widths) in enumerate(parts):
            style = {"color": SERIES[number % 8], "hatch": HATCHES[number % 8], "edgecolor": INK}
            axes.barh(range(len(rows)), widths, left=left, label=name, linewidth=0.4, **style)
            points += [
                Point(left[at] + width / 2, at, number, rows[at], f"{width:,.1f}")
                for at, width in enumerate(widths)
            ]
            left = left + np.asarray(widths)
        axes.set_yticks(range(len(rows)), [_shortened(name, 14) for name in rows])
        axes.invert_yaxis()
        axes.set(xlabel=x)
        return points

    names = [name for name, _ in parts]
    values = [[name, *(widths[at] for _, widths in parts)] for at, name in enumerate(rows)]
    return _chart(identity, title, caption, draw, names, row, [[row, *names], *values])


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve of at most :data:`MAX_CURVE_POINTS` points, each the mean of a bin."""
    bins = np.array_split(np.arange(len(x)), min(len(x), MAX_CURVE_POINTS)) if len(x) else []
    return (
        [float(np.mean(np.take(x, indices))) for indices in bins],
        [float(np.mean(np.take(y, indices))) for indices in bins],
    )


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."


# The sizes are in inches: of a figure, of its margins, and of a row of its legend. The margins are computed from the
# number of characters, because fitting them to what is drawn takes as long as all the rest of a page.
_WIDTH, _HEIGHT = 4.8, 3.3
_RIGHT, _BOTTOM, _TOP = 0.12, 0.62, 0.12
_LEFT, _LABEL, _CHARACTER = 0.15, 0.25, 0.105  # with a label, and for each character of the longest tick
_LEGEND_ROW = 0.24
_LONGEST_NAME = 34
_POINTS = 72
"""SVG units per inch."""


def _chart(
    identity: str,
    title: str,
    caption: str,
    draw: Callable[[Any], list[Point]],
    names: Sequence[str],
    place: str,
    values: Sequence[Sequence[Any]],
) -> Chart:
    """Draws a chart, with a legend above the axes, where it hides nothing."""
    shown = [_shortened(name, _LONGEST_NAME) for name in names] if len(names) > 1 else []
    # a character of the legend is about 7 units wide, and its sample line takes 50 more
    columns = max(1, min(3, int(_WIDTH * _POINTS) // max([1, *(7 * len(name) + 50 for name in shown)])))
    legend_height = 0.1 + _LEGEND_ROW * -(-len(shown) // columns) if shown else 0
    height = _HEIGHT + legend_height
    with _style(identity), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # the page has its own fonts
        figure = Figure(figsize=(_WIDTH, height))
        top = 1 - (_TOP + legend_height) / height
        figure.subplots_adjust(bottom=_BOTTOM / height, right=1 - _RIGHT / _WIDTH, top=top)
        axes = figure.add_subplot()
        points = draw(axes)
        if (
            axes.get_ylim()[0] < 0 <= min((point.y for point in points), default=-1)
            and not axes.yaxis_inverted()
        ):
            axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # what is never negative has no negative ticks
        figure.subplots_adjust(left=_left_margin(axes) / _WIDTH)
        if shown:
            handles, _ = axes.get_legend_handles_labels()
            figure.legend(handles, shown, loc="upper center", ncols=columns, borderaxespad=0)
        file = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", metadata=metadata)
        places = axes.transData.transform([point[:2] for point in points]) * _POINTS / figure.dpi
    # SVG counts from the top, Matplotlib from the bottom
    hover = [
        point._replace(x=round(float(at), 1), y=round(height * _POINTS - float(up), 1))
        for point, (at, up) in zip(points, places, strict=True)
    ]
    svg = _for_the_page(file.getvalue(), identity, title, caption)
    return Chart(identity, title, caption, svg, values, place, names, hover)


def _left_margin(axes: Any) -> float:
    """The inches that the ticks and the label of the vertical axis need."""
    ticks = axes.yaxis.get_major_formatter().format_ticks(axes.yaxis.get_majorticklocs())
    label = _LABEL if axes.get_ylabel() else 0
    return _LEFT + label + _CHARACTER * max(map(len, ticks), default=0)


def _style(salt: str) -> AbstractContextManager[None]:
    """The settings of Matplotlib for the page's charts; the salt makes the ids of a drawing the same each time."""
    settings = matplotlib.rc_params_from_file(
        Path(__file__).with_name("page.mplstyle"), use_default_template=False
    )
    context: AbstractContextManager[None] = matplotlib.rc_context({**settings, "svg.hashsalt": salt})
    return context


def _for_the_page(text: str, identity: str, title: str, caption: str) -> Markup:
    """Removes prologue and fixed size, makes ids unique on the page, replaces colours, and adds a title."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", text)
    for placeholder, variable in (
        (INK, "ink"),
        (GRID, "grid"),
        *((c, f"s{n}") for n, c in enumerate(SERIES)),
    ):
        text = text.replace(placeholder, f"var(--{variable})")
    text = re.sub(r"(\d\.\d{2})\d{3,}", r"\1", text)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # hatches are coloured by presentation attributes, in which variables have no effect
    body = re.sub(r'\b(fill|stroke)="(var\([^"]*\))"', r'style="\1: \2"', body)
    named = f'role="img" aria-labelledby="{identity}-title {identity}-desc"'
    words = (
        f'<title id="{identity}-title">{escape(printable(title))}</title>'
        f'<desc id="{identity}-desc">{escape(printable(caption))}</desc>'
    )
    return Markup(f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} {named}>{words}{body}')
