"""Names, headings and contrast, in a real browser."""

import pytest


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
