"""MT-Bench: grades, FastChat's files, and the second turn after the model's own first answer."""

import json
from pathlib import Path

import pytest
import tiny_models
from chat_server import Reply, said, serve

from sppo.benchmarks.judge_prompts import JudgePromptError
from sppo.benchmarks.mt_bench import files
from sppo.benchmarks.mt_bench import judge as judging
from sppo.benchmarks.mt_bench.score import score as mt_bench_score
from sppo.benchmarks.outputs import OutputsError
from sppo.cli.main import app
from sppo.policy import chat_format


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Rating: [[7.5]]", 7.5),
        ("[[10]]", 10),
        ("Rating: [8]", 8),
        ("[3] is cited, but Rating: [[9]]", 9),  # double brackets go first
        ("[[2]] then [[6]]", 2),  # the first, as FastChat
        ("[rating: 7]", 7),
        ("[[Rating: 7]]", 7),
        ("[[7/10]]", 7),
        ("[[ 6 ]]", 6),
        ("Rating: 7", None),
        ("[[seven]]", None),
        ("[[85]]", None),  # no grade
        ("[[-1]]", None),
        ("", None),
    ],
)
def test_grades_of_all_shapes(judgment, score):
    assert judging.parse_score(judgment) == score


def row(question, turn, score, model="m", judge="j"):
    return {
        "question_id": question,
        "model": model,
        "judge": [judge, "single-v1"],
        "score": score,
        "turn": turn,
    }


def test_the_scores_by_hand():
    rows = [row(1, 1, 8), row(2, 1, 6), row(1, 2, 4), row(2, 2, -1)]
    found = mt_bench_score(rows, {1: "math", 2: "writing"})
    assert (found.first_turn, found.second_turn, found.average) == (7, 4, 6)
    assert found.by_category == {"math": 6, "writing": 6}
    assert (found.judged, found.unparsed) == (3, 1)
    assert found.standard_error == pytest.approx(2 / 3**0.5)
    with pytest.raises(OutputsError, match="no grade at all"):
        mt_bench_score([row(1, 1, -1)])


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def data(tmp_path):
    """The benchmark's folder with two questions of our own, one of them graded beside a reference."""
    folder = tmp_path / "data"
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Write another one."]},
        {"question_id": 111, "category": "math", "turns": ["What is 1 + 1?", "And twice that?"]},
    ]
    lines(folder / "question.jsonl", questions)
    reference = {
        "question_id": 111,
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["It is 2.", "It is 4."]}],
    }
    lines(folder / "reference_answer" / "gpt-4.jsonl", [reference])
    return folder


