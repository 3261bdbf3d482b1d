"""A run whose judge refuses some prompts: they are left out of training and of the measures, and counted."""

import json
import re
from collections import Counter
from io import StringIO

import numpy as np
import pytest
import small_runs
from chat_server import Reply, said, serve
from rich.console import Console
from small_runs import rows

from sppo import selfplay
from sppo.progress import Terminal
from sppo.rundir.folder import RunFolder
from sppo.stages.single import run_stage


def shown_prompt(body):
    text = body["messages"][-1]["content"]
    return re.search(r"\[the user's prompt\]\n(.*?)\n\[end of the prompt\]", text, re.S).group(1)


def is_refused(prompt):
    return len(prompt) % 4 == 0


def judge(path, body):
    if is_refused(shown_prompt(body)):
        return Reply({"error": {"message": "content policy"}}, 400)
    text = body["messages"][-1]["content"]
    return said("[[A]]" if hash(text) % 3 else "[[C]]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    with serve(judge) as server:
        oracle = {
            "type": "judge",
            "verdict": "samples",
            "unread": "leave_out_prompt",
            "max_left_out_share": 0.9,
            "endpoint": {"url": server.url, "model": "m"},
        }
        recipe = small_runs.small(
            **{
                "iterations": 1,
                "oracle": oracle,
                "sampling.k": 3,
                "prompts.train.limit": 12,
                "prompts.held_out.limit": 12,
            }
        )
        console = Console(file=StringIO(), width=250)
        summary = selfplay.run(recipe, RunFolder(folder), Terminal(console))
    return folder, summary, console.file.getvalue()


def test_a_refused_prompt_is_not_trained_on(finished):
    folder, summary, shown = finished
    prompts = {
        row["prompt_id"]: row["messages"][-1]["content"] for row in rows(folder / "iter-1" / "responses")
    }
    refused = {key for key, prompt in prompts.items() if is_refused(prompt)}
    assert refused
    assert refused < prompts.keys()
    for row in rows(folder / "iter-1" / "preferences"):
        gaps = np.isnan(np.array(row["matrix"], dtype=float))
        expected = ~np.eye(3, dtype=bool) if row["prompt_id"] in refused else np.zeros((3, 3), dtype=bool)
        np.testing.assert_array_equal(gaps, expected)
    trained = {row["prompt_id"] for row in rows(folder / "iter-1" / "training") if row["responses"]}
    assert trained
    assert not trained & refused
    assert summary["iterations"][0]["trained"]["trained_prompts"] == len(trained)
    causes = summary["iterations"][0]["trained"]["untrained"]
    assert causes["left_out"] == len(refused)
    assert sum(causes.values()) == len(prompts) - len(trained)
    assert f"the oracle has left out all responses to {len(refused)} prompts" in shown
    lines = (folder / "iter-1" / "metrics.jsonl").read_text().splitlines()
    counted = [record["oracle"] for record in map(json.loads, lines) if "oracle" in record]
    assert counted[-1]["pairs_left_out"] == 3 * len(refused)
    assert summary["iterations"][0]["oracle"]["pairs_left_out"] == 3 * len(refused)
    assert f"note: {3 * len(refused)} pairs of the responses that it learns from left out" in shown


def test_a_refused_prompt_has_no_win_rate_and_does_not_spoil_the_mean(finished):
    folder, summary, shown = finished
    record = json.loads((folder / "iter-1" / "evaluation.json").read_text())
    held_out = [row["messages"][-1]["content"] for row in rows(folder / "iter-1" / "evaluation")]
    rates = record["win_rates_vs_base"]
    assert [rate is None for rate in rates] == [is_refused(prompt) for prompt in held_out]
    assert record["prompts_left_out"] == sum(map(is_refused, held_out)) > 0
    assert summary["iterations"][0]["prompts_left_out"] == record["prompts_left_out"]
    assert f"note: {record['prompts_left_out']} held-out prompts without a win rate" in shown
    known = [rate for rate in rates if rate is not None]
    assert summary["iterations"][0]["win_rate_vs_base"]["mean"] == pytest.approx(np.mean(known))


def test_few_comparisons_of_a_judge_are_kept_and_a_prompt_that_is_refused_later_is_left_out_whole(tmp_path):
    asked = Counter()

    def later(path, body):
        prompt = shown_prompt(body)
        asked[prompt] += 1
        if is_refused(prompt) and asked[prompt] > 6:  # of 7 responses, three pairs meet in the first round
            return Reply({"error": {"message": "content policy"}}, 400)
        return said("[[A]]" if len(body["messages"][-1]["content"]) % 3 else "[[C]]")

    with serve(later) as server:
        oracle = {
            "type": "judge",
            "verdict": "samples",
            "unread": "leave_out_prompt",
            "max_left_out_share": 1.0,
            "comparisons": {"type": "adaptive", "budget": 17},
            "endpoint": {"url": server.url, "model": "m", "cache": str(tmp_path / "answers.sqlite")},
        }
        changes = {"iterations": 1, "oracle": oracle, "sampling.k": 7, "prompts.train.limit": 6}
        terminal = Terminal(Console(file=StringIO()))
        for run in ("first", "second"):
            before = dict(asked)
            for stage in ("sample", "annotate"):
                run_stage(small_runs.small(**changes), RunFolder(tmp_path / run), terminal, stage)
    prompts = {
        row["prompt_id"]: row["messages"][0]["content"]
        for row in rows(tmp_path / "first" / "iter-1" / "responses")
    }
    assert 0 < sum(map(is_refused, prompts.values())) < len(prompts)
    for row in rows(tmp_path / "first" / "iter-1" / "preferences"):
        prompt, matrix = prompts[row["prompt_id"]], np.array(row["matrix"])
        if is_refused(prompt):
            assert np.isnan(matrix[~np.eye(7, dtype=bool)]).all()
            assert not any(row["settled"])
        else:
            assert sum(row["settled"]) >= 2
            assert asked[prompt] <= 2 * 17
            assert asked[prompt] == before[prompt]  # the second run found all answers in the cache
