"""Oracles read the answers of a policy that thinks, and its thoughts stay in what is trained on."""

import io

from rich.console import Console
from small_runs import play_aloud, small

from sppo.progress import Terminal
from sppo.rundir.folder import RunFolder
from sppo.rundir.tables import ResponsesRow, read_rows
from sppo.stages.single import run_stage


def sampled(path, thought):
    """The responses of one small sample stage, and what was said about it."""
    changes = {"iterations": 1, "prompts.train.limit": 8, "prompts.held_out.limit": 2}
    recipe = small(**changes, **({} if thought is None else {"policy.thought": thought}))
    said = io.StringIO()
    folder = RunFolder(path)
    run_stage(recipe, folder, Terminal(Console(file=said, width=500)), "sample", 1)
    shards = sorted((path / "iter-1" / "responses").glob("*.parquet"))
    rows = [
        response for shard in shards for row in read_rows(shard, ResponsesRow) for response in row.responses
    ]
    return rows, said.getvalue()


def test_thoughts_are_sampled_and_kept_but_not_read(tmp_path):
    plain, _ = sampled(tmp_path / "plain", None)
    # a policy of the tiny world greets before it answers, which stands for a thought here
    thinking, said = sampled(tmp_path / "thinking", ["Hello", "!"])
    assert [response.token_ids for response in thinking] == [response.token_ids for response in plain]
    greeted = [
        text for text in (response.text for response in plain) if text.startswith("Hello, my friend! ")
    ]
    assert greeted
    answers = [response.text for response in thinking]
    assert not any("Hello" in answer for answer in answers)
    assert {text.removeprefix("Hello, my friend! ").strip() for text in greeted} <= set(answers)
    assert "end within a thought" not in said


def test_a_thought_without_an_end_is_said(tmp_path):
    plain, _ = sampled(tmp_path / "plain", None)
    thinking, said = sampled(tmp_path / "thinking", ["It", "@"])
    unfinished = ["It" in response.text for response in plain]
    assert any(unfinished)
    assert [not response.text for response in thinking] == unfinished
    assert f"warning: {sum(unfinished)} of {len(plain)} responses end within a thought" in said


def test_unfinished_thoughts_are_counted_in_the_summary_and_repeated_at_the_end(tmp_path):
    changes = {"prompts.train.limit": 8, "prompts.held_out.limit": 2, "policy.thought": ["It", "@"]}
    summary, said = play_aloud(small(**changes), tmp_path / "run")
    for row in summary["iterations"]:
        assert 0 < row["sampled"]["unfinished_thoughts"] <= row["sampled"]["responses_drawn"]
        assert "unfinished_thoughts" in row
        remark = (
            f"{row['sampled']['unfinished_thoughts']} responses that it learns from ended within a thought"
        )
        assert f"note: {remark}" in said
        assert f"note: iteration {row['iteration']}: {remark}" in said
    assert "unfinished_thoughts" in summary["base"]