def evaluate(capsys, tmp_path, *arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "mt-bench", *map(str, arguments), "-o", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    return shown.out if code == 0 else " ".join(shown.err.split())


def test_from_a_policy_to_fastchats_files(capsys, tmp_path, data, tiny_model, monkeypatch):
    rendered = []
    render = chat_format.ChatFormat.render

    def watch(self, messages):
        rendered.append(messages)
        return render(self, messages)

    monkeypatch.setattr(chat_format.ChatFormat, "render", watch)

    def answer(path, body):
        text = body["messages"][-1]["content"]
        return said(
            "Grade: [[4]]" if "econd question" in text else "no grade" if "Write a line." in text else "[[8]]"
        )

    with serve(answer) as server:
        judge = json.dumps({"url": server.url, "model": "the/judge"})
        shown = evaluate(
            capsys, tmp_path, f"tiny={tiny_model('llama-3')}", "--data", data, "--judge", judge, "--sampling",
            "{max_new_tokens: 8}",
        )  # fmt: skip
        asked = [body["messages"][-1]["content"] for body in server.asked]
    (result,) = json.loads((tmp_path / "out" / "mt-bench.json").read_text())["results"]
    assert (result["first_turn"], result["second_turn"], result["unparsed"]) == (8, 4, 1)
    assert result["average"] == pytest.approx(16 / 3)
    assert result["by_category"] == {"math": 6, "writing": 4}
    assert "Snorkel-Mistral-PairRM-DPO" in shown
    # the reference stands in the prompts of mathematics alone
    assert sum("It is 2." in text for text in asked) == 2
    assert sum("It is 4." in text for text in asked) == 1
    # the second turn follows the model's own first answer
    (answers,) = (tmp_path / "out").glob("tiny/responses-*/model_answer/tiny.jsonl")
    first = {one["question_id"]: one["choices"][0]["turns"] for one in read(answers)}
    second = [messages for messages in rendered if len(messages) == 3]
    assert {messages[1]["content"] for messages in second} == {turns[0] for turns in first.values()}
    judgments = read(result["judgments"])
    assert result["judgments"].endswith("the-judge_single.jsonl")
    assert judgments[0].keys() == {
        "question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp",
    }  # fmt: skip
    assert [(one["question_id"], one["turn"], one["score"]) for one in judgments] == [
        (81, 1, -1), (111, 1, 8), (81, 2, 4), (111, 2, 4),
    ]  # fmt: skip
    assert judgments[3]["judge"] == ["the/judge", "single-math-v1-multi-turn"]
    assert "5.33" in evaluate(capsys, tmp_path, "--judgments", result["judgments"])


@pytest.mark.slow
def test_a_real_server_judges(capsys, tmp_path, data, real_server):
    """`transformers serve` with a random model, which never gives a grade: said, kept, and not asked again."""
    url, model = real_server
    rows = [{"question_id": n, "choices": [{"turns": ["a", "b"]}]} for n in (81, 111)]
    # a random model would go on for all of the 2,048 tokens that a judge may use
    judge = json.dumps({"url": url, "model": model, "extra_body": {"max_tokens": 8}})
    arguments = [lines(tmp_path / "mine.jsonl", rows), "--data", data, "--judge", judge]
    for _ in range(2):
        assert "the judge gave no grade at all" in evaluate(capsys, tmp_path, *arguments, code=1)
    (record,) = (tmp_path / "out").glob("mine/judgments-*/record.json")
    (path,) = record.parent.glob("model_judgment/*_single.jsonl")
    judgments = read(path)
    assert [one["score"] for one in judgments] == [-1] * 4
    assert all(isinstance(one["judgment"], str) for one in judgments)


@pytest.mark.parametrize(
    "refusal",
    [
        Reply({"error": {"message": "content policy"}}, 400),
        Reply({"error": {"message": "Your input was flagged"}}, 403),
        Reply({"choices": []}),
        said("[[9]] but", finish_reason="content_filter"),
        said("[[9]]", message={"content": "[[9]]", "refusal": "I cannot grade this."}),
    ],
)
def test_a_question_that_the_judge_refuses_has_no_grade_and_is_counted(capsys, tmp_path, data, refusal):
    mine = lines(
        tmp_path / "mine.jsonl", [{"question_id": n, "choices": [{"turns": ["a", "b"]}]} for n in (81, 111)]
    )

    def answer(path, body):
        return refusal if "What is 1 + 1?" in body["messages"][-1]["content"] else said("[[5]]")

    with serve(answer) as server:
        judge = json.dumps({"url": server.url, "model": "judge", "retries": 0})
        with pytest.raises(SystemExit):
            app(
                [
                    "evaluate",
                    "mt-bench",
                    *map(str, (mine, "--data", data, "--judge", judge, "-o", tmp_path / "out")),
                ]
            )
        assert "the judge refused 2 requests" in "".join(capsys.readouterr())
        (result,) = json.loads((tmp_path / "out" / "mt-bench.json").read_text())["results"]
        assert (result["average"], result["unparsed"]) == (5, 2)
        server.answer = lambda path, body: Reply(
            {"error": {"message": "unknown parameter: temperature"}}, 400
        )
        error = evaluate(
            capsys,
            tmp_path / "other",
            mine,
            "--data",
            data,
            "--judge",
            judge.replace('"judge"', '"other"'),
            code=1,
        )
        assert "refuses everything; it says: " in error
        assert "set extra_body: {temperature: null}" in error


def test_greedy_categories_do_not_depend_on_the_seed(capsys, tmp_path, data, tiny_model):
    found = {}
    with serve(lambda path, body: said("[[5]]")) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        for seed in (0, 1):
            evaluate(
                capsys, tmp_path, f"s{seed}={tiny_model('llama-3')}", "--data", data, "--judge", judge, "--seed", seed,
                "--sampling", "{max_new_tokens: 12}",
            )  # fmt: skip
            (path,) = (tmp_path / "out").glob(f"s{seed}/responses-*/model_answer/s{seed}.jsonl")
            found[seed] = {one["question_id"]: one["choices"] for one in read(path)}
    assert found[0][111] == found[1][111]
    assert found[0][81] != found[1][81]


def test_a_conversation_that_outgrows_the_model_is_counted(capsys, tmp_path, data, tiny_model):
    """The second turn's prompt does not fit beside an answer: it is empty, and judged as such."""
    long = "word " * 150
    lines(data / "question.jsonl", [{"question_id": 1, "category": "stem", "turns": ["Hello?", long]}])
    with serve(lambda path, body: said("[[1]]")) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        evaluate(
            capsys, tmp_path, f"tiny={tiny_model('llama-3')}", "--data", data, "--judge", judge, "--sampling",
            "{max_new_tokens: 300}",
        )  # fmt: skip
    (result,) = json.loads((tmp_path / "out" / "mt-bench.json").read_text())["results"]
    assert result["responses"]["no_room"] == 1
    assert result["responses"]["empty_share"] >= 0.5


@pytest.mark.parametrize(
    ("family", "text", "options", "judged"),
    [
        ("mistral", "Try <s>!", [], "Try <s>!"),
        pytest.param("gemma-2", "Try <eos>!", [], "Try <eos>!", marks=pytest.mark.slow),
        pytest.param("phi-3", "Try </s>!", [], "Try </s>!", marks=pytest.mark.slow),
        ("mistral", "Why: </s>", ["--set", "policy.thought=[W, ':']"], "</s>"),
    ],
)
def test_a_policy_that_spells_a_special_token_is_judged_on_both_turns(
    capsys, tmp_path, data, family, text, options, judged
):
    policy = tiny_models.make_writer(family, text, tmp_path / "policy")
    with serve(lambda path, body: said("[[7]]")) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        evaluate(
            capsys, tmp_path, f"tiny={policy}", "--data", data, "--judge", judge, "--sampling", "{max_new_tokens: 16}",
            *options,
        )  # fmt: skip
        asked = [body["messages"][-1]["content"] for body in server.asked]
    (answers,) = (tmp_path / "out").glob("tiny/responses-*/model_answer/tiny.jsonl")
    assert [one["choices"][0]["turns"] for one in read(answers)] == [[judged, judged]] * 2
    assert len(asked) == 4
    assert all(judged in prompt for prompt in asked)
    assert "Why" not in "".join(asked)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no judgments"),
        ([row(1, 1, 5), row(1, 1, 5)], "judged twice"),
        ([row(1, 3, 5)], "no turn of 1 or 2"),
        ([row(1, 1, "5")], "no turn of 1 or 2"),
        ([row(1, 1, 11)], "score = 11; it is 0 to 10"),
        ([row(1, 1, float("nan"))], "score = nan"),
        ([row([1], 1, 5)], "no `question_id`"),
        ([row(1, 1, 5), row(2, 1, 5, judge="k")], "j, k are mixed"),
    ],
)
def test_judgments_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(OutputsError, match=message):
        files.read_judgments(lines(tmp_path / "j.jsonl", rows))


