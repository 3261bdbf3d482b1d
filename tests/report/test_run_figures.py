"""The figures that are read from a run folder."""

import json
import shutil

from run_folders import RECIPE, interval, write_run
from small_runs import play, small
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.report import page, run_figures
from sppo.rundir.folder import write_json


def test_figures_are_the_runs_own(run):
    found = run_figures.read(run)
    assert found.is_finished and found.has_ended
    assert found.status.startswith("Finished: 2 iterations; last written")
    assert not found.notes and not found.alarms and not found.warnings
    assert [one.measures["win_rate_vs_base"]["mean"] for one in found.evaluated] == [0.6, 0.7]
    assert found.started[1].seconds == dict.fromkeys(
        ("sample", "annotate", "select", "train", "evaluate"), 20.0
    )
    assert found.previous == {1: 0, 2: 1}


def test_who_was_the_predecessor_after_a_fall_back(tmp_path):
    run = write_run(
        tmp_path / "run",
        measures={1: {"win_rate_vs_previous": interval(0.4)}},
        recipe={**RECIPE, "guard": {"on_failure": "fall_back"}},
    )
    found = run_figures.read(run)
    assert found.previous == {1: 0, 2: 0}
    assert "loses to its predecessor" in found.alarms[0]


def test_a_predecessor_is_not_guessed_over_a_gap(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "iter-1" / "evaluation.json").unlink()
    found = run_figures.read(run)
    assert found.previous == {}
    page.write([run], tmp_path / "report.html")
    assert "0.700<small>0.680 to 0.720</small>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    run = write_run(tmp_path / "run", iterations=1)
    other = write_run(tmp_path / "other")
    shutil.copytree(other / "iter-2", run / "iter-2")
    for name in ("annotate", "select", "train", "evaluation"):
        (run / "iter-2" / f"{name}.json").unlink()
    found = run_figures.read(run)
    assert "Not finished: 1 of 2 iterations finished" in found.status
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
    assert "0 of 2 iterations finished; the run is at iteration 0: evaluate" in text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text("")
    page.write([tmp_path / "empty"], tmp_path / "report.html")


def test_a_stop_by_the_guard_is_said(tmp_path):
    run = write_run(tmp_path / "run", iterations=1, measures={1: {"win_rate_vs_previous": interval(0.3)}})
    found = run_figures.read(run)
    assert found.status.startswith("Stopped by the guard after iteration 1") and found.has_ended
    page.write([run], tmp_path / "report.html")
    assert "it loses to its predecessor: win rate 0.300" in (tmp_path / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1 and "is not a run folder" in done.output
    run = write_run(tmp_path / "run")
    assert "named twice" in CliRunner().invoke(app, ["report", str(run), str(run)]).output


def test_what_oracles_could_not_read_or_compare_is_a_warning(tmp_path, visit):
    run = write_run(
        tmp_path / "run",
        measures={
            0: {"unfinished_thoughts": 0},
            2: {"unfinished_thoughts": 3, "prompts_left_out": 1, "tokens_without_text": 34},
        },
    )
    sampled = json.loads((run / "iter-2" / "sample.json").read_text())
    write_json(
        run / "iter-2" / "sample.json", {**sampled, "unfinished_thoughts": 1200, "tokens_without_text": 2000}
    )
    first, *others = json.loads((run / "iter-1" / "annotate.json").read_text())["shards"]
    with (run / "iter-1" / "metrics.jsonl").open("a") as lines:
        for shard, count in [(first, 4), *((other, 0) for other in others)]:
            line = {"stage": "annotate", "shard": shard["name"], "oracle": {"pairs_left_out": count}}
            lines.write(json.dumps(line) + "\n")
    thoughts = "end within a thought, and oracles read them as empty"
    no_text = (
        "are spare rows of the policy's embedding, which its tokenizer has no text for and oracles do not see"
    )
    assert run_figures.read(run).warnings == [
        "Iteration 1: 4 of the pairs of responses were not compared, because the oracle left them out",
        f"Iteration 2: 2,000 of the tokens that were sampled for training {no_text}",
        f"Iteration 2: 34 of the tokens of the responses to held-out prompts {no_text}",
        f"Iteration 2: 1,200 of the responses that were sampled for training {thoughts}",
        f"Iteration 2: 3 of the responses to held-out prompts {thoughts}",
        "Iteration 2: 1 of the held-out prompts have no win rate, because the oracle left them out",
    ]
    page.write([run], tmp_path / "report.html")
    seen = visit(tmp_path / "report.html").page
    assert seen.locator(".warnings li").count() == 6
    assert "There are 6 warnings below." in seen.locator(".verdict").inner_text()
    rows = seen.locator("#run1-shape > .scroll tr").all_inner_texts()
    assert rows[0].endswith("unfinished thoughts\tprompts left out by the oracle\ttokens without text")
    assert rows[-1].endswith("0.500\t3\t1\t34")


def test_alarms_and_warnings_are_those_that_the_run_had(tmp_path):
    """This includes the alarms about training, which do not look at the evaluation."""
    changes = {
        "iterations": 1,
        "sampling.max_new_tokens": 18,
        "training.truncated_responses": "score_only",
        "guard.min_trained_share": 1.0,
        "guard.max_sampler_deviation": 1e-12,
    }
    summary = play(small(**changes), tmp_path / "run")
    (row,) = summary["iterations"]
    (iteration,) = run_figures.read(tmp_path / "run").evaluated
    assert iteration.alarms == row["alarms"] and iteration.warnings == row["warnings"] != []
    said = "\n".join(iteration.alarms)
    assert "at least 100% is demanded (guard.min_trained_share)" in said
    assert "is allowed (guard.max_sampler_deviation)" in said
