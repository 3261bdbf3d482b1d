import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import RECIPE, interval, repeat_shard, write_run
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.report import page, run_figures
from sppo.rundir.folder import write_json
from sppo.rundir.shards import read_shard, table, write_shard
from sppo.rundir.tables import PREFERENCES

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<b>bold</b> &amp; \0 \x1b[31mred\x1b[0m \u202egnp.exe\u202c \u2028 ${1+1} {{ 7*7 }} שלום"
)


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
        assert f'<figure id="run1-{name}" ' in written, name
    for text in (
        "0.600<small>0.580 to 0.620</small>",
        "0.700<small>0.680 to 0.720</small>",
        "0.550 [0.530, 0.570]",
        "0.8333",
        "50.0%",
        "At the end of training, winners stand at +1.50 nats, where the target is +4.00, and losers at -1.50",
        "1.25",
        "321",
    ):
        assert text in written, text
    assert "k: 3" in written
    assert 'class="notes"' not in written and 'class="alarms"' not in written
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
    assert '<figure id="run1-second-oracle" ' in text and "the held-out oracle (panel)" in text
    assert "gives 0.810 and the held-out oracle 0.520, a difference of +0.290" in text
    assert "over-optimisation: the oracle" in text and 'class="alarms"' in text


def test_a_trait_that_only_the_oracle_likes_is_an_alarm_whose_texts_are_data(tmp_path):
    trait = {
        "name": 'says "<script>alert(1)</script>"',
        "base_share": 0.04,
        "share": 0.31,
        "win_rate": 0.8,
        "held_out": 0.3,
        "gap": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "examples": [{"prompt_id": "fox", "text": "<img src=x> It is what it is."}],
    }
    run = write_run(tmp_path / "run", measures={2: {"traits": [trait]}})
    page.write([run], tmp_path / "report.html")
    alarms = (
        (tmp_path / "report.html")
        .read_text(encoding="utf-8")
        .partition('class="alarms"')[2]
        .partition("</ul>")[0]
    )
    assert "Iteration 2: a weakness of the oracle? 31% of the responses" in alarms
    assert "&lt;script&gt;alert(1)" in alarms and "fox: &lt;img src=x&gt; It is what it is." in alarms
    assert "<script" not in alarms and "<img" not in alarms
    # a trait that another version has written otherwise is no reason to show no page
    broken = write_run(tmp_path / "broken", measures={2: {"traits": [{"name": 3}]}})
    page.write([broken], tmp_path / "report.html")


def test_the_first_screen_answers(tmp_path, visit):
    oracles = {"oracle": {"type": "panel"}, "evaluation": {"oracle": {"type": "panel"}}}
    by_oracle = {"by_oracle": {"win_rate_vs_base": interval(0.75)}}
    run = write_run(tmp_path / "run", measures={2: by_oracle}, recipe={**RECIPE, **oracles})
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    assert seen.locator(".verdict").inner_text() == (
        "After 2 iterations, the policy is better than the base policy: on held-out prompts, its responses are preferred"
        " with a probability of 70.0% [68.0%, 72.0%] by the held-out oracle (panel). Its responses are 50% longer than"
        " the base's."
    )
    tiles = seen.locator(".tile").all()
    values = {tile.locator("dt").inner_text(): tile.locator("strong").inner_text() for tile in tiles}
    assert values == {
        "Win rate against the base": "0.700",
        "Change per iteration": "+0.10, +0.10",
        "Gap between the oracles": "+0.050",
        "Tokens per response": "6.0",
        "KL to the base": "0.50",
        "Truncated responses": "0.0%",
        "Responses trained on": "24",
        "Time": "2 min 30 s",
    }
    facts = seen.locator(".facts > div").all_inner_texts()
    assert (
        "Responses per prompt\n3" in facts
        and "Model\ntinyworld" in facts
        and "Prompts in each iteration\n6" in facts
    )
    for tile in tiles:
        assert tile.bounding_box()["y"] + tile.bounding_box()["height"] < 900


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.49, "not measurably different from"), (0.3, "worse than"), (0.53, "better than")]
)
def test_the_verdict_follows_the_interval(tmp_path, mean, verdict):
    run = write_run(tmp_path / "run", iterations=1, measures={1: {"win_rate_vs_base": interval(mean)}})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"After 1 iteration,\nthe policy is <strong>{verdict}</strong> the base policy" in text


