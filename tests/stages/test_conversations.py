"""Runs on prompts of several turns, with policies that spell special tokens."""

import json

import pytest
import tiny_models
from prompt_files import CONVERSATION
from small_runs import play_aloud, rows, small


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("mistral", "Try <s>!"),
        pytest.param("gemma-2", "a <bos>", marks=pytest.mark.slow),
        pytest.param("phi-3", "So</>: it", marks=pytest.mark.slow),
        pytest.param("phi-3", "</s>: it", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_conversations(tmp_path, family, text):
    policy = tiny_models.make_writer(family, text, tmp_path / "policy")
    prompts = tmp_path / "prompts.jsonl"
    conversations = [[*CONVERSATION[1:-1], {"role": "user", "content": f"And {n}?"}] for n in range(4)]
    prompts.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    changes = {
        "iterations": 1,
        "policy.model": str(policy),
        "prompts": {"train": str(prompts), "held_out": 1},
        "sampling": {"k": 2, "max_new_tokens": 12},
        "training.learning_rate": 1e-9,
        "evaluation.responses": 1,
    }
    summary, shown = play_aloud(small(**changes), tmp_path / "run")
    sampled = rows(tmp_path / "run" / "iter-1" / "responses")
    assert [len(row["messages"]) for row in sampled] == [3] * 3
    assert {response["text"] for row in sampled for response in row["responses"]} == {text}
    assert summary["iterations"][0]["sampled"]["truncated_share"] == 0
    assert "special token" not in shown
