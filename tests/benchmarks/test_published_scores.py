"""The published scores come out of the benchmarks' own files by the commands that a user would type."""

import csv
import json
import re

import pytest
from chat_server import said, serve

from sppo.benchmarks.arena_hard import judge as judging
from sppo.benchmarks.arena_hard.files import read_judgments
from sppo.benchmarks.arena_hard.score import score as arena_hard_score
from sppo.benchmarks.mt_bench.files import read_judgments as read_mt_bench
from sppo.benchmarks.mt_bench.score import score as mt_bench_score
from sppo.benchmarks.question_files import read_questions, read_responses
from sppo.cli.main import app


@pytest.fixture
def data(shared):
    """The folder of published data; a benchmark that is missing there skips its tests."""

    def folder(name):
        path = shared / "data" / name
        if not path.is_dir():
            pytest.skip(f"there is no {name} in shared/data")
        return path

    return folder


def sppo(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app([*map(str, arguments)])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    return shown.out


def table(shown):
    """The cells of each row of a printed table, by the row's name."""
    lines = [re.split(r"\s{2,}", line) for line in shown.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 2}


def test_mt_bench_of_34_models(capsys, data):
    """Four rows of the published table counted a missing grade (-1) as a score; here it is in no figure."""
    folder = data("mt_bench")
    judgments = folder / "official_scores" / "gpt-4_single.jsonl"
    rows = table(sppo(capsys, "evaluate", "mt-bench", "--judgments", judgments))
    with (folder / "published" / "official_vs_leaderboard_20230717.csv").open(newline="") as file:
        published = list(csv.DictReader(file))
    assert len(published) == 34
    counted_as_scores = 0
    for row in published:
        first, second, average = map(float, rows[row["model"]][:3])
        assert (first, second) == pytest.approx(
            (float(row["first_turn"]), float(row["second_turn"])), abs=0.0051
        )
        assert average == pytest.approx(float(row["average"]), abs=0.0051)
        if row["leaderboard_20230717"]:
            leaderboard = float(row["leaderboard_20230717"])
            is_ours = leaderboard == pytest.approx(float(row["average"]), abs=0.0051)
            assert is_ours or leaderboard == pytest.approx(float(row["average_if_-1_counts"]), abs=0.0051)
            counted_as_scores += not is_ours
    assert counted_as_scores == 4


def test_mt_benchs_error_over_questions_is_the_wider_one(data):
    """Both turns of a question are graded together: over all 34 models the error over questions is 1.2 times as wide."""
    judgments = read_mt_bench(data("mt_bench") / "official_scores" / "gpt-4_single.jsonl")
    scores = [mt_bench_score(rows) for rows in judgments.values()]
    ratios = [score.question_standard_error / score.standard_error for score in scores]
    assert 1.2 < sum(ratios) / len(ratios) < 1.28


@pytest.mark.parametrize(
    ("model", "score", "low", "high"),
    [("gpt-4-0613", 37.9, 35.6, 40.36), ("gpt-3.5-turbo-0125", 23.34, 21.67, 25.27)],
)
def test_arena_hard_of_two_models(capsys, data, model, score, low, high):
    path = data("arena_hard") / "model_judgment" / "gpt-4-1106-preview" / f"{model}.jsonl"
    cells = table(sppo(capsys, "evaluate", "arena-hard", "--judgments", path))[model]
    assert float(cells[0]) == pytest.approx(score, abs=0.051)
    # both intervals are bootstraps of 100 rounds, with random numbers of their own
    assert [float(end) for end in cells[1].split(" to ")] == pytest.approx([low, high], abs=0.8)


def test_arena_hards_interval_over_questions_is_the_wider_one(data):
    path = data("arena_hard") / "model_judgment" / "gpt-4-1106-preview" / "gpt-4-0613.jsonl"
    (judgments,) = read_judgments(path)
    scored = arena_hard_score(list(judgments.verdicts.values()), rounds=2000)
    ratio = (scored.question_high - scored.question_low) / (scored.high - scored.low)
    assert 1.45 < ratio < 1.75
    # the standard error of a ratio of sums over questions, by the delta method, is 2.025
    half = 1.96 * 2.025
    assert scored.question_low == pytest.approx(scored.win_rate - half, abs=0.2)
    assert scored.question_high == pytest.approx(scored.win_rate + half, abs=0.2)


def test_arena_hards_files_of_both_layouts_say_the_same(data):
    """500 questions in each layout, and the baseline's responses to those that the newer sample has."""
    folder = data("arena_hard")
    old, new = (read_questions(folder / name / "question.jsonl") for name in ("", "head_format_2025"))
    assert [(q.id, q.turns) for q in old] == [(q.id, q.turns) for q in new]
    assert {q.id_key for q in old} == {"question_id"} and {q.id_key for q in new} == {"uid"}
    before = read_responses(folder / "model_answer" / "gpt-4-0314.jsonl")
    after = read_responses(folder / "head_format_2025" / "model_answer" / "gpt-4-0314.first50.jsonl")
    assert after.model == before.model == "gpt-4-0314"
    assert len(after.turns) == 50
    assert all(before.turns[identity] == turns for identity, turns in after.turns.items())


def test_arena_hard_in_the_layout_of_today(capsys, data, tmp_path):
    """From the repository's files to judgments in the same layout, which are read back."""
    source = data("arena_hard") / "head_format_2025"
    answers = (source / "model_answer" / "gpt-4-0314.first50.jsonl").read_text().splitlines()[:3]
    answered = [json.loads(line)["uid"] for line in answers]
    questions = [
        line
        for line in (source / "question.jsonl").read_text().splitlines()
        if json.loads(line)["uid"] in answered
    ]
    (tmp_path / "model_answer").mkdir()
    (tmp_path / "question.jsonl").write_text("\n".join(questions) + "\n")
    (tmp_path / "model_answer" / "gpt-4-0314.jsonl").write_text("\n".join(answers) + "\n")
    mine = [
        {**json.loads(line), "model": "mine", "messages": [{"role": "assistant", "content": {"answer": "?"}}]}
        for line in answers
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in mine) + "\n")

    def answer(path, body):
        # the last verdict counts in this layout
        text = body["messages"][1]["content"]
        mine_first = (
            text.index("<|The Start of Assistant A's Answer|>\n?") if "A's Answer|>\n?" in text else -1
        )
        return said("At first [[A=B]], at last " + ("[[B>>A]]" if mine_first >= 0 else "[[A>>B]]"))

    with serve(answer) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        sppo(
            capsys, "evaluate", "arena-hard", tmp_path / "mine.jsonl", "--data", tmp_path, "--judge", judge,
            "--judge-prompt", source / "arena-hard-v0.1.json", "-o", tmp_path / "out",
        )  # fmt: skip
        asked = server.asked[0]["messages"]
    assert asked[0]["content"] == judging.PROMPT.messages[0][1]
    assert "{QUESTION}" not in asked[1]["content"]
    assert json.loads(questions[0])["prompt"] in "".join(
        body["messages"][1]["content"] for body in server.asked
    )
    (row,) = json.loads((tmp_path / "out" / "arena-hard.json").read_text())["results"]
    assert (row["wins"], row["losses"]) == (0, 18)
    assert row["judge"]["prompt"]["name"] == "arena-hard-v0.1.json with the system prompt of sppo/arena-hard"
    with open(row["judgments"]) as file:
        written = [json.loads(line) for line in file]
    assert set(written[0]) == {"uid", "category", "judge", "model", "baseline", "games"}
    assert "0.0" in sppo(capsys, "evaluate", "arena-hard", "--judgments", row["judgments"])


def test_ifevals_prompts_are_evaluated_by_the_command(capsys, data, tmp_path):
    """A response that keeps to few instructions; the figure is that of the checks one by one."""
    prompts = data("prompts") / "ifeval_input_data.jsonl"
    if not prompts.is_file():
        pytest.skip("there is no ifeval_input_data.jsonl in shared/data/prompts")
    rows = [
        {"prompt": json.loads(line)["prompt"], "response": "none"}
        for line in prompts.read_text().splitlines()
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sppo(capsys, "evaluate", "ifeval", tmp_path / "mine.jsonl", "--data", prompts, "-o", tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "ifeval.json").read_text())["results"]
    assert row["prompts"] == 540
    assert row["by_instruction"]["punctuation:no_comma"] == 100
    assert row["by_instruction"]["detectable_format:title"] == 0
    assert row["prompt_strict"] <= row["instruction_strict"] < 50
