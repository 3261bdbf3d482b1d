"""`sppo evaluate alpaca-eval`: from a policy's folder to the leaderboard's files."""

import csv
import json
import math
import re

import numpy as np
import pytest
from chat_server import Reply, said, serve
from judge_model import JudgeModel, chose

from sppo.benchmarks import published
from sppo.benchmarks.alpaca_eval import judge as alpaca_eval_judge
from sppo.benchmarks.alpaca_eval.files import read_annotations
from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError
from sppo.cli.main import app
from sppo.endpoint.exchange import Answer

QUESTIONS = [f"Question {n}?" for n in range(12)]


@pytest.fixture
def files(tmp_path):
    """A baseline's outputs, a model's, and the tables of length control."""
    generator = np.random.default_rng(0)
    for name in ("baseline", "mine"):
        rows = [
            {
                "instruction": q,
                "output": f"{name} " * int(generator.integers(1, 9)),
                "generator": name,
                "dataset": "d",
            }
            for q in QUESTIONS
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    lines = ["model,index,preference,std_delta_len,instruction_difficulty"]
    difficulty = generator.normal(size=len(QUESTIONS))
    for model in ("concise", "verbose"):
        for index in range(len(QUESTIONS)):
            lines.append(
                f"{model},{index},{generator.uniform():.6f},{generator.normal():.6f},{difficulty[index]:.6f}"
            )
    (tmp_path / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def evaluate(capsys, files, *arguments, code=0):
    common = [
        "--baseline",
        str(files / "baseline.json"),
        "--length-control",
        str(files),
        "-o",
        str(files / "out"),
    ]
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "alpaca-eval", *map(str, arguments), *common])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    return shown.out if code == 0 else " ".join(shown.err.split())


def judge(server, **more):
    return json.dumps({"url": server.url, "model": "judge", "retries": 1, **more})


def results(files):
    return json.loads((files / "out" / "alpaca-eval.json").read_text())["results"]


def answer_of(reply):
    return Answer.model_validate(reply.body)


def test_the_preference_is_the_names_share_of_the_probability():
    answer = answer_of(chose(m=math.log(0.3), M=math.log(0.1), Both=math.log(0.6)))
    assert alpaca_eval_judge.preference(answer, switched=False) == pytest.approx(2 - 0.75)
    assert alpaca_eval_judge.preference(answer, switched=True) == pytest.approx(1 + 0.75)
    assert alpaca_eval_judge.preference(answer_of(chose(M=-0.1)), switched=False) == 2
    assert alpaca_eval_judge.preference(answer_of(chose(Both=-0.1)), switched=False) is None
    with pytest.raises(ValueError, match="no log-probabilities"):
        alpaca_eval_judge.preference(answer_of(said("m")), switched=False)


def test_positions_are_even_odds_and_fixed():
    switched = [alpaca_eval_judge.is_switched(f"{n}", 0) for n in range(1000)]
    assert 430 < sum(switched) < 570
    assert switched == [alpaca_eval_judge.is_switched(f"{n}", 0) for n in range(1000)]
    assert switched != [alpaca_eval_judge.is_switched(f"{n}", 1) for n in range(1000)]


def test_places_are_filled_once():
    prompt = JudgePrompt("p", (("user", "{instruction} | {output_1} | {other}"),))
    filled = prompt.fill({"instruction": "{output_1}", "output_1": "{instruction}"})
    assert filled == [{"role": "user", "content": "{output_1} | {instruction} | {other}"}]
    with pytest.raises(JudgePromptError, match="output_2"):
        prompt.require(alpaca_eval_judge.PLACES)


