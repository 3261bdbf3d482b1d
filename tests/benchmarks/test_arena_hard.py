"""Arena-Hard v0.1: verdicts, the Bradley-Terry score, and the benchmark's files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from chat_server import said, serve
from sklearn.linear_model import LogisticRegression

from sppo.benchmarks.arena_hard import files
from sppo.benchmarks.arena_hard import judge as judging
from sppo.benchmarks.arena_hard.score import VERDICTS, score
from sppo.benchmarks.judge_prompts import JudgePromptError
from sppo.benchmarks.outputs import OutputsError
from sppo.cli.main import app


@pytest.mark.parametrize(
    ("judgment", "verdict"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[B>A]].", "B>A"),
        ("tie: [[A=B]]\n", "A=B"),
        ("[[A>B]] ... so I stay with [[A>B]]", "A>B"),  # twice the same
        ("first [[A>B]], then [[B>A]]", None),  # two different ones
        ("no verdict at all", None),
        ("", None),
        ("[[A>>>B]]", None),
        ("[[A<B]]", None),
        ("[[C>A]]", None),
        ("[[]]", None),
        ("[[a>>b]]", "A>>B"),  # the later rule: any case
        ("final: [B>>A]", "B>>A"),  # and single brackets
        ("[a=b]", "A=B"),
        ("(A>B)", None),
        ("{{A>B}}", None),
        ("**[[A=B]]**", "A=B"),
        ("[A>B] at first, but [[B>A]]", "B>A"),  # the benchmark's own form goes first
    ],
)
def test_verdicts_of_all_shapes(judgment, verdict):
    assert judging.parse_verdict(judgment) == verdict


def test_the_score_by_hand():
    """Strong wins and losses count three times; the second game is read from the other side."""
    verdicts = [
        ["B>>A", "A>>B"],  # the model wins 3 + 3
        ["A>B", "B>>A"],  # and loses 1 + 3
        ["A=B", None],  # a tie, and nothing
    ]
    found = score(verdicts)
    assert (found.wins, found.ties, found.losses, found.unparsed) == (6, 1, 4, 1)
    assert found.win_rate == pytest.approx(100 * 6.5 / 11)
    assert found.low <= found.win_rate <= found.high


def test_it_is_the_benchmarks_logistic_regression():
    """Elo by a logistic regression without penalty on games, each of them twice, ties won once by each side."""
    generator = np.random.default_rng(0)
    verdicts = [list(generator.choice(list(VERDICTS), size=2)) for _ in range(200)]
    found = score(verdicts)
    rows, wins = [], []
    for games in verdicts:
        for position, verdict in enumerate(games):
            value = VERDICTS[verdict] * (1 if position == 0 else -1)  # games that the baseline wins
            for _ in range(max(abs(value), 1)):
                rows += [[math.log(10), -math.log(10)]] * 2
                wins += [1, 0] if value == 0 else [int(value > 0)] * 2
    model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8).fit(rows, wins)
    baseline, ours = 400 * model.coef_[0]
    assert found.win_rate == pytest.approx(100 / (1 + 10 ** ((baseline - ours) / 400)), abs=0.01)


def test_the_interval_is_that_of_a_mean():
    found = score([["B>A", "B>A"]] * 100, rounds=4000)
    assert found.win_rate == 50
    # the standard deviation of a share of 200 even games
    width = 2 * 1.96 * 100 * math.sqrt(0.25 / 200)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert score([["B>A", "A>B"]]).low == 100


def test_no_verdict_at_all_is_an_error():
    with pytest.raises(OutputsError, match="no verdict at all"):
        score([[None, None]])


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def data(tmp_path):
    """The benchmark's folder with three questions of our own."""
    folder = tmp_path / "data"
    (folder / "model_answer").mkdir(parents=True)
    questions, answers = [], []
    for n in range(3):
        identity = f"id{n}"
        questions.append(
            {"question_id": identity, "category": "arena-hard-v0.1", "turns": [{"content": f"Q{n}?"}]}
        )
        turns = [{"content": f"baseline {n}", "token_len": 2}]
        answers.append(
            {"question_id": identity, "model_id": "gpt-4-0314", "choices": [{"index": 0, "turns": turns}]}
        )
    for path, rows in (("question.jsonl", questions), ("model_answer/gpt-4-0314.jsonl", answers)):
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(capsys, tmp_path, *arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "arena-hard", *map(str, arguments), "-o", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    return shown.out if code == 0 else " ".join(shown.err.split())


def test_from_a_policy_to_the_benchmarks_files(capsys, tmp_path, data, tiny_model):
    """A judge that likes the baseline, wherever it stands; on one question it has to be asked again."""

    def answer(path, body):
        text = body["messages"][1]["content"]
        if "Q1?" in text and len(body["messages"]) == 2:
            return said("I cannot say")
        first = text.index("baseline") < text.index("# Assistant B")
        return said("[[A>B]]" if first else "[[B>>A]]")

    with serve(answer) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        arguments = [f"tiny={tiny_model('llama-3')}", "--data", data, "--judge", judge]
        shown = evaluate(capsys, tmp_path, *arguments, "--sampling", "{max_new_tokens: 8}")
        assert len(server.asked) == 8
        evaluate(capsys, tmp_path, *arguments, "--sampling", "{max_new_tokens: 8}")
        assert len(server.asked) == 8
    (row,) = json.loads((tmp_path / "out" / "arena-hard.json").read_text())["results"]
    assert (row["wins"], row["losses"], row["win_rate"]) == (0, 12, 0)
    assert "Mistral-7B SPPO iteration 3" in shown
    judgments = read(row["judgments"])
    assert [game["score"] for game in judgments[1]["games"]] == ["A>B", "B>>A"]
    assert judgments[1]["games"][0]["judgment"] == "\nI cannot say\n[[A>B]]"
    assert judgments[1].keys() == {"question_id", "model", "judge", "games"}
    # both files are read back as the benchmark's own
    assert "0.0 to 0.0" in evaluate(capsys, tmp_path, "--judgments", row["judgments"])
    (answers,) = (tmp_path / "out").glob("tiny/responses-*/model_answer/tiny.jsonl")
    written = json.loads(answers.read_text().splitlines()[0])
    assert written["choices"][0]["turns"][0]["token_len"] <= 8
    with serve(answer) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        evaluate(capsys, tmp_path, f"again={answers}", "--data", data, "--judge", judge)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no judgments"),
        ([{"question_id": 1, "games": [{}]}], "row 0: not two games"),
        ([{"question_id": 1, "games": [{}, {}]}] * 2, "twice"),
        ([{"question_id": [1], "games": [{}, {}]}], "row 0: no `question_id`"),
        (
            [{"question_id": n, "judge": f"j{n}", "games": [{"score": "A>B"}] * 2} for n in range(2)],
            "'judge'.*mixed",
        ),
        (
            [{"question_id": n, "model": f"m{n}", "games": [{"score": "A>B"}] * 2} for n in range(2)],
            "'model'.*mixed",
        ),
    ],
)
def test_judgments_that_cannot_be_used(tmp_path, lines, message):
    path = tmp_path / "j.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(OutputsError, match=message):
        files.read_judgments(path)


