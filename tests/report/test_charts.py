import csv
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from run_folders import write_run

from sppo.report import page
from sppo.report.charts import Line, lines, thinned
from sppo.rundir.folder import write_json


def test_a_thinned_curve_keeps_its_mean_and_its_ends():
    x, y = thinned(range(1000), [2.0 * value for value in range(1000)])
    assert len(x) == 200 and np.mean(y) == pytest.approx(999)
    assert y == [2 * value for value in x]
    assert thinned([], []) == ([], [])


def test_a_figure_has_its_own_ids_the_pages_colours_and_words():
    one = lines(
        "one",
        "T <i>",
        "D & d",
        [Line("$x_1$ <b>", [1, 2], [3, 4], [2, 3], [4, 5]), Line("字", [1], [1])],
        x="x",
        y="y",
    )
    ids = re.findall(r'\bid="([^"]*)"', one.svg)
    assert ids and all(name.startswith("one-") for name in ids)
    assert "var(--s0)" in one.svg and "#0d0d" not in one.svg and "#0b0b01" not in one.svg
    assert "<b>" not in one.svg and "T &lt;i&gt;" in one.svg and "$x_1$" in one.svg
    assert 'role="img"' in one.svg


def test_a_legend_of_many_long_names_is_drawn():
    names = ["x" * 200, "字" * 60, *(f"run {n}" for n in range(20))]
    one = lines("one", "T", "D", [Line(name, [1], [1]) for name in names], x="x", y="y")
    assert "x" * 31 + "..." in one.svg and "x" * 35 not in one.svg


def test_a_csv_file_has_the_numbers_as_they_are():
    series = [Line("a, b", [1, 2], [1 / 3, 4], [0.25, 3], [0.5, 5]), Line("=1+1", [2], [1])]
    chart = lines("one", "T", "C", series, x="iteration", y="y")
    head, text = chart.csv.split(",", 1)
    assert head == "data:text/csv;charset=utf-8"
    assert list(csv.reader(unquote(text).splitlines())) == [
        ["iteration", "a, b", "a, b, low", "a, b, high", "'=1+1"],
        ["1", str(1 / 3), "0.25", "0.5", ""],
        ["2", "4", "3", "5", "1"],
    ]
    assert chart.table.rows[0] == ["1", "0.3333", "0.25", "0.5", ""]


def test_long_ticks_have_room_and_what_is_never_negative_has_no_negative_ticks():
    def ticks(values):
        chart = lines("one", "T", "C", [Line("a", [1, 2], values)], x="x", y="nats")
        texts = re.findall(r'<text style="[^"]*text-anchor: end;[^>]*x="([\d.]+)"[^>]*>([^<]*)', chart.svg)
        return [(float(x), text) for x, text in texts]

    for values in ([0.0083, 0.0092], [-0.0083, -0.0092], [0.0, 0.0], [1e6, 2e6]):
        found = ticks(values)
        assert len(found) > 2
        for right, text in found:
            assert right - 7.4 * len(text) > 15, (values, text)  # the label of the axis stands left of them
            assert min(values) < 0 or not text.startswith("\N{MINUS SIGN}")


@pytest.mark.parametrize("is_curve", [False, True])
def test_a_single_point_has_a_marker_and_a_long_curve_has_none(is_curve):
    def markers(points):
        line = Line("a", range(points), range(points))
        return lines("one", "T", "C", [line], x="x", y="y", is_curve=is_curve).svg.count("<use ")

    grid_and_ticks = markers(200) if is_curve else 0
    assert markers(1) > 0
    assert not is_curve or (markers(1) > 0 and grid_and_ticks < 40)


@pytest.mark.parametrize(
    ("iterations", "ticks"), [([1], ["1"]), ([1, 2], ["1", "2"]), ([1, 3], ["1", "2", "3"])]
)
def test_the_ticks_of_iterations_are_integers(iterations, ticks):
    chart = lines("one", "T", "C", [Line("a", iterations, [0.5] * len(iterations))], x="iteration", y="y")
    labels = re.findall(r'id="one-xtick_\d+".*?<text[^>]*>([^<]*)</text>', chart.svg, re.DOTALL)
    assert labels == ticks


def test_hover_points_lie_on_the_marks():
    chart = lines("one", "T", "C", [Line("a", [1, 2], [3.0, 4.0])], x="iteration", y="y")
    height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart.svg)[1])
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--s0\)', chart.svg)
    assert len(marks) == 2
    for point, (x, y) in zip(chart.points, marks):
        assert (point.x, point.y) == (pytest.approx(float(x), abs=0.1), pytest.approx(float(y), abs=0.1))
        assert 0 < point.y < height
    assert [(point.place, point.value) for point in chart.points] == [("1", "3"), ("2", "4")]


def test_the_words_of_a_figure_lie_within_it_and_beside_its_lines(tmp_path, visit):
    run = write_run(tmp_path / "run")
    for number, share in ((1, 0.02344), (2, 0.00625)):
        record = json.loads((run / f"iter-{number}" / "annotate.json").read_text())
        write_json(run / f"iter-{number}" / "annotate.json", record | {"cyclic_triples": share})
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    outside = seen.evaluate(
        """() => [...document.querySelectorAll('figure svg')].flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter((text) => {
        const of = text.getBoundingClientRect();
        return of.left < box.left - 1 || of.right > box.right + 1 || of.top < box.top - 1 || of.bottom > box.bottom + 1;
        }).map((text) => text.textContent); })"""
    )
    assert outside == []
    legend = seen.locator("#run1-log-ratios [id*=legend]").bounding_box()
    lines = seen.locator("#run1-log-ratios [id*=axes] [id*=patch_2]").bounding_box()
    assert legend["y"] + legend["height"] <= lines["y"] + 1