def test_the_benchmarks_own_prompt_file_is_read(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(
        "<|im_start|>system\nBe fair.\n<|im_end|>\n<|im_start|>user\n{instruction}\n\nm or M?\n<|im_end|>"
    )
    found = alpaca_eval_judge.read_prompt(path)
    assert found.messages == (("system", "Be fair."), ("user", "{instruction}\n\nm or M?"))
    path.write_text("no turns")
    with pytest.raises(JudgePromptError, match="no turns"):
        alpaca_eval_judge.read_prompt(path)


def test_a_model_behind_a_server_judges(capsys, files, tiny_model):
    """End to end over HTTP; each preference is what the judge's own logits say, whatever the position."""
    model = JudgeModel(tiny_model("llama-3"))
    with serve(model) as server:
        shown = evaluate(capsys, files, files / "mine.json", "--judge", judge(server, concurrency=1))
        asked = len(server.asked)
        evaluate(capsys, files, files / "mine.json", "--judge", judge(server))
        assert len(server.asked) == asked == len(QUESTIONS)
    (row,) = results(files)
    found = read_annotations(files / row["annotations"])
    texts = {
        name: {one["instruction"]: one["output"] for one in json.loads((files / f"{name}.json").read_text())}
        for name in ("baseline", "mine")
    }
    for question, preference in zip(QUESTIONS, found.preferences):
        swap = alpaca_eval_judge.is_switched(question, 0)
        first, second = ("mine", "baseline") if swap else ("baseline", "mine")
        values = {
            "instruction": question,
            "output_1": texts[first][question],
            "output_2": texts[second][question],
        }
        logprobs = model.logprobs(alpaca_eval_judge.PROMPT.fill(values))
        p = 1 / (1 + math.exp(logprobs["M"] - logprobs["m"]))
        assert preference == pytest.approx(1 + p if swap else 2 - p, abs=1e-9)
    assert row["judge"]["model"] == "judge"
    assert row["judge"]["prompt"]["name"] == "sppo/alpaca-eval"
    assert (row["judge"]["prompt_tokens"], row["judge"]["completion_tokens"]) == (84, 36)
    assert row["n_total"] == 12
    assert "Mistral-7B SPPO iteration 3" in shown
    assert "28.53" in shown
    assert "judge: 12 requests, 84 prompt" in shown


def test_a_policy_answers_and_an_oracle_judges_and_chooses(capsys, files, tiny_model):
    arguments = [
        f"tiny={tiny_model('llama-3')}", "--oracle", "panel", "--best-of", "3", "--best-of-oracle", "panel",
        "--sampling", "{max_new_tokens: 8, temperature: 0.7}",
    ]  # fmt: skip
    evaluate(capsys, files, *arguments)
    (row,) = results(files)
    assert row["name"] == "tiny, best of 3"
    assert row["decoding"]["sampling"]["temperature"] == 0.7
    assert row["best_of"]["n"] == 3
    assert row["responses"]["response_tokens"] <= 8
    (outputs,) = (files / "out").glob("tiny/choices-*/outputs.json")
    written = json.loads(outputs.read_text())
    assert [one["instruction"] for one in written] == QUESTIONS
    assert set(written[0]) == {"instruction", "output", "generator", "dataset"}
    # the file that was written is an input like any other
    evaluate(capsys, files, f"again={outputs}", "--oracle", "panel")
    assert results(files)[0]["win_rate"] == pytest.approx(row["win_rate"])


def test_files_of_judgments_are_scored_alone(capsys, files):
    rows = [
        {
            "instruction": q,
            "output_1": "b" * 20,
            "output_2": "m" * n,
            "generator_2": "theirs",
            "preference": 1 + n / 20,
            "annotator": "x",
        }
        for n, q in enumerate(QUESTIONS)
    ]
    (files / "a.json").write_text(json.dumps(rows[::-1]))
    shown = evaluate(capsys, files, "--annotations", files / "a.json")
    assert re.search(r"theirs +\d", shown)
    assert "27.50" in shown  # 100 x the mean of 0, 1/20, ..., 11/20


def test_positions_in_the_published_file_stand_for_an_order(capsys, files):
    """Shuffled or with gaps, judgments that say where they stand keep their difficulties."""
    rows = [
        {"row": n, "output_len": 10 + 5 * (n % 3), "baseline_len": 12, "preference": 1 + n / 12}
        for n in range(len(QUESTIONS))
    ]
    for name, kept in (("whole", rows), ("shuffled", rows[::-1]), ("gap", rows[:4] + rows[5:])):
        (files / f"{name}.json").write_text(json.dumps(kept))
    shown = {
        name: re.search(
            rf"^{name}  +(\S+) .*", evaluate(capsys, files, "--annotations", files / f"{name}.json"), re.M
        )
        for name in ("whole", "shuffled", "gap")
    }
    assert float(shown["shuffled"][1]) == pytest.approx(float(shown["whole"][1]), abs=1.0)  # folds move
    assert "11 (1 missing)" in shown["gap"][0]
    (files / "whole.json").write_text(json.dumps([{**row, "preference": None} for row in rows]))
    error = evaluate(capsys, files, "--annotations", files / "whole.json", code=1)
    assert "whole.json: the judge gave no preference at all" in error


def test_429_timeouts_and_nonsense_are_survived_and_nothing_is_asked_twice(capsys, files):
    misbehaved = []

    def answer(path, body):
        if len(misbehaved) < 3:
            kind = ("busy", "slow", "nonsense")[len(misbehaved)]
            misbehaved.append(kind)
            return {
                "busy": Reply({"error": {"message": "too many"}}, 429, retry_after="0"),
                "slow": Reply({"choices": []}, seconds=1.0),
                "nonsense": Reply(b"<html>no</html>"),
            }[kind]
        return chose(m=math.log(0.25), M=math.log(0.75))

    with serve(answer) as server:
        settings = judge(server, retries=3, timeout_seconds=0.5)
        evaluate(capsys, files, files / "mine.json", "--judge", settings)
        assert sorted(misbehaved) == ["busy", "nonsense", "slow"]
        assert len(server.asked) == len(QUESTIONS) + 3
    (row,) = results(files)
    y = [0.25 if alpaca_eval_judge.is_switched(q, 0) else 0.75 for q in QUESTIONS]
    assert row["win_rate"] == pytest.approx(100 * np.mean(y))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda: Reply({"error": {"message": "busy"}}, 429, retry_after="0"), "takes no more for now"),
        (lambda: Reply({}, seconds=1.5), "has not answered within"),
        (lambda: Reply(b"hello"), "answers nonsense"),
        (lambda: said("m"), "no log-probabilities"),
        (lambda: chose(Both=-0.1), "no preference at all"),
        (lambda: Reply({"error": {"message": "no such key"}}, 401), "refuses access"),
    ],
)
def test_a_judge_that_never_answers_is_an_error(capsys, files, reply, message):
    with serve(lambda path, body: reply()) as server:
        settings = judge(server, retries=0, timeout_seconds=0.3, concurrency=12)
        error = evaluate(capsys, files, files / "mine.json", "--judge", settings, code=1)
    assert message in error


