import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from run_folders import CYCLE, RECIPE, interval, write_run
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.report import browser, matrix, measured, page, run_figures, samples
from sppo.report.charts import Line, Table, lines, thinned
from sppo.rundir import guard
from sppo.rundir.folder import RunError, write_json
from sppo.rundir.shards import read_shard, table, write_shard
from sppo.rundir.tables import RESPONSES

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<b>bold</b> &amp; \x1b[31mred\x1b[0m \u202egnp.exe\u202c \u2028 ${1+1} {{ 7*7 }} שלום"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "known")


@pytest.fixture(scope="module")
def written(run):
    page.write([run], run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


def report(*arguments):
    found = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


class Visit:
    """A page in the browser, with everything that it asked for and complained of."""

    def __init__(self, chromium, url, width=1280, **options):
        self.requests, self.complaints = [], []
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture
def visit(chromium):
    visits = []

    def go(path, **options):
        visits.append(Visit(chromium, Path(path).resolve().as_uri(), **options))
        return visits[-1]

    yield go
    for one in visits:
        one.context.close()


# What is read


def test_figures_are_the_runs_own(run):
    found = run_figures.read(run)
    assert found.is_finished and found.has_ended
    assert found.status.startswith("Finished: all of its 2 iterations")
    assert not found.notes and not found.warnings
    assert [one.measured["win_rate_vs_base"]["mean"] for one in found.evaluated] == [0.6, 0.7]
    assert found.played[1].seconds == dict.fromkeys(
        ("sample", "annotate", "select", "train", "evaluate"), 20.0
    )
    assert found.previous == {1: 0, 2: 1}


def test_the_matrix_has_what_was_measured_and_says_what_was_not(run):
    found = matrix.of_run(run_figures.read(run), [])
    assert found.names == ["base", "iteration 1", "iteration 2"]
    means = [[None if entry is None else round(entry["mean"], 6) for entry in row] for row in found.entries]
    assert means == [[None, 0.4, 0.3], [0.6, None, 0.45], [0.7, 0.55, None]]
    assert found.entries[0][2]["low"] == pytest.approx(0.28)
    assert found.is_whole
    longer = matrix.HeadToHead(["a", "b"], [[None, None], [None, None]])
    assert not longer.is_whole


def test_who_was_the_predecessor_after_a_fall_back(tmp_path):
    run = write_run(
        tmp_path / "run",
        measures={1: {"win_rate_vs_previous": interval(0.4)}},
        recipe={**RECIPE, "guard": {"on_failure": "fall_back"}},
    )
    found = run_figures.read(run)
    assert found.previous == {1: 0, 2: 0}
    assert "loses to its predecessor" in found.warnings[0]


def test_agreement_cycles_and_disagreement_by_hand(run):
    found = samples.compared(run, 1, [])
    assert found.matrix.shape == (6, 3, 3)
    # the panel's Anna is the whole; Ben says 1 > 2 > 3 of the cycles 1 > 2 > 3 > 1 too: two of three pairs
    assert found.agreement() == {"anna": 1.0, "ben": pytest.approx((1 + 2 / 3) / 2)}
    by_prompt = dict(zip(found.responses.prompt_ids, zip(found.cycles, found.disagreement)))
    assert by_prompt["train-1-0"] == (1.0, pytest.approx(1 / 3))
    assert by_prompt["train-1-1"] == (0.0, 0.0)
    assert found.responses.tokens[0] == [4, 5, 6]
    np.testing.assert_allclose(
        found.win_rates[found.responses.prompt_ids.index("train-1-1")], [2.2 / 3, 1.3 / 3, 1 / 3]
    )


def test_pairs_that_were_not_compared_are_no_numbers(run):
    of = samples.compared(run, 1, [])
    gaps = of.matrix.copy()
    gaps[:, 0, 1] = gaps[:, 1, 0] = np.nan
    found = samples.Compared(of.responses, gaps, {})
    assert not found.is_whole and np.isnan(found.cycles).all() and np.isnan(found.disagreement).all()
    assert len(found.margins()) == 2 * 6
    items = browser.browse({1: found}, {}, 100_000)["trained"]
    assert items[0]["matrix"][0][1] is None and items[0]["cycles"] is None


def test_a_sample_is_drawn_of_many_shards_and_says_so(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", iterations=1)
    for name in ("responses", "preferences"):
        for number in range(1, 8):
            folder = run / "iter-1" / name
            shutil.copy(folder / "part-00000.parquet", folder / f"part-{number:05d}.parquet")
    monkeypatch.setattr(samples, "PROMPTS", 15)
    found = samples.compared(run, 1, [])
    assert (len(found.matrix), found.responses.total) == (15, 48)


# Trends, thinning, drawing


def test_over_optimisation_is_seen_beyond_the_intervals_only():
    def measured(trained, held_out):
        return {"by_oracle": {"win_rate_vs_base": interval(trained)}, "win_rate_vs_base": interval(held_out)}

    assert not guard.trends([measured(0.6, 0.6), measured(0.7, 0.65)], {})
    assert not guard.trends([measured(0.6, 0.6), measured(0.7, 0.59)], {})
    (found,) = guard.trends([measured(0.6, 0.6), measured(0.7, 0.55)], {})
    assert "over-optimisation" in found and "0.600 to 0.550" in found
    (found,) = guard.trends([{"response_tokens": 31.0}], {"response_tokens": 20.0})
    assert "length growth" in found and "1.55 times" in found


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
        Table([], []),
        x="x",
        y="y",
    )
    ids = re.findall(r'\bid="([^"]*)"', one.svg)
    assert ids and all(name.startswith("one-") for name in ids)
    assert "var(--s0)" in one.svg and "#0d0d" not in one.svg and "#0b0b01" not in one.svg
    assert "<b>" not in one.svg and "T &lt;i&gt;" in one.svg and "$x_1$" in one.svg
    assert 'role="img"' in one.svg


# The page


def test_every_figure_is_there_with_the_runs_numbers(written):
    for name in (
        "win-rates",
        "log-ratios",
        "log-probs",
        "training-kl",
        "loss",
        "lengths",
        "kl",
        "agreement",
        "cycles",
        "seconds",
    ):
        assert f'<figure id="run1-{name}">' in written, name
    for text in (
        "0.600 [0.580, 0.620]",
        "0.700 [0.680, 0.720]",
        "0.550 [0.530, 0.570]",
        "83.3%",
        "50.0%",
        "1.25",
        "321",
    ):
        assert text in written, text
    assert "k: 3" in written
    assert 'class="notes"' not in written and 'class="alarms"' not in written
    assert "response 0 to prompt 0 in iteration 2" in written
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", re.sub(r"xmlns[^ ]*", "", written))


def test_a_second_oracle_stands_beside_the_first_and_where_they_part_there_is_an_alarm(tmp_path):
    measures = {
        number: {"by_oracle": {"win_rate_vs_base": interval(trained)}, "win_rate_vs_base": interval(held_out)}
        for number, trained, held_out in ((1, 0.61, 0.66), (2, 0.81, 0.52))
    }
    run = write_run(
        tmp_path / "run", measures=measures, recipe={**RECIPE, "evaluation": {"judge": {"type": "panel"}}}
    )
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<figure id="run1-second-oracle">' in text and "the held-out judge (panel)" in text
    assert "0.810 [0.790, 0.830]" in text and "0.520 [0.500, 0.540]" in text
    assert "over-optimisation: the oracle" in text and 'class="alarms"' in text


def test_the_page_works_in_a_browser(run, written, visit):
    for width, scheme in ((1280, "light"), (400, "dark")):
        seen = visit(run / "report.html", width=width, color_scheme=scheme)
        assert seen.requests == [(run / "report.html").resolve().as_uri()]
        assert seen.complaints == [] and seen.fits()
        assert seen.page.locator("figure svg[role=img] > title").count() == 10
        box = seen.page.locator("#run1-win-rates svg").bounding_box()
        assert 250 < box["width"] < 450 and box["height"] > 150


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


def test_a_legend_of_many_long_names_is_drawn():
    names = ["x" * 200, "字" * 60, *(f"run {n}" for n in range(20))]
    one = lines("one", "T", "D", [Line(name, [1], [1]) for name in names], Table([], []), x="x", y="y")
    assert "x" * 37 + "..." in one.svg and "x" * 41 not in one.svg


def test_filters_find_what_they_say(run, written, visit):
    seen = visit(run / "report.html").page
    field = lambda name: seen.locator(f"[name={name}]")  # noqa: E731
    status = seen.locator("[role=status]")
    assert status.inner_text() == "12 of 12 prompts shown on this page"
    field("t").select_option("2")
    assert status.inner_text().startswith("6 of 12")
    field("cycles").select_option("some")
    assert status.inner_text().startswith("3 of 12")
    assert seen.locator(".card").count() == 3
    heat = seen.locator(".detail .heat").first.locator("td").all_inner_texts()[1:]
    assert heat == [
        f"{value:.2f}" if i != j else "-" for i, row in enumerate(CYCLE) for j, value in enumerate(row)
    ]
    field("cycles").select_option("")
    field("best").fill("0.7")
    assert status.inner_text().startswith("3 of 12")
    assert "win rate 0.733" in seen.locator(".detail").inner_text()
    field("disagreement").fill("10")
    assert status.inner_text().startswith("0 of 12")
    assert "Nothing passes" in seen.locator(".detail").inner_text()
    field("best").fill("")
    field("disagreement").fill("")
    field("words").fill("prompt train-2-4")
    assert status.inner_text().startswith("1 of 12")
    field("words").fill("")
    field("most").fill("5")
    assert status.inner_text().startswith("0 of 12")  # 6 tokens on average
    field("most").fill("")
    field("t").select_option("held-out")
    assert status.inner_text().startswith("4 of 4")
    assert seen.locator(".card h4").all_inner_texts() == ["base", "iteration 1", "iteration 2"]


@pytest.mark.slow
def test_the_browser_of_responses_is_used_by_keyboard(run, written, visit):
    seen = visit(run / "report.html").page
    seen.locator(".found button").first.focus()
    first = seen.locator(".detail").inner_text()
    seen.keyboard.press("ArrowDown")
    seen.keyboard.press("Enter")
    assert seen.evaluate("document.activeElement.className") == "detail"
    assert seen.locator(".detail").inner_text() != first
    assert seen.locator(".found button[aria-current=true]").count() == 1


def test_a_page_that_reads_itself_anew_leaves_people_where_they_were(run, written, visit):
    seen = visit(run / "report.html").page
    seen.locator("[name=t]").select_option("2")
    seen.locator("#run1-loss summary").click()
    seen.locator(".found button").nth(2).click()
    seen.locator(".detail summary").click()
    seen.locator(".detail .moves button").last.click()
    assert seen.locator(".detail details").evaluate("(one) => one.open")  # from prompt to prompt
    shown = seen.locator(".detail .note").inner_text()
    seen.locator("[name=words]").fill("prompt")
    seen.reload()
    assert seen.locator(".detail .note").inner_text() == shown
    assert seen.locator("[name=t]").input_value() == "2"
    assert seen.evaluate("document.activeElement.name") == "words"
    assert seen.locator("main figure details[open]").count() == 1


@pytest.mark.slow
def test_every_control_and_figure_has_a_name(run, written, visit):
    seen = visit(run / "report.html").page
    nameless = seen.evaluate(
        """() => [...document.querySelectorAll('input, select, button, [role=region], summary')].filter((one) =>
        !(one.getAttribute('aria-label') || one.textContent.trim() || (one.labels && one.labels.length))).length"""
    )
    assert nameless == 0
    assert seen.evaluate("document.documentElement.lang") == "en"
    levels = seen.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))"
    )
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_paper(run, written, visit, scheme):
    """WCAG's contrast of 4.5 for text, 3 for lines."""
    seen = visit(run / "report.html", color_scheme=scheme).page
    names = ["paper", "ink", "faint", "link", "warn", "warn-paper", "card", *(f"s{n}" for n in range(8))]
    colours = seen.evaluate(
        "(names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name))",
        names,
    )
    light = {name: luminance(value.strip()) for name, value in zip(names, colours)}
    for name, paper, least in [
        *((name, paper, 4.5) for name in ("ink", "faint", "link") for paper in ("paper", "card")),
        ("warn", "warn-paper", 4.5),
        *((f"s{n}", "card", 3) for n in range(8)),
    ]:
        high, low = sorted((light[name], light[paper]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, (name, paper)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_stand_out_from_the_warmest_and_the_coldest_cell(run, written, visit, scheme):
    seen = visit(run / "report.html", color_scheme=scheme).page
    ink, card, heat, above, below = seen.evaluate(
        "['ink', 'card', 'heat', 'above', 'below'].map((name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name))"
    )
    for colour in (above, below):
        share = float(heat) / 2
        mixed = [
            share * float(own) + (1 - share) * under
            for own, under in zip(colour.split(","), channels(card.strip()))
        ]
        high, low = sorted(
            (luminance(ink.strip()), luminance("#" + "".join(f"{round(value):02x}" for value in mixed))),
            reverse=True,
        )
        assert (high + 0.05) / (low + 0.05) >= 4.5


def channels(colour):
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def luminance(colour):
    parts = [value / 255 for value in channels(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Hostile inputs


def test_texts_are_shown_and_never_executed(tmp_path, visit):
    long = "long " * 20_000
    run = write_run(
        tmp_path / "a <b>&'\"$name",
        text=lambda iteration, prompt, k: (
            HOSTILE + "\n" * 5000 if k == 0 else long if k == 1 else "x" * 100_000
        ),
    )
    page.write([run], tmp_path / "report.html")
    for width in (1280, 400):
        seen = visit(tmp_path / "report.html", width=width)
        assert seen.complaints == [] and len(seen.requests) == 1 and seen.fits()
        assert "owned" not in seen.page.title() and "a <b>" in seen.page.title()
        first = seen.page.locator(".card .text").first.inner_text()
        assert "<script>document.title='owned'</script>" in first and "<b>bold</b> &amp;" in first
        assert (
            "\\x1b[31mred" in first and "\\u202egnp.exe" in first and "שלום" in first and "{{ 7*7 }}" in first
        )
        others = seen.page.locator(".card .text").all_inner_texts()
        assert "the middle of 100,000 characters is left out here" in others[2]
        assert seen.page.locator(".card .text b").count() == 0
        assert seen.page.locator("#run1-examples").bounding_box()["height"] < 600


def test_json_in_a_script_cannot_end_it():
    text = str(browser.embedded({"text": HOSTILE}))
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"text": HOSTILE}


def test_controls_do_not_blow_up_what_is_shown():
    assert len(browser.shown("\U000e0001" * 100_000)) < browser.LONGEST + 200
    assert browser.shown("short") == "short"


@pytest.mark.slow
def test_a_page_about_60_000_prompts_is_small(tmp_path):
    """Three iterations of 20,000 prompts, five responses of 1,500 characters each."""
    words = np.array([f"word{n}" for n in range(5000)])
    draw = np.random.default_rng(0)
    run = write_run(
        tmp_path / "big", prompts=500, held_out=200, text=lambda *_: " ".join(draw.choice(words, 190))
    )
    shutil.copytree(run / "iter-2", run / "iter-3")
    for number in (1, 2, 3):
        for name in ("responses", "preferences"):
            folder = run / f"iter-{number}" / name
            for part in range(1, 40):
                shutil.copy(folder / "part-00000.parquet", folder / f"part-{part:05d}.parquet")
    page.write([run], tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    print(f"{size:,} bytes")
    assert 1_000_000 < size <= 3_000_000
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2000 of 20000" in text


# Runs that are not whole


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    run = write_run(tmp_path / "run", iterations=1)
    other = write_run(tmp_path / "other")
    shutil.copytree(other / "iter-2", run / "iter-2")
    for name in ("annotate", "select", "train", "evaluation"):
        (run / "iter-2" / f"{name}.json").unlink()
    found = run_figures.read(run)
    assert "Not finished: 1 of 2 iterations are finished" in found.status
    assert "at iteration 2: annotate, 1 of 1 shards" in found.status
    assert not found.has_ended
    page.write([run], tmp_path / "report.html")
    assert "Not finished" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_that_has_only_begun(tmp_path):
    run = tmp_path / "run"
    write_run(run, iterations=0)
    (run / "iter-0" / "evaluation.json").unlink()
    shutil.rmtree(run / "iter-0" / "evaluation")
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 of 2 iterations are finished; it is at iteration 0: evaluate" in text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text("")
    page.write([tmp_path / "empty"], tmp_path / "report.html")


def test_a_stop_by_the_guard_is_said(tmp_path):
    run = write_run(tmp_path / "run", iterations=1, measures={1: {"win_rate_vs_previous": interval(0.3)}})
    found = run_figures.read(run)
    assert found.status.startswith("Stopped by the guard after iteration 1") and found.has_ended
    page.write([run], tmp_path / "report.html")
    assert "it loses to its predecessor: win rate 0.300" in (tmp_path / "report.html").read_text()


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text('{"iterations": [')
    with (run / "iter-1" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "st')
    shard = run / "iter-1" / "preferences" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There is no whole summary.json" in text and "0.700 [0.680, 0.720]" in text
    assert f"It is left out: {shard}" in text


def test_records_and_responses_of_a_strange_shape_are_named_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "iter-2" / "annotate.json").write_text('{"shards": 3}')
    held_out = run / "iter-1" / "evaluation" / "part-00000.parquet"
    write_shard(held_out, read_shard(held_out).drop_columns(["responses"]), {})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"damaged or of another version: {run / 'iter-2' / 'annotate.json'}" in text
    assert f"{held_out}: it has no responses" in text and "0.700 [0.680, 0.720]" in text


def _answer(table, **changes):
    rows = table.to_pylist()
    rows[0]["responses"][1] |= changes
    return pa.Table.from_pylist(rows, schema=table.schema)


def _preference(table, **changes):
    rows = table.to_pylist()
    rows[0] |= changes
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        ("responses", lambda table: _answer(table, text=None), "no text, tokens or finish_reason"),
        ("responses", lambda table: _answer(table, token_ids=None), "no text, tokens or finish_reason"),
        ("responses", lambda table: table.set_column(0, "prompt_id", [[7] * len(table)]), "7 is no text"),
        ("preferences", lambda table: _preference(table, matrix=[[0.5, 0.9], [0.5, 0.5]]), "not 1"),
        ("preferences", lambda table: _preference(table, matrix=[[0.5, 0.9], [0.1]]), "inhomogeneous"),
        ("preferences", lambda table: _preference(table, matrix=None), "square"),
        (
            "preferences",
            lambda table: _preference(
                table, components=[{"oracle": "anna", "matrix": [[0.5, 0.5], [0.5, 0.5]]}]
            ),
            "other responses than the whole",
        ),
    ],
)
def test_entries_of_a_strange_shape_are_named_and_the_rest_is_shown(tmp_path, name, change, note):
    run = write_run(tmp_path / "run")
    shard = run / "iter-1" / name / "part-00000.parquet"
    write_shard(shard, change(read_shard(shard)), {})
    notes = []
    assert samples.compared(run, 1, notes) is None and len(samples.compared(run, 2, notes).matrix) == 6
    (said,) = notes
    assert said.startswith(f"It is left out, as of another version: {shard}") and note in said


def test_a_predecessor_is_not_guessed_over_a_gap(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "iter-1" / "evaluation.json").unlink()
    found = run_figures.read(run)
    assert found.previous == {}
    page.write([run], tmp_path / "report.html")
    assert "0.700 [0.680, 0.720]" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_part_that_lacks_a_pair_does_not_disagree_about_it(run):
    of = samples.compared(run, 1, [])
    ben = of.parts["ben"].copy()
    ben[:, 0, 2] = ben[:, 2, 0] = np.nan  # the one pair of three about which he and Anna differ in a cycle
    found = samples.Compared(of.responses, of.matrix, {**of.parts, "ben": ben})
    assert set(np.nan_to_num(found.disagreement, nan=0.0)) == {0.0}


def test_a_run_of_another_version_says_so(tmp_path):
    run = write_run(
        tmp_path / "run",
        versions="# sppo 9.9.9, torch 1.0\n",
        recipe={**RECIPE, "of_the_future": {"<b>": 1}},
        measures={2: {"win_rate_vs_base": None, "kl_to_base": None, "repetition": "new"}},
    )
    old = read_shard(run / "iter-2" / "responses" / "part-00000.parquet").to_pylist()
    schema = pa.schema([field for field in RESPONSES if field.name != "prompt_token_ids"])
    write_shard(run / "iter-2" / "responses" / "part-00000.parquet", table(old, schema), {})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "made by sppo 9.9.9" in text and "cannot read the run" in text and "of_the_future" in text
    assert "0.600 [0.580, 0.620]" in text and "<b>" not in text


def test_figures_that_are_none_are_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    record = json.loads((run / "iter-1" / "evaluation.json").read_text())
    record |= {"win_rate_vs_base": {"mean": float("nan"), "low": 0, "high": 1}, "response_tokens": "<b>"}
    write_json(run / "iter-1" / "evaluation.json", record | {"kl_to_base": float("inf")})
    cost = json.loads((run / "iter-1" / "sample.json").read_text())
    write_json(run / "iter-1" / "sample.json", cost | {"responses_drawn": "many"})
    write_json(run / "iter-2" / "sample.json", cost | {"responses_drawn": 10**400})
    base = json.loads((run / "iter-0" / "evaluation.json").read_text())
    write_json(run / "iter-0" / "evaluation.json", base | {"repetition": 10**400})
    with (run / "iter-2" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "sample", "seconds": 10**400}) + "\n")
    with (run / "iter-1" / "metrics.jsonl").open("a") as file:
        file.write(
            '{"stage": "train", "step": 4, "loss": NaN, "kl": Infinity, "log_ratio_winners": "x"}\n[]\n'
        )
        file.write('{"stage": "sample", "seconds": "x"}\n{"stage": "annotate", "shard": 1, "oracle": 5}\n')
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "its evaluation lacks response_tokens, kl_to_base, win_rate_vs_base." in text
    assert "0.700 [0.680, 0.720]" in text and "<b>" not in text


