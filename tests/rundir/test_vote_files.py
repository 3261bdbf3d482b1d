"""Votes from tables of several notations."""

import json

import pytest

from sppo.rundir.vote_files import Ballot, read
from sppo.rundir.votes import VotesError


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_workers_votes(tmp_path):
    text = (
        "id,prompt,worker,winner,left,right\n"
        "0,8,58,tie,A,B\n0,8,83,left,A,B\n0,8,14,right,A,B\n0,8,14,left,B,A\n0,8,15,skip,A,B\n"
    )
    found = read(written(tmp_path, "votes.csv", text))
    assert found.ballots == [
        Ballot("8", "58", "A", "B", 0.5),
        Ballot("8", "83", "A", "B", 1.0),
        Ballot("8", "14", "A", "B", 0.0),
    ]
    assert found.left_out == 2  # a second vote of worker 14 on the pair, and a skip


def test_lines_with_turns_and_judges(tmp_path):
    rows = [
        {"judge": "p", "model_a": "A", "model_b": "B", "question_id": 81, "turn": 1, "winner": "model_b"},
        {
            "judge": "p",
            "model_a": "A",
            "model_b": "B",
            "question_id": 81,
            "turn": 2,
            "winner": "tie (inconsistent)",
        },
    ]
    found = read(written(tmp_path, "votes.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.ballots == [
        Ballot("81, turn 1", "p", "A", "B", 0.0),
        Ballot("81, turn 2", "p", "A", "B", 0.5),
    ]


def test_a_winner_by_its_name_and_verdicts_that_are_none(tmp_path):
    rows = [
        {"judge": "j", "question_id": 1, "model_a": "A", "model_b": "B", "winner": winner}
        for winner in ("B", "inconsistent", "error")
    ]
    path = written(tmp_path, "votes.json", json.dumps([{**row, "judge": n} for n, row in enumerate(rows)]))
    found = read(path)
    assert [ballot.share for ballot in found.ballots] == [0.0, 0.5]
    assert found.left_out == 1


def test_votes_without_voters_count_each(tmp_path):
    found = read(written(tmp_path, "votes.csv", "prompt,left,right,winner\nx,A,B,left\nx,A,B,left\n"))
    assert len(found.ballots) == 2
    assert found.ballots[0].voter != found.ballots[1].voter


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "v.csv",
            "prompt,left,right\nx,A,B\n",
            "line 2: a vote needs a winner, in a column named label or winner",
        ),
        ("v.csv", "prompt,left,right,winner\nx,A,B,C\n", "line 2: the winner 'C' is neither 'A' nor 'B'"),
        ("v.csv", "prompt,left,right,winner\nx,A,A,left\n", "'A' is compared with itself"),
        ("v.jsonl", "[1]\n", "line 1: not a vote but a list"),
        ("v.jsonl", "{\n", "line 1"),
        (
            "v.jsonl",
            '{"prompt": [1], "left": "A", "right": "B", "winner": "A"}',
            "prompt: '\\[1\\]' is neither",
        ),
        ("v.txt", "x", "votes are read from"),
    ],
)
def test_what_is_no_vote_is_named(tmp_path, name, text, message):
    with pytest.raises(VotesError, match=message):
        read(written(tmp_path, name, text))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(VotesError, match="there is no such file"):
        read(tmp_path / "none.csv")