def test_a_judge_that_said_nothing_can_be_asked_anew(capsys, files):
    """Its answers are kept like any others; a revision stands for another judge behind the same name."""
    replies = [chose(Both=-0.1)]
    with serve(lambda path, body: replies[0]) as server:
        for _ in range(2):
            error = evaluate(capsys, files, files / "mine.json", "--judge", judge(server), code=1)
            assert re.search(
                r"no preference at all; what was said is in \S+annotations.json, .*revision", error
            )
        assert len(server.asked) == len(QUESTIONS)
        replies[0] = chose(m=-1.0, M=-1.0)
        evaluate(capsys, files, files / "mine.json", "--judge", judge(server, revision="mended"))
    assert results(files)[0]["win_rate"] == 50


@pytest.mark.parametrize(
    "usage", [None, "many", [1], {"prompt_tokens": "7"}, {"prompt_tokens": -1, "completion_tokens": 10**30}]
)
def test_strange_counts_and_halves_of_characters_are_survived(capsys, files, usage):
    def answer(path, body):
        reply = chose(m=-1.0, M=-1e4)
        reply.body |= {"usage": usage, "model": "judge \ud83d"}
        reply.body["choices"][0]["message"]["content"] = "m\ud83d"
        return reply

    with serve(answer) as server:
        shown = evaluate(capsys, files, files / "mine.json", "--judge", judge(server))
    (row,) = results(files)
    assert (row["n_total"], row["judge"]["prompt_tokens"]) == (12, 0)
    assert row["judge"]["versions"] == ["judge ?"]
    assert "judge: 12 requests, 0 prompt" in shown


def test_what_a_judge_leaves_open_is_counted(capsys, files):
    def answer(path, body):
        return chose(Both=-0.1) if "Question 3?" in body["messages"][-1]["content"] else chose(m=-1.0, M=-1.0)

    with serve(answer) as server:
        shown = evaluate(capsys, files, files / "mine.json", "--judge", judge(server))
    (row,) = results(files)
    assert (row["n_total"], row["unjudged"], row["win_rate"]) == (11, 1, 50)
    assert "11 (1 not)" in shown