def test_a_run_without_an_oracle_has_a_page(tmp_path):
    prompts = {"train": {"source": "x.jsonl", "demonstration": "answer"}}
    recipe = {**RECIPE, "algorithm": {"type": "sft"}, "prompts": prompts}
    del recipe["oracle"]
    run = write_run(tmp_path / "run", recipe=recipe)
    for number in (1, 2):
        for name in ("responses", "preferences"):
            shutil.rmtree(run / f"iter-{number}" / name)
        for name in ("sample", "annotate"):
            (run / f"iter-{number}" / f"{name}.json").unlink()
        record = json.loads((run / f"iter-{number}" / "evaluation.json").read_text())
        kept = {name: value for name, value in record.items() if not name.startswith("win_rate")}
        write_json(run / f"iter-{number}" / "evaluation.json", kept)
    assert run_figures.read(run).is_finished and not run_figures.read(run).notes
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="run1-kl"' in text and "run1-win-rates" not in text


def test_what_is_no_run_is_refused(tmp_path):
    done = report(tmp_path)
    assert done.exit_code == 1 and "is not a run folder" in done.output
    run = write_run(tmp_path / "run")
    assert "named twice" in report(run, run).output


# Several runs, benchmarks, watching, the command


@pytest.mark.slow
def test_several_runs_stand_on_one_page(tmp_path, run, visit):
    other = write_run(tmp_path / "other", measures={2: {"win_rate_vs_base": interval(0.8)}})
    done = report(run, other, "-o", tmp_path / "both.html")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    for name in ("all-wins", "all-kl", "all-tokens", "run1-win-rates", "run2-win-rates"):
        assert f'<figure id="{name}">' in text
    assert "0.800 [0.780, 0.820]" in text
    seen = visit(tmp_path / "both.html")
    assert seen.complaints == []
    assert seen.page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size == document.querySelectorAll('[id]').length"
    )


