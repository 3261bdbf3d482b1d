"""The browser of responses, in a real browser."""

import pytest
from run_folders import CYCLE, write_run

from sppo.report import page


def test_filters_find_what_they_say(run, written, visit):
    seen = visit(run / "report.html").page
    field = lambda name: seen.locator(f"[name={name}]")  # noqa: E731
    status = seen.locator("[role=status]")
    assert status.inner_text() == "12 of 12 prompts on this page"
    field("t").select_option("2")
    assert status.inner_text().startswith("6 of 12")
    field("cycles").select_option("some")
    assert status.inner_text().startswith("3 of 12")
    assert seen.locator(".detail .card").count() == 3
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
    assert "No prompt passes" in seen.locator(".detail").inner_text()
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
    assert seen.locator(".detail .card h4").all_inner_texts() == ["base", "iteration 1", "iteration 2"]


def test_the_best_and_the_worst_response_are_named_and_coloured(run, written, visit):
    seen = visit(run / "report.html").page
    seen.locator("[name=words]").fill("prompt train-1-1")  # its order is 1, 2, 3
    cards = seen.locator(".detail .card")
    assert cards.locator("h4").all_inner_texts() == ["Response 1: best", "Response 2", "Response 3: worst"]
    colours = [card.evaluate("(card) => getComputedStyle(card).backgroundColor") for card in cards.all()]
    assert len(set(colours)) == 3
    seen.locator("[name=words]").fill("prompt train-1-0")  # a cycle, in which all have the same win rate
    assert cards.locator("h4").all_inner_texts() == ["Response 1", "Response 2", "Response 3"]


def test_held_out_responses_have_win_rates_and_their_new_words_marked(tmp_path, visit):
    run = write_run(
        tmp_path / "run", text=lambda iteration, *_: f"one {'😀 <b>two</b>' if iteration else ''} three"
    )
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    seen.locator("[name=t]").select_option("held-out")
    seen.locator("[name=words]").fill("prompt held-3")
    last = seen.locator(".detail .card").last
    assert "win rate 0.800" in last.inner_text() and "one 😀 <b>two</b> three" in last.inner_text()
    assert last.locator("ins").all_inner_texts() == ["😀 <b>two</b>"]
    assert last.locator("b").count() == 0


def test_the_panes_stand_side_by_side_on_wide_screens_and_below_each_other_on_narrow_ones(
    run, written, visit
):
    def boxes(width):
        page = visit(run / "report.html", width=width).page
        return page.locator(".prompts").bounding_box(), page.locator(".detail").bounding_box()

    prompts, detail = boxes(1280)
    assert prompts["x"] + prompts["width"] <= detail["x"] and prompts["y"] == detail["y"]
    prompts, detail = boxes(400)
    assert prompts["y"] + prompts["height"] <= detail["y"] and prompts["x"] == detail["x"]


@pytest.mark.slow
def test_the_browser_of_responses_is_used_by_keyboard(run, written, visit):
    seen = visit(run / "report.html").page
    seen.locator(".prompts button").first.focus()
    first = seen.locator(".detail").inner_text()
    seen.keyboard.press("ArrowDown")
    seen.keyboard.press("Enter")
    assert seen.evaluate("document.activeElement.className") == "detail"
    assert seen.locator(".detail").inner_text() != first
    assert seen.locator(".prompts button[aria-current=true]").count() == 1