def test_recorded_verdicts_count_before_texts(tmp_path):
    path = tmp_path / "j.jsonl"
    games = [{"score": None, "judgment": "[[A>B]] [[B>A]]"}, {"judgment": "so: [[A>>B]]"}]
    path.write_text(json.dumps({"question_id": "x", "model": "m", "judge": "j", "games": games}))
    assert [part.verdicts for part in files.read_judgments(path)] == [{"x": [None, "A>>B"]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 of 3 questions have no response, the first: id0"),
        (
            lambda rows: [*rows, {**rows[0], "question_id": "new"}],
            "1 responses are to questions .* the first: new",
        ),
        (lambda rows: [*rows, rows[0]], "question id0 is there twice"),
        (lambda rows: [{**rows[0], "model_id": "other"}, *rows[1:]], "responses of several models"),
        (lambda rows: [{**rows[0], "choices": []}, *rows[1:]], "no `turns`, `choices` or `messages`"),
    ],
)
def test_answers_that_do_not_fit(capsys, tmp_path, data, change, message):
    rows = [
        json.loads(line) for line in (data / "model_answer" / "gpt-4-0314.jsonl").read_text().splitlines()
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    judge = "{url: 'http://127.0.0.1:9/v1', model: judge}"
    error = evaluate(capsys, tmp_path, tmp_path / "mine.jsonl", "--data", data, "--judge", judge, code=1)
    import re

    assert re.search(message, error)


def test_another_order_is_the_same_and_an_empty_answer_is_judged(capsys, tmp_path, data):
    rows = [
        json.loads(line) for line in (data / "model_answer" / "gpt-4-0314.jsonl").read_text().splitlines()
    ]
    rows[0]["choices"][0]["turns"][0]["content"] = ""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    with serve(lambda path, body: said("[[A=B]]")) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        evaluate(capsys, tmp_path, tmp_path / "mine.jsonl", "--data", data, "--judge", judge)
        # where an answer is the baseline's own, both games are one question
        assert len(server.asked) == 2 + 1 + 1
    (row,) = json.loads((tmp_path / "out" / "arena-hard.json").read_text())["results"]
    assert row["win_rate"] == 50
    assert row["responses"] == {"empty_share": pytest.approx(1 / 3)}


def test_the_benchmarks_own_prompt_is_read(tmp_path):
    path = tmp_path / "judge_config.yaml"
    path.write_text('system_prompt: "Judge."\nprompt_template: ["{question_1} {answer_1} {answer_2}"]\n')
    assert judging.read_prompt(path).messages == (
        ("system", "Judge."),
        ("user", "{question_1} {answer_1} {answer_2}"),
    )
    path.write_text('system_prompt: "Judge."\nprompt_template: ["{question_1}"]\n')
    with pytest.raises(JudgePromptError, match="answer_1"):
        judging.read_prompt(path)
    path.write_text("x: 1\n")
    with pytest.raises(JudgePromptError, match="judge_config"):
        judging.read_prompt(path)