@pytest.mark.slow
def test_benchmarks_of_the_runs_policies_stand_beside_the_published_rows(tmp_path):
    run = write_run(tmp_path / "run")
    row = {
        "name": "mine",
        "win_rate": 12.345,
        "standard_error": 1.0,
        "avg_length": 99,
        "n_total": 805,
        "unjudged": 0,
        "judge": {"model": "j"},
    }
    results = [
        {**row, "policy": {"path": str(run / "iter-2" / "policy")}},
        {**row, "name": "stranger", "policy": {"path": str(tmp_path / "another")}},
    ]
    write_json(run / "evaluations" / "alpaca-eval" / "alpaca-eval.json", {"results": results})
    write_json(run / "evaluations" / "mt-bench.json", {"results": [{"policy": {"path": str(run)}}]})
    played = {"policies": [{"name": "a", "path": str(run / "iter-1" / "policy")}, {"name": "b", "path": "x"}]}
    played |= {"oracle": {"type": "panel"}, "prompts": 7, "von_neumann_winner": [1.0, 0.0]}
    played |= {
        "win_rates": [[0.5, 0.876], [0.124, 0.5]],
        "low": [[0.5, 0.8], [0.1, 0.5]],
        "high": [[0.5, 0.9], [0.2, 0.5]],
    }
    write_json(tmp_path / "evaluations" / "head-to-head" / "head-to-head.json", played)
    page.write([run], tmp_path / "report.html", evaluations=[tmp_path / "evaluations"])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "12.35" in text or "12.34" in text
    assert "stranger" not in text
    assert "28.53" in text and "arXiv:2405.00675" in text  # Mistral-7B SPPO, iteration 3
    assert "Results of mt-bench are of another form" in text
    assert "0.876" in text and "von Neumann winner" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("von_neumann_winner", [1.0]),
        ("von_neumann_winner", ["<b>", 0.0]),
        ("von_neumann_winner", 1),
        ("low", [[0.5, "x"], [0.1, 0.5]]),
        ("high", [[0.5]]),
        ("win_rates", [[0.5, 10**400], [0.1, 0.5]]),
    ],
)
def test_a_matrix_of_another_form_is_named(tmp_path, name, value):
    run = write_run(tmp_path / "run", iterations=1, prompts=1, held_out=1)
    rates = [[0.5, 0.9], [0.1, 0.5]]
    played = {
        "policies": [{"name": "a", "path": str(run / "iter-1" / "policy")}, {"name": "b", "path": "x"}],
        **dict.fromkeys(("win_rates", "low", "high"), rates),
        "oracle": {"type": "panel"},
        "prompts": 7,
        "von_neumann_winner": [1.0, 0.0],
    }
    write_json(run / "head-to-head.json", played)
    assert len(measured.matrices(run, [run], notes := [])) == 1 and not notes
    write_json(run / "head-to-head.json", played | {name: value})
    assert measured.matrices(run, [run], notes) == []
    assert "of another form than this version's" in notes[0]


