"""Win rates as rewards for trainers elsewhere."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from chat_server import said, serve

from sppo import oracle
from sppo.oracle import OracleError
from sppo.oracle.rewards import RewardFunction
from sppo.tinyworld import POLICY

MATRIX = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
CYCLE = 1.0


class Told:
    """Gives the same matrix to every prompt, and keeps what it was asked."""

    leaves_gaps = True

    def __init__(self, matrix=MATRIX):
        self.matrix, self.asked = matrix, []

    def compare(self, prompts, responses):
        self.asked.append((prompts, responses))
        k = len(responses[0])
        return np.stack([self.matrix[:k, :k]] * len(prompts))


def test_rewards_are_the_win_rates_of_each_group_in_the_order_of_the_completions():
    told, logged = Told(), {}
    prompts, completions = ["p", "q", "p", "q", "p", "q"], ["a", "d", "b", "e", "c", "f"]
    rewards = RewardFunction(told)(
        prompts, completions, completion_ids=[[1]] * 6, log_metric=logged.__setitem__, column=["x"] * 6
    )
    rates = [1.6 / 3, 1.3 / 3, 1.6 / 3]
    np.testing.assert_allclose(rewards, np.repeat(rates, 2))
    assert told.asked == [(["p", "q"], [["a", "b", "c"], ["d", "e", "f"]])]
    assert logged == {"cyclic_triples": CYCLE}


def test_a_prompt_that_comes_twice_makes_two_groups_of_the_given_size():
    told = Told()
    rewards = RewardFunction(told, 2)(["p"] * 4, list("abcd"))
    assert told.asked == [(["p", "p"], [["a", "b"], ["c", "d"]])]
    np.testing.assert_allclose(rewards, [0.7, 0.3, 0.7, 0.3])
    with pytest.raises(OracleError, match="3 responses to one prompt, which is no multiple of group_size: 2"):
        RewardFunction(told, 2)(["p"] * 3, list("abc"))


def test_groups_of_several_sizes_are_compared_by_size():
    told = Told()
    RewardFunction(told)(["p", "q", "p", "q", "p"], list("abcde"))
    assert [responses for _, responses in told.asked] == [[["b", "d"]], [["a", "c", "e"]]]


def test_conversations_are_read_as_a_run_reads_them():
    told = Told()
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    completions = [
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "", "tool_calls": []}, {"role": "assistant", "content": "b"}],
    ]
    RewardFunction(told)([prompt, prompt], completions)
    assert told.asked == [(["System: s\n\nUser: p"], [["a", "b"]])]


def test_what_was_not_compared_has_no_reward():
    gaps = np.array([[0.5, np.nan, np.nan], [np.nan, 0.5, 0.9], [np.nan, 0.1, 0.5]])
    logged = {}
    first, second, _ = RewardFunction(Told(gaps))(["p"] * 3, list("abc"), log_metric=logged.__setitem__)
    assert first is None and second == pytest.approx((0.5 + 2 * 0.9) / 3)
    assert logged == {}


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["p"], ["a"], "a single response to a prompt has nothing to be compared with"),
        (["p", "p"], ["a"], "1 completions for 2 prompts"),
        (["p", "p"], ["a", None], r"completions\[1\]: a response is a text"),
        (["p", "p"], ["a", []], r"completions\[1\]: a response is a text"),
        (
            ["p", "p"],
            ["a", [{"role": "tool", "content": "x"}]],
            r"completions\[1\]: .*last is the assistant's",
        ),
        ([[{"role": "assistant", "content": "p"}]] * 2, ["a", "b"], r"prompts\[0\]: the last message"),
    ],
)
def test_what_cannot_be_rewarded(prompts, completions, message):
    with pytest.raises(OracleError, match=message):
        RewardFunction(Told())(prompts, completions)
    with pytest.raises(OracleError, match="group_size: 1"):
        oracle.reward_function({"type": "panel"}, group_size=1)


@pytest.mark.parametrize("module", [None, types.ModuleType("verifiers")], ids=["absent", "without rubrics"])
def test_a_rubric_without_verifiers_says_what_to_do(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "verifiers", module)
    with pytest.raises(OracleError, match=re.escape("pip install 'verifiers<0.4'")):
        oracle.rubric(Told())


def test_a_rubric_scores_groups_and_an_oracle_that_fails_is_no_reward_of_zero():
    """With verifiers' own class where it is installed: it is not among the packages of the other tests."""
    pytest.importorskip("verifiers.rubrics.rubric", reason="pip install 'verifiers<0.4'")
    states = [
        {"prompt": "p", "completion": text, "answer": "", "trajectory": [], "reward": None} for text in "abc"
    ]
    rubric = oracle.rubric(Told(), weight=2.0)
    assert rubric.has_group_rewards
    asyncio.run(rubric.score_group(states))
    np.testing.assert_allclose([state["reward"] for state in states], np.array([1.6, 1.3, 1.6]) * 2 / 3)
    assert states[1]["metrics"] == {"win_rate": pytest.approx(1.3 / 3)}
    with pytest.raises(OracleError, match="has the shape"):
        asyncio.run(oracle.rubric(Told(MATRIX[:2, :2])).score_group(states))
    with pytest.raises(OracleError, match="a single rollout has no win rate"):
        asyncio.run(rubric.score_rollout(states[0]))