def test_examples_stand_at_the_quartiles_with_their_changes_marked(tmp_path, visit):
    texts = {0: "A cat sleeps. It purrs.", 1: "", 2: "A cat sleeps. Then it eats."}
    run = write_run(tmp_path / "run", held_out=9, text=lambda iteration, *_: texts[iteration] or "-")
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    assert seen.locator(".example h4").all_inner_texts() == [
        "Lower quartile: win rate 0.300 on this prompt",
        "Median: win rate 0.500 on this prompt",
        "Upper quartile: win rate 0.700 on this prompt",
    ]
    assert "by the run's own oracle: a quarter of the held-out prompts came out worse" in seen.inner_text(
        "main"
    )
    first = seen.locator(".example").first
    assert first.locator("del").all_inner_texts() == ["It purrs"]
    assert first.locator("ins").all_inner_texts() == ["Then it eats"]
    assert first.locator(".card .text").all_inner_texts() == [texts[0], texts[2]]


def test_without_win_rates_by_prompt_examples_are_random(tmp_path):
    run = write_run(tmp_path / "run")
    for folder in run.glob("iter-*/comparisons"):
        shutil.rmtree(folder)
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "These held-out prompts were chosen at random." in text and text.count('class="example"') == 3


@pytest.mark.parametrize("width", [1280, 400])
def test_a_chart_shows_its_values_on_hover(run, written, visit, width):
    seen = visit(run / "report.html", width=width)
    drawing = seen.page.locator("#run1-win-rates .drawing")
    drawing.scroll_into_view_if_needed()
    box = drawing.locator("svg").bounding_box()
    assert not drawing.locator(".tip").is_visible()
    seen.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.4 * box["height"])
    assert drawing.locator(".tip").inner_text().splitlines() == [
        "iteration 2",
        "against the base policy: 0.7 [0.68, 0.72]",
        "against the previous policy: 0.55 [0.53, 0.57]",
    ]
    assert drawing.locator("circle").count() == 2 and seen.fits()
    seen.page.mouse.move(0, 0)
    assert not drawing.locator(".tip").is_visible()
    with seen.page.expect_download() as download:
        seen.page.locator("#run1-win-rates summary").click()
        seen.page.locator("#run1-win-rates a[download]").click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert rows[2].startswith("2,0.7,0.6") and download.value.suggested_filename == "run1-win-rates.csv"
    assert seen.complaints == []


def test_no_text_of_a_chart_is_smaller_than_12_pixels(run, written, visit):
    for width in (1280, 400):
        sizes = visit(run / "report.html", width=width).page.evaluate(
            """() => [...document.querySelectorAll('figure svg text')].map((text) =>
            parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))"""
        )
        assert len(sizes) > 100 and min(sizes) >= 12


def test_watched_tasks_and_the_interval_of_the_kl_are_shown_where_they_are_recorded(tmp_path, visit):
    def score(mean, change):
        return {**interval(mean), "items": 50, "change": interval(change)}

    tasks = {
        0: {"tasks": {"arc": {**interval(0.5), "items": 50}, "mmlu": {**interval(0.3), "items": 50}}},
        1: {"tasks": {"arc": score(0.51, 0.01), "mmlu": score(0.29, -0.01)}},
        2: {
            "tasks": {"arc": score(0.4, -0.1), "mmlu": score(0.31, 0.01), "<b>": "damaged"},
            "kl_interval": interval(0.5),
        },
    }
    run = write_run(tmp_path / "run", measures=tasks)
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    assert "interval: 0.48 to 0.52; nats per response" in seen.locator(".tiles").inner_text()
    caption = seen.locator("#run1-task-scores .caption").inner_text()
    assert caption.endswith("arc has come off worst: its score goes from 0.500 to 0.400.")
    rows = [row.split("\t") for row in seen.locator("#run1-tasks > .scroll tbody tr").all_inner_texts()]
    assert rows[0] == ["base", "arc", "50", "0.500 [0.480, 0.520]", "-"]
    assert rows[-2] == ["iteration 2", "arc", "50", "0.400 [0.380, 0.420]", "-0.100 [-0.120, -0.080]"]


def test_oracles_are_named_with_what_they_are_made_of(tmp_path):
    member = {"type": "function", "function": "mine:prefer"}
    oracle = {
        "type": "near_tie",
        "oracle": {"type": "panel", "members": [member, {"type": "pairrm", "model": "x"}]},
    }
    run = write_run(tmp_path / "run", recipe={**RECIPE, "oracle": oracle})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "near_tie (panel (function mine:prefer, pairrm x))" in text


