"""Watched tasks: every policy is measured on the same items of lm-eval's tasks, and a fall beyond its interval fails it."""

import html
import io
import json
import shutil

import pytest
import yaml
from rich.console import Console
from small_runs import digests, play, play_aloud, small

from sppo import dry_run
from sppo.progress import Terminal
from sppo.recipe import RecipeError
from sppo.report import page
from sppo.rundir.folder import RunFolder, StaleRun
from sppo.rundir.guard import GuardStop
from sppo.rundir.tables import ItemScoreRow, read_rows
from sppo.stages import watched_tasks
from sppo.stages.watched_tasks import WatchedTaskError
from sppo.tinyworld import TRAIN_PROMPTS

pytest.importorskip("lm_eval")


def task_file(folder, name="animals", count=12, **more):
    """A task file with local data: a text of the embedded world before its own words in other orders."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, line in enumerate(TRAIN_PROMPTS.read_text().splitlines()[:count]):
        words = json.loads(line)["completion"].split()
        orders = [" ".join(order) for order in (words[::-1], sorted(words))]
        orders.insert(n % 3, " ".join(words))
        rows.append({"question": json.loads(line)["prompt"], "choices": orders, "answer": n % 3})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": f"my_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | more))
    return str(path)


def recipe(*tasks, **changes):
    return small(**{"iterations": 1, "prompts.train.limit": 8, "evaluation.tasks": list(tasks), **changes})


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("watched")
    tasks = [{"task": task_file(home / "tasks"), "items": 10}, task_file(home / "tasks", "birds", count=6)]
    return home / "run", tasks, *play_aloud(recipe(*tasks), home / "run")


def scores(run, iteration):
    shards = sorted((run / f"iter-{iteration}" / "capabilities").glob("part-*.parquet"))
    return [row for path in shards for row in read_rows(path, ItemScoreRow)]


@pytest.mark.slow
def test_the_base_and_the_policy_are_scored_on_the_same_items(finished):
    run, _, summary, shown = finished
    base, policy = scores(run, 0), scores(run, 1)
    assert [(row.task, row.number) for row in base] == [(row.task, row.number) for row in policy]
    assert [row.task for row in base].count("animals") == 10, "the sample"
    assert [row.task for row in base].count("birds") == 6, "a task with fewer items gives all"
    (row,) = summary["iterations"]
    for name, count in (("animals", 10), ("birds", 6)):
        found = row["tasks"][name]
        means = [sum(item.score for item in of if item.task == name) / count for of in (base, policy)]
        assert found["items"] == count
        assert found["mean"] == pytest.approx(means[1])
        assert found["change"]["mean"] == pytest.approx(means[1] - means[0])
        assert found["change"]["low"] <= found["change"]["mean"] <= found["change"]["high"]
        assert summary["base"]["tasks"][name]["mean"] == pytest.approx(means[0])
        assert f"{name}: {found['mean']:.3f}" in shown


LOST = "it has lost what it knew: on animals its score is"


def page_text(run):
    """The page of a run, where its alarms stand beside its watched tasks."""
    page.write([run], run / "report.html")
    text = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    assert "Watched tasks" in text
    return text


@pytest.mark.slow
def test_a_policy_that_keeps_what_it_knew_raises_no_alarm(finished):
    run, _, summary, shown = finished
    (row,) = summary["iterations"]
    assert summary["base"]["tasks"]["animals"]["mean"] == row["tasks"]["animals"]["mean"] == 1
    for said in (shown, str(row["alarms"]), page_text(run)):
        assert LOST not in said


@pytest.mark.slow
def test_a_policy_that_was_destroyed_raises_the_alarm_everywhere(tmp_path):
    """A learning rate far too large; the guard stops the run, keeps the policy, or allows the fall, as the recipe says."""
    changes = {"training.learning_rate": 0.3, "prompts.held_out.limit": 4, "shard_prompts": 12}
    task, run = task_file(tmp_path / "tasks"), tmp_path / "run"
    with pytest.raises(GuardStop, match=rf"stopped after iteration 1: .*{LOST}"):
        play(recipe(task, **changes, **{"guard.on_failure": "stop"}), run)
    summary, shown = play_aloud(recipe(task, **changes), run)
    (row,) = summary["iterations"]
    found = row["tasks"]["animals"]
    assert summary["base"]["tasks"]["animals"]["mean"] == 1
    assert found["mean"] < 2 / 3, "no better than chance, 1/3, as far as twelve items tell"
    (alarm,) = [alarm for alarm in row["alarms"] if LOST in alarm]
    assert f"is {found['mean']:.3f}, which is {found['change']['mean']:+.3f} [" in alarm
    assert alarm.endswith(
        "from the base's on the same 12 items; a fall of 0 is allowed (guard.max_task_fall)"
    )
    assert f"WARNING: iteration 1: {alarm}" in shown
    assert alarm in json.loads((run / "summary.json").read_text())["iterations"][0]["alarms"]
    assert alarm in page_text(run)
    allowed, _ = play_aloud(recipe(task, **changes, **{"guard.max_task_fall": 1}), run)
    assert not [alarm for alarm in allowed["iterations"][0]["alarms"] if LOST in alarm]
    assert LOST not in page_text(run)


@pytest.mark.slow
def test_a_lost_shard_of_scores_is_made_again_and_no_other(finished, tmp_path):
    run, tasks, *_ = finished
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    before = digests(copied)
    kept = {path: path.stat().st_mtime_ns for path in copied.glob("iter-1/capabilities/*.parquet")}
    assert len(kept) == 5, "ten and six items in shards of four"
    lost = copied / "iter-1" / "capabilities" / "part-00002.parquet"
    lost.unlink()
    play(recipe(*tasks), copied)
    assert digests(copied) == before
    assert {path for path in kept if path.stat().st_mtime_ns != kept[path]} == {lost}


@pytest.mark.slow
def test_another_sample_makes_the_evaluation_stale_and_nothing_that_is_trained(finished):
    run, tasks, *_ = finished
    for changed in ([{**tasks[0], "items": 11}, tasks[1]], tasks[:1], [{**tasks[0], "shots": 1}, tasks[1]]):
        with pytest.raises(StaleRun) as caught:
            play(recipe(*changed), run)
        stale = str(caught.value).split("are stale:\n")[1].splitlines()[:-1]
        assert {line.split(": ")[1].split(" ")[0] for line in stale} <= {"items", "capabilities", "evaluate"}
        assert any("iteration 1: evaluate" in line for line in stale)


def test_without_tasks_nothing_is_measured_and_old_runs_stay_valid(tmp_path):
    """The key is new: a run that was begun before it has the same fingerprints."""
    from sppo.executors.local import Local
    from sppo.stages.evaluate import evaluate_base
    from sppo.stages.run import Run

    one = small(**{"evaluation.tasks": []})
    run = Run(one, RunFolder(tmp_path), Terminal(Console(file=io.StringIO())), Local(one))
    evaluation = evaluate_base(run)
    assert evaluation.capabilities is None
    assert "tasks" not in evaluation.settings()["evaluation"]


def test_the_sample_depends_on_the_seed_and_a_smaller_one_is_part_of_it(tmp_path):
    name = task_file(tmp_path)
    drawn = {}
    for items, seed in ((5, 0), (8, 0), (5, 1)):
        (config,) = recipe({"task": name, "items": items}).evaluation.tasks
        with watched_tasks.opened(config) as task:
            drawn[items, seed] = {number for _, number in task.draw(seed)}
    assert [len(numbers) for numbers in drawn.values()] == [5, 8, 5]
    assert drawn[5, 0] < drawn[8, 0]
    assert drawn[5, 0] != drawn[5, 1]


def test_the_dry_run_loads_local_tasks_and_says_what_they_cost(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    dry_run.show(recipe({"task": task_file(tmp_path), "items": 4}), Terminal(console))
    assert "animals: 4 of 12 items, 12 requests of about 32 tokens" in console.file.getvalue()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "exact_match"}, r"exact_match is no figure of it .* there are acc"),
        ({"task": "none.yaml"}, r"none\.yaml cannot be read"),
        ({"task": "gsm8k", "data": "nowhere"}, r"there is no nowhere/gsm8k/train\.jsonl"),
        ({"task": "piqa", "data": "."}, r"data is for the tasks arc_challenge"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_before_anything_is_computed(tmp_path, more, message):
    wrong = recipe({"task": task_file(tmp_path), **more})
    with pytest.raises(WatchedTaskError, match=message):
        dry_run.show(wrong, Terminal(Console(file=io.StringIO())))
    with pytest.raises(WatchedTaskError, match=message):
        play(wrong, tmp_path / "run")
    assert not list(tmp_path.glob("run/iter-*"))


def test_data_that_cannot_be_read_are_named(tmp_path):
    name = task_file(tmp_path)
    (tmp_path / "animals.jsonl").write_text("{[\n")
    with pytest.raises(WatchedTaskError, match=r"evaluation\.tasks: animals: lm-eval fails"):
        dry_run.show(recipe(name), Terminal(Console(file=io.StringIO())))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("arc_easy", "must be a list of lm-eval tasks"),
        ([3], "must hold names of lm-eval tasks"),
        (["arc_easy", "arc_easy"], "'arc_easy' is there twice"),
        ([{"task": "a.yaml", "data": "x"}], "names its own; leave data out"),
        ([{"task": "arc_easy", "item": 3}], "did you mean `items`"),
    ],
)
def test_wrong_lists_of_tasks_are_refused(tasks, message):
    with pytest.raises(RecipeError, match=message):
        small(**{"evaluation.tasks": tasks})