def test_empty_outputs_are_judged_and_counted_in_any_order(capsys, files):
    rows = [
        {"instruction": q, "output": "" if n % 4 else "mine", "generator": "m"}
        for n, q in enumerate(QUESTIONS)
    ]
    (files / "empty.json").write_text(json.dumps(rows[::-1]))
    with serve(lambda path, body: chose(m=-1.0, M=-1.0)) as server:
        evaluate(capsys, files, files / "empty.json", "--judge", judge(server))
        assert len(server.asked) == len(QUESTIONS)
    (row,) = results(files)
    assert (row["n_total"], row["avg_length"], row["responses"]) == (12, 1, {"empty_share": 0.75})


def test_outputs_that_do_not_fit_are_refused(capsys, files):
    rows = json.loads((files / "mine.json").read_text())
    (files / "half.json").write_text(json.dumps([{**rows[0], "output": "\ud83d"}, *rows[1:]]))
    error = evaluate(capsys, files, files / "half.json", "--oracle", "panel", code=1)
    assert "row 0: '\\ud83d' holds half of a surrogate pair" in error
    (files / "mine.json").write_text(json.dumps(rows[1:]))
    assert "1 of 12 instructions have no output, the first: 'Question 0?'" in evaluate(
        capsys, files, files / "mine.json", "--oracle", "panel", code=1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["{mine}"], "who judges?"),
        (["{mine}", "--oracle", "panel", "--judge", "{{}}"], "who judges?"),
        (["{mine}", "--judge", "{{url: http://x/v1}}"], "model: missing"),
        (["{mine}", "--judge", "nothere.yaml"], "there is no file"),
        (["{mine}", "--oracle", "panel", "--best-of", "4"], "--best-of-oracle"),
    ],
)
def test_what_the_command_refuses(capsys, files, arguments, message):
    named = [argument.format(mine=files / "mine.json") for argument in arguments]
    assert message in evaluate(capsys, files, *named, code=1)


def test_length_control_of_other_instructions_is_refused(capsys, files):
    lines = (files / "df_gamed.csv").read_text().splitlines()
    (files / "df_gamed.csv").write_text("\n".join(line for line in lines if ",11," not in line))
    error = evaluate(capsys, files, files / "mine.json", "--oracle", "panel", code=1)
    assert "12 instructions, but difficulties of 11" in error


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("alpaca-eval", "alpaca_eval_2"),
        ("arena-hard", "arena_hard"),
        ("mt-bench", "mt_bench"),
        ("open-llm", "open_llm_leaderboard"),
    ],
)
def test_published_rows_are_the_papers(shared, benchmark, file):
    with (shared / "data" / "paper" / f"{file}.csv").open(newline="") as table:
        papers = list(csv.DictReader(table))
    named = ("model", "iteration", "best_of", "source")
    ours = [(row.model, row.iteration, row.best_of, row.values) for row in published.rows(benchmark)]
    assert ours == [
        (
            row["model"],
            int(row["iteration"]) if row["iteration"] else None,
            int(row.get("best_of") or 1),
            {name: float(value) for name, value in row.items() if name not in named and value},
        )
        for row in papers
    ]


def test_published_rows_have_sources():
    for benchmark, count in (("alpaca-eval", 38), ("arena-hard", 5), ("mt-bench", 8), ("open-llm", 15)):
        rows = published.rows(benchmark)
        assert len(rows) == count
        assert all(row.source and row.values for row in rows)
    best = {row.label: row for row in published.rows("alpaca-eval")}
    assert best["Mistral-7B SPPO iteration 3"].values["lc_win_rate"] == 28.53
    assert best["Mistral-7B SPPO iteration 3, best of 16"].values["lc_win_rate"] == 32.13
    assert best["Llama-3-8B SPPO iteration 3"].values["lc_win_rate"] == 38.77


def test_a_file_without_preferences_does_not_keep_the_others_from_the_table(capsys, tmp_path):
    row = {"instruction": "a", "output_1": "x", "output_2": "yy", "generator_2": "mine"}
    for name, preference in (("good", 1.5), ("none", None)):
        rows = [{**row, "instruction": text, "preference": preference} for text in "ab"]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    files = [str(tmp_path / f"{name}.json") for name in ("none", "good")]
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "alpaca-eval", "--no-length-control", *(f"--annotations={file}" for file in files)])
    shown = capsys.readouterr()
    assert ended.value.code == 1
    assert "mine" in shown.out
    assert "50.00" in shown.out
    assert "none.json" in shown.err