@pytest.mark.parametrize(
    ("winners", "losers", "words"),
    [
        (0.0, -0.01, "neither has moved to speak of"),
        (-1.0, -3.0, "both have become less probable"),
        (1.0, 2.0, "both have become more probable"),
        (-1.0, 1.0, "both have moved the wrong way"),
        (2.0, -1.0, "winners are raised at least as far"),
        (0.5, -6.0, "losers are pushed down further"),
    ],
)
def test_where_winners_and_losers_have_gone_is_said(tmp_path, winners, losers, words):
    run = write_run(tmp_path / "run", iterations=1)
    targets = {"target_winners": 7.0, "target_losers": -7.0}
    line = {"stage": "train", "step": 1, "log_ratio_winners": winners, "log_ratio_losers": losers, **targets}
    (run / "iter-1" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page.write([run], tmp_path / "report.html")
    assert f"where it is -7.00: {words}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_fingerprints_come_last(written):
    assert written.rindex("<section ") == written.index('<section id="run1-fingerprints"')


def test_the_page_works_in_a_browser(run, written, visit):
    for width, scheme in ((1280, "light"), (400, "dark")):
        seen = visit(run / "report.html", width=width, color_scheme=scheme)
        assert seen.requests == [(run / "report.html").resolve().as_uri()]
        assert seen.complaints == [] and seen.fits()
        assert seen.page.locator("figure svg[role=img] > title").count() == 10
        box = seen.page.locator("#run1-win-rates svg").bounding_box()
        assert 250 < box["width"] < 500 and box["height"] > 150


def test_a_page_that_reads_itself_anew_leaves_people_where_they_were(run, written, visit):
    seen = visit(run / "report.html").page
    seen.locator("[name=t]").select_option("2")
    seen.locator("#run1-loss summary").click()
    seen.locator(".prompts button").nth(2).click()
    seen.locator(".detail summary").click()
    seen.locator(".detail .moves button").last.click()
    assert seen.locator(".detail details").evaluate("(details) => details.open")  # from prompt to prompt
    shown = seen.locator(".detail .note").first.inner_text()
    seen.locator("[name=words]").fill("prompt")
    seen.reload()
    assert seen.locator(".detail .note").first.inner_text() == shown
    assert seen.locator("[name=t]").input_value() == "2"
    assert seen.evaluate("document.activeElement.name") == "words"
    assert seen.locator("main figure details[open]").count() == 1


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
        first = seen.page.locator(".detail .card .text").first.inner_text()
        assert "<script>document.title='owned'</script>" in first and "<b>bold</b> &amp;" in first
        assert (
            "\\x1b[31mred" in first and "\\u202egnp.exe" in first and "שלום" in first and "{{ 7*7 }}" in first
        )
        others = seen.page.locator(".detail .card .text").all_inner_texts()
        assert "the middle of 100,000 characters is left out here" in others[2]
        assert seen.page.locator(".card .text b").count() == 0
        assert seen.page.locator("#run1-examples").bounding_box()["height"] < 1500
        in_example = seen.page.locator(".example .text").nth(1).inner_text()
        assert "<script>document.title='owned'</script>" in in_example and "<b>bold</b>" in in_example


def test_names_from_the_recipe_and_the_oracle_are_data_everywhere(tmp_path, visit):
    recipe = {**RECIPE, "policy": {"model": f"tinyworld'{HOSTILE}".replace("\0", "")}}
    run = write_run(tmp_path / "run", recipe=recipe)
    for shard in run.glob("iter-*/preferences/part-*.parquet"):
        rows = read_shard(shard).to_pylist()
        for row in rows:
            row["components"][0]["oracle"] = f"=1+1'{HOSTILE}"
        write_shard(shard, table(rows, PREFERENCES), {})
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html", width=400)
    assert seen.fits() and "owned" not in seen.page.title()
    assert HOSTILE[:40] in seen.page.locator(".facts").inner_text()
    drawing = seen.page.locator("#run1-agreement .drawing")
    drawing.scroll_into_view_if_needed()
    drawing.hover()
    assert f"=1+1'{HOSTILE[:40]}" in drawing.locator(".tip").inner_text()
    with seen.page.expect_download() as download:
        seen.page.locator("#run1-agreement summary").click()
        seen.page.locator("#run1-agreement a[download]").click()
    head = next(csv.reader(Path(download.value.path()).read_text().splitlines()))
    assert head[1].startswith("'=1+1'</script>")  # a spreadsheet must not take it for a formula
    assert seen.page.locator("img, b").count() == 0 and seen.complaints == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_a_page_about_60_000_prompts_is_small(tmp_path):
    """Three iterations of 20,000 prompts, five responses of 1,500 characters each."""
    words = np.array([f"word{n}" for n in range(5000)])
    draw = np.random.default_rng(0)
    run = write_run(
        tmp_path / "big", prompts=500, held_out=200, text=lambda *_: " ".join(draw.choice(words, 190))
    )
    shutil.copytree(run / "iter-2", run / "iter-3")
    for shard in (run / "iter-2").glob("*/part-*.parquet"):
        repeat_shard(shard, run / "iter-3" / shard.relative_to(run / "iter-2"))
    for number in (1, 2, 3):
        for name in ("responses", "preferences"):
            folder = run / f"iter-{number}" / name
            for part in range(1, 40):
                repeat_shard(folder / "part-00000.parquet", folder / f"part-{part:05d}.parquet")
    page.write([run], tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    print(f"{size:,} bytes")
    assert 1_000_000 < size <= 3_000_000
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2000 of 20000" in text


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
