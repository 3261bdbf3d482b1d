"""What axe-core finds, and the contrast of what it does not look at, in a real browser."""

import pytest
from accessibility import SCREENS, faults
from run_folders import RECIPE, interval, write_run

from sppo.report import page


def failing_run(folder):
    """A run with alarms, warnings and notes, a held-out oracle, watched tasks and what could not be compared."""
    score = {**interval(0.4), "items": 50, "change": interval(-0.1)}
    measures = {
        number: {
            "win_rate_vs_previous": interval(0.3),
            "by_oracle": {"win_rate_vs_base": interval(0.7)},
            "prompts_left_out": 1,
            "tasks": {"arc": score},
            "kl_interval": interval(0.5),
        }
        for number in (1, 2)
    }
    held_out = {"evaluation": {"oracle": {"type": "panel"}}, "guard": {"on_failure": "keep"}}
    return write_run(folder, measures=measures, recipe={**RECIPE, **held_out}, versions="# sppo 0.0.1\n")


@pytest.mark.slow
def test_axe_finds_no_fault_in_the_report(tmp_path, visit):
    run = failing_run(tmp_path / "run")
    page.write([run], tmp_path / "report.html", reload=1000)
    seen = visit(tmp_path / "report.html").page
    assert all(seen.locator(f".{name}").count() == 1 for name in ("alarms", "warnings", "notes"))
    assert faults(seen) == []
    seen.locator("[name=t]").select_option("held-out")
    seen.locator("#run1-win-rates .drawing").hover()
    seen.evaluate("document.documentElement.removeAttribute('lang')")
    assert {fault.split(": ")[1] for fault in faults(seen, SCREENS[:1])} == {"html-has-lang"}


@pytest.mark.slow
def test_axe_finds_no_fault_in_a_page_about_several_runs(tmp_path, run, visit):
    page.write([run, failing_run(tmp_path / "run")], tmp_path / "report.html")
    assert faults(visit(tmp_path / "report.html").page, SCREENS[::3]) == []


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
    ink, card, heat, tint, above, below = seen.evaluate(
        "['ink', 'card', 'heat', 'tint', 'above', 'below'].map((name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name))"
    )
    for colour in (above, below):
        share = float(tint) + float(heat) / 2
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
