"""`sppo evaluate head-to-head`: policies and files of outputs, compared by an oracle."""

import json

import numpy as np
import pytest
import tiny_models

from sppo import game
from sppo.benchmarks import participants
from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.head_to_head import play as head_to_head
from sppo.benchmarks.head_to_head.score import games, intervals
from sppo.benchmarks.options import read_oracle, read_sampling
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.responses import Decoding
from sppo.cli.main import app
from sppo.progress import Terminal
from sppo.rundir.folder import RunError
from sppo.rundir.shards import read_shard

ORACLE = """
import numpy as np

asked = 0

def circle(prompts, responses):
    global asked
    asked += len(prompts)
    wins = {("r", "s"), ("s", "p"), ("p", "r")}
    return np.array([
        [[1.0 if (a[:1], b[:1]) in wins else 0.0 if (b[:1], a[:1]) in wins else 0.5 for b in of] for a in of]
        for of in responses
    ])
"""


@pytest.fixture
def oracle(tmp_path, monkeypatch):
    (tmp_path / "circle_oracle.py").write_text(ORACLE)
    monkeypatch.syspath_prepend(tmp_path)
    return "{type: function, function: 'circle_oracle:circle'}"


@pytest.fixture
def outputs(tmp_path):
    def make(name, texts):
        path = tmp_path / f"{name}.json"
        rows = [{"instruction": q, "output": text, "generator": name} for q, text in texts.items()]
        path.write_text(json.dumps(rows))
        return str(path)

    return make


def quiet():
    from rich.console import Console

    return Terminal(Console(quiet=True))


def play(home, paths, oracle, **more):
    compared = participants.resolve(paths)
    evaluation = Evaluation(head_to_head.NAME, home, Decoding(read_sampling("{max_new_tokens: 12}")), quiet())
    return head_to_head.play(evaluation, compared, read_oracle(oracle), more.pop("prompts", None), **more)