SERVE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
SMALL = """GRPOConfig(
    output_dir="grpo", num_generations=4, per_device_train_batch_size=8, max_steps=2, max_completion_length=8,
    learning_rate=1e-4, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, seed=1, disable_tqdm=True)"""
TWICE = """
import json, pathlib
for _ in range(2):
    exec(compile(pathlib.Path("grpo.py").read_text(), "grpo.py", "exec"), names := {})
    rows = [row for row in names["trainer"].state.log_history if "rewards/win_rate/mean" in row]
    print(json.dumps({"rows": rows, "counts": names["reward"].oracle.counts}))
"""


def judge(path, body):
    """A judge with opinions that depend on what it is shown alone."""
    p = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[0] / 256
    top = [{"token": name, "logprob": float(np.log(q + 1e-3) - 0.01)} for name, q in (("A", p), ("B", 1 - p))]
    return said(
        "A", logprobs={"content": [{"token": "A", "logprob": top[0]["logprob"], "top_logprobs": top}]}
    )


@pytest.mark.slow
def test_trls_grpo_learns_from_a_judge_and_a_second_run_asks_it_nothing(tmp_path):
    """The program of docs/serve.md with TRL's own trainer, word by word but for the models and the size.

    In a process of its own, because TRL warns.
    """
    (program,) = re.findall(r"```python\n(# grpo.py\n.*?)```", SERVE.read_text(encoding="utf-8"), re.S)
    things = ("fox", "drum", "tram", "hat")
    rows = [{"prompt": [{"role": "user", "content": f"Describe a {thing}."}]} for thing in things]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "twice.py").write_text(TWICE)
    with serve(judge) as server:
        for old, new in (
            ("http://localhost:8000/v1", server.url),
            ("Qwen/Qwen3-32B", "judge"),
            ("Qwen/Qwen3-0.6B", str(POLICY)),
            ("group_size=8", "group_size=4"),
            ('GRPOConfig(output_dir="grpo", num_generations=8, per_device_train_batch_size=8)', SMALL),
        ):
            assert old in program
            program = program.replace(old, new)
        (tmp_path / "grpo.py").write_text(program)
        done = subprocess.run([sys.executable, "twice.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rows"')]
    assert [row["rewards/win_rate/mean"] for row in first["rows"]] == [pytest.approx(0.5)] * 2
    assert all(row["rewards/win_rate/std"] > 0.01 and row["grad_norm"] > 0 for row in first["rows"])
    assert all(0 <= row["cyclic_triples"] <= 1 for row in first["rows"])
    names = ("loss", "rewards/win_rate/std", "grad_norm", "cyclic_triples")
    assert [[row[name] for name in names] for row in second["rows"]] == [
        [row[name] for name in names] for row in first["rows"]
    ]
    assert len(server.asked) == first["counts"]["requests"] > 0
    assert second["counts"]["requests"] == 0 < second["counts"]["cached"]
