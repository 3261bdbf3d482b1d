"""A fixed opponent in place of self-play."""

import json

import numpy as np
import pytest

from sppo import oracle, winrates
from sppo.oracle import OracleError
from sppo.oracle.fixed_opponent import read_responses

PANEL = {"type": "panel"}
PROMPTS = ["tell me about cats", "hello"]
RESPONSES = [["a cat is soft.", "cats cats", "no"], ["hello there, friend!", "go away", "hi"]]
OPPONENT = [["cats sleep a lot.", "what?"], ["good day to you!", "mm"]]


@pytest.fixture
def opponent(tmp_path):
    path = tmp_path / "opponent.jsonl"
    rows = [{"prompt": p, "responses": texts} for p, texts in zip(PROMPTS, OPPONENT, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_the_win_rate_against_the_opponent_takes_the_place_of_self_play(opponent):
    inner = oracle.load(PANEL)
    together = [[*own, *other] for own, other in zip(RESPONSES, OPPONENT, strict=True)]
    against = inner.compare(PROMPTS, together)[:, :3, 3:].mean(-1)
    assert np.ptp(against) > 0.1
    fixed = oracle.load({"type": "fixed_opponent", "oracle": PANEL, "responses": str(opponent)})
    found = winrates.win_rates(fixed.compare(PROMPTS, RESPONSES))
    np.testing.assert_allclose(found - 0.5, (against - against.mean(-1, keepdims=True)) / 2, atol=1e-9)


def test_an_unknown_prompt_is_named(opponent):
    fixed = oracle.load({"type": "fixed_opponent", "oracle": PANEL, "responses": str(opponent)})
    with pytest.raises(OracleError, match="no responses to the prompt 'good night'"):
        fixed.compare(["good night"], RESPONSES[:1])


def test_its_identity_follows_the_responses(opponent):
    from sppo.recipe import parse_oracle

    section = parse_oracle({"type": "fixed_opponent", "oracle": PANEL, "responses": str(opponent)})
    assert section.is_transitive
    before = section.identity()
    opponent.write_text(opponent.read_text().replace("mm", "hm"), encoding="utf-8")
    assert section.identity() != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}', "line 1 has no list of responses"),
        ('{"responses": ["a"]}', "line 1 has no prompt"),
        ('{"prompt": "a", "responses": ["x"]}\n{"prompt": "b", "responses": ["x", "y"]}', "another number"),
        ("{", "not"),
    ],
)
def test_a_file_that_cannot_be_used_is_said(tmp_path, text, message):
    path = tmp_path / "opponent.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OracleError, match=message if message != "not" else "opponent.jsonl"):
        read_responses(path)
