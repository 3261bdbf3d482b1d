"""The server's rules: who may vote, and on what."""

import json
import stat

import pytest
from arena_votes import KEY, responses, vote
from run_folders import write_run
from starlette.testclient import TestClient
from typer.testing import CliRunner

from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches
from sppo.arena.server import Arena, access_key, in_words
from sppo.arena.serving import _key
from sppo.cli.main import app

HOST = "127.0.0.1:8765"


@pytest.fixture
def arena(tmp_path):
    return Arena("run", Matches(responses(), ["base", "iteration 1"], KEY), Ballot(tmp_path), KEY, {HOST})


@pytest.fixture
def client(arena):
    found = TestClient(arena.app(), base_url=f"http://{HOST}", follow_redirects=False)
    assert found.get("/", params={"key": access_key(KEY)}).status_code == 303
    return found


def headers(arena, **changes):
    return {
        "origin": f"http://{HOST}",
        "x-sppo-token": arena.token,
        "content-type": "application/json",
        **changes,
    }


def test_a_vote_by_the_rules(arena, client):
    shown = client.post("/pair", json={"voter": " ann "}, headers=headers(arena)).json()
    done = client.post("/vote", json={"seal": shown["seal"], "choice": "left"}, headers=headers(arena))
    assert done.json() == {"counted": True}
    (kept,) = arena.ballot.votes()
    assert (kept["voter"], kept["label"], kept["response_a"]) == ("ann", "a", shown["left"])
    twice = client.post("/vote", json={"seal": shown["seal"], "choice": "right"}, headers=headers(arena))
    assert twice.status_code == 409 and len(arena.ballot.votes()) == 1
    found = client.post("/results", json={}, headers=headers(arena)).json()
    assert found["votes"] == 1 and found["people"] == ["ann"]


def test_both_bad_is_a_tie_that_says_so(arena, client):
    shown = client.post("/pair", json={"voter": "ann"}, headers=headers(arena)).json()
    done = client.post("/vote", json={"seal": shown["seal"], "choice": "both_bad"}, headers=headers(arena))
    assert done.json() == {"counted": True}
    (kept,) = arena.ballot.votes()
    assert kept["label"] == "tie" and kept["both_bad"] is True
    again = client.post("/vote", json={"seal": shown["seal"], "choice": "tie"}, headers=headers(arena))
    assert again.status_code == 409


@pytest.mark.parametrize("choice", ["left", "skip"])
def test_an_undone_choice_does_not_count_and_its_pair_can_be_voted_on(arena, client, choice):
    shown = client.post("/pair", json={"voter": "ann"}, headers=headers(arena)).json()
    assert (shown["seen"], shown["total"]) == (0, 4)
    client.post("/vote", json={"seal": shown["seal"], "choice": choice}, headers=headers(arena))
    after = client.post("/pair", json={"voter": "ann"}, headers=headers(arena)).json()
    assert (after["seen"], after["votes"]) == (1, int(choice == "left"))
    undone = client.post("/undo", json={"seal": shown["seal"]}, headers=headers(arena))
    assert undone.json() == {"withdrawn": True} and arena.ballot.seen() == []
    twice = client.post("/undo", json={"seal": shown["seal"]}, headers=headers(arena))
    assert twice.json() == {"withdrawn": False}
    client.post("/vote", json={"seal": shown["seal"], "choice": "right"}, headers=headers(arena))
    assert [row["label"] for row in arena.ballot.votes()] == ["b"]


def test_results_are_a_matrix_with_intervals_and_a_word_on_too_few_votes(arena, client):
    for number in range(3):
        arena.ballot.record(vote(number, label="b"))
    found = client.post("/results", json={}, headers=headers(arena)).json()
    assert found["names"] == ["base", "iteration 1"]
    assert found["win_rates"][1][0] == {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 3}
    assert found["win_rates"][0][0] is None
    (word,) = found["words"]
    assert word.startswith("There are too few votes to tell") and "so far 3 have votes" in word


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        ((0.6, 0.45, 0.7, 40), "By these votes, b is not measurably different from a."),
        ((0.6, 0.55, 0.7, 40), "b is better than a."),
        ((0.3, 0.2, 0.4, 40), "b is worse than a."),
        ((0.9, 0.8, 1.0, 29), "too few votes"),
    ],
)
def test_results_in_words(rate, words):
    assert words in in_words("b", "a", dict(zip(("mean", "low", "high", "prompts"), rate)))


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example:8765"},
        {"host": "localhost:8765"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"x-sppo-token": "wrong"},
        {"content-type": "text/plain"},
        {"cookie": "wrong"},
    ],
    ids=str,
)
def test_requests_of_other_pages_are_refused(arena, client, changes):
    shown = client.post("/pair", json={"voter": "ann"}, headers=headers(arena)).json()
    if "cookie" in changes:
        client.cookies.clear()
    body = json.dumps({"seal": shown["seal"], "choice": "left"})
    found = client.post("/vote", content=body, headers=headers(arena, **changes))
    assert found.status_code == 403 and arena.ballot.votes() == []


def test_nothing_is_shown_without_the_key(arena):
    stranger = TestClient(arena.app(), base_url=f"http://{HOST}", follow_redirects=False)
    assert stranger.get("/").status_code == 403 and arena.token not in stranger.get("/").text
    assert stranger.get("/", params={"key": "wrong"}).status_code == 403
    for path in ("/pair", "/vote", "/undo", "/results"):
        assert stranger.post(path, json={}, headers=headers(arena)).status_code == 403
    assert "access-control-allow-origin" not in stranger.get("/").headers
    assert "frame-ancestors 'none'" in stranger.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/vote", {"seal": "x.y.z", "choice": "left"}, 409),
        ("/vote", {"seal": "ü.ü.ü.ü.ü.ü", "choice": "left"}, 409),
        ("/vote", {"choice": "both"}, 400),
        ("/vote", {"choice": ["left"]}, 400),
        ("/vote", {"choice": {"left": 1}}, 400),
        ("/vote", [], 400),
        ("/undo", {"seal": "x.y.z"}, 409),
        ("/undo", [], 400),
        ("/pair", {"voter": ""}, 400),
        ("/pair", {"voter": "x" * 61}, 400),
        ("/pair", {"voter": {"a": 1}}, 400),
        ("/pair", {"voter": "x" * 20_000}, 413),
    ],
)
def test_what_is_no_vote_is_refused(arena, client, path, body, status):
    assert client.post(path, json=body, headers=headers(arena)).status_code == status
    assert arena.ballot.seen() == []


def test_the_secret_is_its_owners(tmp_path):
    first = _key(tmp_path / "arena" / "key")
    assert _key(tmp_path / "arena" / "key") == first and len(first) == 64
    (tmp_path / "arena" / "key").write_bytes(b"")
    assert len(_key(tmp_path / "arena" / "key")) == 64
    assert stat.S_IMODE((tmp_path / "arena" / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "base"], "two or more of base, iteration 1"),
        (["--policies", "base,7"], "two or more of"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, options, message):
    run = write_run(tmp_path / "run")
    done = CliRunner().invoke(app, ["arena", str(run), *options])
    assert done.exit_code == 1 and message in done.output.replace("\n", " ")