@pytest.mark.slow
def test_watching_ends_with_the_run(tmp_path):
    from rich.console import Console

    from sppo.progress import Terminal
    from sppo.report.watching import watch

    run = write_run(tmp_path / "run", iterations=1)
    other = write_run(tmp_path / "other")
    pages, waits = [], []

    def wait(seconds):
        waits.append(seconds)
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
        if len(waits) == 2:
            shutil.copytree(other / "iter-2", run / "iter-2")

    with open(tmp_path / "log", "w") as log:
        watch([run], tmp_path / "report.html", Terminal(Console(file=log, width=200)), seconds=3, wait=wait)
    assert waits == [3, 3]
    assert 'data-reload="3"' in pages[0] and "Follow the run" in pages[0]
    last = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data-reload" not in last.split("<script>")[0] and "Finished" in last
    assert (tmp_path / "log").read_text().count("run:") == 2


def test_the_missing_pairs_are_asked_of_the_oracle(tmp_path):
    run = write_run(tmp_path / "run")
    figures = run_figures.read(run)
    matrix.compare_all(figures)
    kept = json.loads((run / matrix.FILE).read_text())
    assert np.shape(kept["mean"]) == (3, 3)
    # what the run has measured stands; evaluations that have changed make the rest void
    assert matrix.of_run(figures, []).entries[2][0]["mean"] == 0.7
    write_json(run / matrix.FILE, kept | {"low": [[]]})
    assert matrix.of_run(figures, notes := []).entries[2][0]["mean"] == 0.7
    assert f"as of another version: {run / matrix.FILE}" in notes[0]
    record = json.loads((run / "iter-1" / "evaluation.json").read_text())
    write_json(run / "iter-1" / "evaluation.json", {**record, "fingerprint": "other"})
    assert matrix._known(run_figures.read(run)) is None


def test_a_page_that_fails_is_no_reason_for_a_run_to_fail(tmp_path):
    from rich.console import Console

    from sppo.progress import Terminal
    from sppo.report.end_of_run import reported

    with (
        open(tmp_path / "log", "w") as log,
        reported(tmp_path, Terminal(Console(file=log, width=200)), RunError),
    ):
        pass
    assert "no report could be written" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_real_run_leaves_its_page_behind(tmp_path, visit):
    import yaml
    from small_runs import SMALL

    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "small.yaml"), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 0 and "The report is" in done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    seen = visit(tmp_path / "run" / "report.html")
    assert seen.complaints == [] and seen.fits()
    for row in summary["iterations"]:
        assert f"{row['win_rate_vs_base']['mean']:.3f}" in seen.page.content()