def test_a_circle_has_the_uniform_winner(tmp_path, outputs, oracle):
    """By hand: rock 1/2 of the time against itself, wins against scissors, loses to paper, on every prompt."""
    questions = ["one", "two", "three"]
    paths = [outputs(name, dict.fromkeys(questions, name)) for name in ("rock", "paper", "scissors")]
    found = play(tmp_path / "out", paths, oracle)
    np.testing.assert_array_equal(found.payoff, [[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
    np.testing.assert_array_equal(found.low, found.payoff)
    np.testing.assert_allclose(found.winner, 1 / 3, atol=1e-9)
    kept = json.loads((tmp_path / "out" / "head-to-head.json").read_text())
    assert kept["win_rates"] == found.payoff.tolist()
    assert kept["oracle"]["function"] == "circle_oracle:circle"


def test_files_are_matched_by_instruction_and_asked_about_once(tmp_path, outputs, oracle):
    import circle_oracle

    a = outputs("a", {"one": "rock", "two": "paper", "three": ""})
    b = outputs("b", {"three": "rock", "two": "scissors", "one": "scissors"})
    found = play(tmp_path / "out", [a, b], oracle)
    assert found.payoff[0, 1] == pytest.approx(
        (1 + 0 + 0.5) / 3
    )  # an empty output is compared like any other
    before = circle_oracle.asked
    again = play(tmp_path / "out", [a, b], oracle)
    assert circle_oracle.asked == before
    np.testing.assert_array_equal(found.payoff, again.payoff)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"one": "rock"}, "1 of 2 instructions have no output, the first: 'two'"),
        ({"one": "r", "two": "r", "more": "r"}, "do not.*'more'|does not have, the first: 'more'"),
    ],
)
def test_files_that_answer_other_instructions_are_refused(tmp_path, outputs, oracle, theirs, message):
    paths = [outputs("a", {"one": "rock", "two": "paper"}), outputs("b", theirs)]
    with pytest.raises(OutputsError, match=message):
        play(tmp_path / "out", paths, oracle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"instruction": "q", "output": "a"}, {"instruction": "q", "output": "b"}]', "row 1: a second output to 'q'"),
        ('[{"instruction": "q", "output": null}]', "row 0: no text under 'output'"),
        ('[{"instruction": "q"}]', "row 0: no text under 'output'"),
        ('[{"instruction": "q", "output": "a", "generator": "x"}, {"instruction": "p", "output": "b"}]', "several models"),
        ("[]", "no outputs"),
        ("{}", "a list of rows"),
        ("[1]", "row 0: a mapping"),
        ("[", "not a whole"),
    ],
)  # fmt: skip
def test_damaged_files_of_outputs_are_refused(tmp_path, outputs, oracle, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(OutputsError, match=message):
        play(tmp_path / "out", [outputs("a", {"q": "rock"}), str(tmp_path / "bad.json")], oracle)


def test_policies_answer_and_resume(tmp_path, tiny_model, outputs, oracle):
    """A policy and a file; answers survive a part's damage, and another seed has answers of its own."""
    prompts = [f"What is {n}?" for n in range(70)]
    paths = [f"tiny={tiny_model('llama-3')}", outputs("b", dict.fromkeys(prompts, "rock"))]
    first = play(tmp_path / "out", paths, oracle, prompts=prompts, responses=2)
    shards = sorted((tmp_path / "out" / "tiny").glob("responses-*/part-*.parquet"))
    assert len(shards) == 2
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    again = play(tmp_path / "out", paths, oracle, prompts=prompts, responses=2)
    assert [shard.read_bytes() for shard in shards] == before
    np.testing.assert_array_equal(first.payoff, again.payoff)
    assert first.best is not None
    assert np.all(first.best[0] >= first.payoff[0] - 1e-12)


def test_best_of_n_is_the_one_that_its_siblings_like_most():
    """Two policies, one prompt: a has rock and paper, b has scissors and scissors; paper beats rock at home."""

    def compare(prompts, responses):
        order = {"rock": {"scissors"}, "paper": {"rock"}, "scissors": {"paper"}}
        return np.array(
            [[[0.5 if a == b else float(b in order[a]) for b in of] for a in of] for of in responses]
        )

    found = games(compare, ["q"], [[["rock", "paper"]], [["scissors", "scissors"]]])
    np.testing.assert_array_equal(found.payoff[0], [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(found.best[0], [[0.75, 0], [0.5, 0.5]])


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = generator.uniform(size=60)
        payoff = np.full((60, 2, 2), 0.5)
        payoff[:, 0, 1], payoff[:, 1, 0] = values, 1 - values
        low, high = intervals(payoff, confidence=0.9, resamples=400, seed=trial)
        covered += low[0, 1] <= 0.5 <= high[0, 1]
        np.testing.assert_allclose(low[0, 1], 1 - high[1, 0])
    assert 165 <= covered <= 195


def test_the_papers_matrix(shared):
    """Its strongest row beats every other, so the winner is that policy alone."""
    table = game.read_table(shared / "data" / "paper" / "pairrm_head_to_head.csv", tolerance=5e-3)
    assert table.payoff.shape == (11, 11)
    winner = game.nash(table.payoff)
    assert dict(zip(table.names, winner))["IPO3"] == pytest.approx(1)
    base = table.names.index("Base")
    assert [table.payoff[table.names.index(f"SPPO{t}"), base] for t in (1, 2, 3)] == [0.651, 0.722, 0.781]


def test_the_command(capsys, tmp_path, outputs, oracle):
    paths = [outputs(name, dict.fromkeys("ab", name)) for name in ("rock", "paper")]
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "head-to-head", *paths, "--oracle", oracle, "-o", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ended.value.code in (0, None), shown.err
    assert "0.000 [0.000, 0.000]" in shown.out
    assert "1.000 [1.000, 1.000]" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "there is no such file"),
        (["a={a}", "a={b}"], "two policies are called 'a'"),
        (["{a}", "{b}", "--oracle", "{{type: pairm}}"], "did you mean 'pairrm'"),
        (["{a}", "{b}", "--oracle", "[1]"], "a mapping like"),
        (["{a}", "{b}"], "name one with --oracle"),
        (["{a}", "--oracle", "panel"], "at least two"),
        (
            ["{a}", "{b}", "--oracle", "panel", "--sampling", "{{top_q: 1}}"],
            "did you mean `top_p`|top_q: unknown key",
        ),
    ],
)
def test_what_the_command_refuses(capsys, tmp_path, outputs, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {name: outputs(name, {"q": name}) for name in "ab"}
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "head-to-head", *(argument.format(**names) for argument in arguments)])
    assert ended.value.code == 1
    import re

    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": ""}, "p.jsonl, line 2: the prompt is empty"),
        ({"x": 1}, "p.jsonl, line 2: malformed: none of the columns"),
        ({"prompt": "first"}, "p.jsonl, line 2: this prompt is there twice"),
        ({"prompt": "a <|user|>"}, "('a <|user|>'): the user message contains the special token"),
        ({"prompt": "\ud83d"}, "contains half a surrogate pair"),
        ({"prompt": "word " * 600}, "max_new_tokens of --sampling"),
    ],
)
def test_prompts_that_cannot_be_asked(capsys, tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({"prompt": "first"}, line)))
    with pytest.raises(SystemExit) as ended:
        app(
            ["evaluate", "head-to-head", "a=tinyworld", "b=tinyworld", "--oracle", "panel", "--prompts",
             str(path), "--sampling", "{max_new_tokens: 8}", "-o", str(tmp_path / "out")]
        )  # fmt: skip
    assert ended.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_finished_iteration_has_no_policy(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("x")
    with pytest.raises(RunError, match="neither a run"):
        participants.resolve([str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["alpaca_eval"], 2, "'alpaca_eval' is unknown; did you mean 'alpaca-eval'?"),
        (["nowhere.yaml"], 1, "there is no such recipe"),
        (["runs/nowhere"], 1, "there is no such recipe"),
        (["."], 1, "is not a run folder"),
        (["stage", "."], 1, "is not a run folder"),
        (["--iteration", "1", "nowhere.yaml"], 1, "there is no such recipe"),
    ],
)
def test_the_same_word_serves_the_stage_of_a_run(capsys, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", *arguments])
    assert ended.value.code == code
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("family", "text"), [("mistral", "Try <s>!"), ("gemma-2", "a <bos>"), ("phi-3", "rock </s>")]
)
def test_a_policy_that_spells_a_special_token_is_compared(tmp_path, outputs, oracle, family, text):
    policy = tiny_models.make_writer(family, text, tmp_path / "policy")
    rock = outputs("rock", {"one": "rock", "two": text})
    found = play(tmp_path / "out", [f"mine={policy}", rock], oracle)
    assert found.prompts == 2
    np.testing.assert_array_equal(found.payoff, 0.5)
    (stage,) = (tmp_path / "out" / "mine").glob("responses-*")
    (shard,) = stage.glob("*.parquet")
    turns = [choice["turns"][0]["text"] for row in read_shard(shard).to_pylist() for choice in row["choices"]]
    assert turns == [text, text]


def test_paths_in_the_home_folder_are_found_wherever_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in (("a", "A fox runs."), ("b", "It runs.")):
        rows = [{"instruction": "Describe a fox.", "output": text}]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "prompts.txt").write_text("Describe a fox.\n")
    arguments = ["mine=~/a.json", "~/b.json", "--prompts=~/prompts.txt", "--oracle", "panel", "-o", "~/out"]
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "head-to-head", *arguments])
    assert ended.value.code == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "head-to-head.json").read_text())
    assert [policy["name"] for policy in content["policies"]] == ["mine", "b"]