def test_several_models_in_a_file_have_a_row_each(capsys, tmp_path):
    path = lines(tmp_path / "gpt-4_single.jsonl", [row(1, 1, 5, "a"), row(1, 1, 7, "b"), row(1, 2, 6, "b")])
    shown = evaluate(capsys, tmp_path, "--judgments", path)
    assert "5.00" in shown and "6.50" in shown
    lines(path, [{**row(1, 1, 5), "judge": "gpt-4"}])
    assert "by gpt-4" in evaluate(capsys, tmp_path, "--judgments", path)
    lines(path, [row(1, 1, -1)])
    assert "gpt-4_single.jsonl: m: the judge gave no grade" in evaluate(
        capsys, tmp_path, "--judgments", path, code=1
    )


def test_a_reference_that_is_missing_is_an_error(capsys, tmp_path, data):
    lines(data / "reference_answer" / "gpt-4.jsonl", [{"question_id": 5, "choices": [{"turns": ["x"]}]}])
    mine = lines(tmp_path / "mine.jsonl", [{"question_id": 81, "choices": [{"turns": ["a", "b"]}]}])
    judge = "{url: 'http://127.0.0.1:9/v1', model: judge}"
    error = evaluate(capsys, tmp_path, mine, "--data", data, "--judge", judge, code=1)
    assert "question 111 (math) is graded beside a reference answer" in error


def test_answers_of_one_turn_are_refused(capsys, tmp_path, data):
    rows = [{"question_id": n, "choices": [{"turns": ["a"]}]} for n in (81, 111)]
    judge = "{url: 'http://127.0.0.1:9/v1', model: judge}"
    error = evaluate(
        capsys, tmp_path, lines(tmp_path / "mine.jsonl", rows), "--data", data, "--judge", judge, code=1
    )
    assert "question 81 has 2 turns and 1 responses" in error


def test_fastchats_own_prompts_are_read(tmp_path):
    rows = [
        {"name": name, "system_prompt": "S", "prompt_template": f"{name} {{question}}"}
        for name in judging.PROMPTS
    ]
    found = judging.read_prompts(lines(tmp_path / "p.jsonl", rows))
    assert found["single-math-v1"].messages == (("system", "S"), ("user", "single-math-v1 {question}"))
    with pytest.raises(JudgePromptError, match="single-math-v1-multi-turn"):
        judging.read_prompts(lines(tmp_path / "p.jsonl", rows[:3]))
