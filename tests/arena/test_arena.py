import collections
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import uvicorn
from run_folders import write_run
from starlette.testclient import TestClient
from typer.testing import CliRunner

from sppo.arena import votes as vote_files
from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches, RefusedVote
from sppo.arena.referee import Referee
from sppo.arena.server import Arena, access_key
from sppo.arena.serving import _hosts, _key, _own_names
from sppo.arena.votes import VotesError
from sppo.benchmarks.head_to_head.play import of_votes
from sppo.cli.main import app
from sppo.oracle.training import pairs
from sppo.recipe.oracle_training import Pairs
from sppo.report import page

HOST = "127.0.0.1:8765"
KEY = b"secret"


def answers(prompts=4, policies=("base", "iteration 1"), same=()):
    return {
        policy: {
            f"p{n}": (f"prompt {n}", ["same"] if n in same else [f"{policy} {n} {k}" for k in range(2)])
            for n in range(prompts)
        }
        for policy in policies
    }


def vote(number, a="base", b="iteration 1", label="a", prompt=None, voter="ann", oracle=None):
    return {
        "vote_id": f"v{number}",
        "time": "2026-01-01T00:00:00Z",
        "voter": voter,
        "prompt_id": prompt or f"p{number}",
        "prompt": f"prompt {number}",
        "policy_a": a,
        "policy_b": b,
        "response_a": f"{a} says",
        "response_b": f"{b} says",
        "label": label,
        "oracle": oracle,
    }


# Votes as a file


def test_win_rates_of_votes_by_hand(tmp_path):
    """p0: a win and a tie against the base make 3/4; p1: a loss. Mean over prompts: 3/8."""
    rows = [
        vote(0, label="b", prompt="p0"),
        vote(1, label="tie", prompt="p0", voter="ben"),
        vote(2, a="iteration 1", b="base", label="b", prompt="p1"),
        vote(3, a="base", b="iteration 2", label="a", prompt="p1"),
    ]
    vote_files.write(tmp_path / "votes.parquet", rows)
    found = of_votes([tmp_path / "votes.parquet"])
    assert found.names == ["base", "iteration 1", "iteration 2"] and found.prompts == 2
    assert found.payoff[1, 0] == 0.375 and found.payoff[0, 1] == 0.625
    assert found.payoff[2, 0] == 0 and np.isnan(found.payoff[1, 2]) and np.isnan(found.winner).all()
    assert found.low[1, 0] <= 0.375 <= found.high[1, 0]


def test_agreement_leaves_ties_out_on_either_side():
    rows = [
        vote(0, label="a", oracle=0.9),
        vote(1, label="b", oracle=0.9),
        vote(2, label="b", oracle=0.2),
        vote(3, label="tie", oracle=0.9),
        vote(4, label="a", oracle=0.5),
        vote(5, label="a"),
    ]
    found = vote_files.agreement(rows)
    assert found["votes"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert found["low"] < 2 / 3 < found["high"]
    assert vote_files.agreement(rows[3:]) is None


def test_votes_are_preference_data_for_an_oracle(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(0, label="a"), vote(1, label="b"), vote(2, label="tie")])
    found = pairs.read(Pairs.model_validate({"source": str(path)}))
    assert [pair.probability for pair in found] == [1.0, 0.0, 0.5]
    assert (found[0].prompt, found[0].response_a) == ("prompt 0", "base says")


def test_head_to_head_reads_votes(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(n, label="b") for n in range(3)])
    done = CliRunner().invoke(app, ["evaluate", "head-to-head", "--votes", str(path)])
    assert done.exit_code == 0 and "1.000 [1.000, 1.000]" in done.output
    refused = CliRunner().invoke(app, ["evaluate", "head-to-head", str(tmp_path), "--votes", str(path)])
    assert refused.exit_code == 1


# The ballot


def test_a_vote_is_on_the_disk_and_counted_once(tmp_path):
    ballot = Ballot(tmp_path)
    assert ballot.record(vote(0))
    assert vote_files.read(tmp_path / "votes.parquet")[0]["vote_id"] == "v0"
    assert ballot.record(vote(0)) and not ballot.record(vote(0, label="b"))
    assert ballot.record(vote(1, label="skip")) and len(ballot.votes()) == 1 and len(ballot.seen()) == 2
    again = Ballot(tmp_path)
    assert again.record(vote(0)) and not again.record(vote(1, label="a"))
    again.answer("v0", 0.75)
    assert Ballot(tmp_path).votes()[0]["oracle"] == 0.75


def test_several_people_at_once_lose_no_vote(tmp_path):
    ballot = Ballot(tmp_path)
    people = [
        threading.Thread(
            target=lambda start=start: [ballot.record(vote(n)) for n in range(start, start + 10)]
        )
        for start in (0, 10, 20)
    ]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert {row["vote_id"] for row in vote_files.read(tmp_path / "votes.parquet")} == {
        f"v{n}" for n in range(30)
    }


def test_a_damaged_file_is_not_written_over(tmp_path):
    (tmp_path / "votes.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(VotesError, match="left as it is"):
        Ballot(tmp_path)
    assert (tmp_path / "votes.parquet").read_bytes() == b"PAR1 damaged"


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    ballot = Ballot(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vote_files, "write", full)
    with pytest.raises(OSError, match="space"):
        ballot.record(vote(0))
    assert ballot.votes() == []


# What is shown


def test_everybody_sees_every_pair_once_and_what_was_voted_on_least_comes_first():
    matches = Matches(answers(prompts=5, same=(4,)), ["base", "iteration 1"], KEY)
    assert len(matches) == 4
    seen = []
    for _, voter in itertools.product(range(4), ("ann", "ben")):
        shown = matches.draw(voter, seen)
        assert set(shown.policies) == {"base", "iteration 1"} and shown.texts[0] != shown.texts[1]
        assert shown.texts[0].startswith(shown.policies[0])
        seen.append(
            {
                "prompt_id": shown.prompt_id,
                "policy_a": shown.policies[0],
                "policy_b": shown.policies[1],
                "voter": voter,
            }
        )
        counts = collections.Counter(row["prompt_id"] for row in seen)
        assert len(counts) == 4 or max(counts.values()) - min(counts.values()) <= 1
    assert matches.draw("ann", seen) is None and matches.draw("eve", seen) is not None


def test_sides_are_drawn_at_random():
    matches = Matches(answers(prompts=1), ["base", "iteration 1"], KEY)
    left = [matches.draw("ann", []).policies[0] for _ in range(200)]
    assert 60 < left.count("base") < 140  # seven standard deviations


def test_a_seal_gives_back_what_was_shown_and_hides_it():
    matches = Matches(answers(), ["base", "iteration 1"], KEY)
    shown = matches.draw("ann", [])
    seal = matches.seal(shown)
    again = Matches(answers(), ["base", "iteration 1"], KEY)  # after a restart
    assert again.opened(seal) == shown
    assert "base" not in seal and "YmFzZQ" not in seal
    forged = ["", "a.b", None, 7, seal[:-1] + ("0" if seal[-1] != "0" else "1"), "f" * 32 + seal[32:]]
    for wrong in forged:
        with pytest.raises(RefusedVote):
            matches.opened(wrong)
    with pytest.raises(RefusedVote):
        Matches(answers(), ["base", "iteration 1"], b"other").opened(seal)
    changed = answers()
    for of_prompt in changed.values():
        of_prompt[shown.prompt_id] = ("another prompt", of_prompt[shown.prompt_id][1])
    with pytest.raises(RefusedVote):
        Matches(changed, ["base", "iteration 1"], KEY).opened(seal)


# The server's rules


@pytest.fixture
def arena(tmp_path):
    return Arena("run", Matches(answers(), ["base", "iteration 1"], KEY), Ballot(tmp_path), KEY, {HOST})


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
    for path in ("/pair", "/vote", "/results"):
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
        ("/pair", {"voter": ""}, 400),
        ("/pair", {"voter": "x" * 61}, 400),
        ("/pair", {"voter": {"a": 1}}, 400),
        ("/pair", {"voter": "x" * 20_000}, 400),
    ],
)
def test_what_is_no_vote_is_refused(arena, client, path, body, status):
    assert client.post(path, json=body, headers=headers(arena)).status_code == status
    assert arena.ballot.seen() == []


def test_the_oracle_is_asked_behind_the_votes(tmp_path):
    class Longer:
        def compare(self, prompts, responses):
            return np.array([[[0.5, 0.8], [0.2, 0.5]]])

    ballot = Ballot(tmp_path)
    ballot.record(vote(0))  # of a session before, left unasked
    referee = Referee(Longer, ballot, print)
    referee.start()
    ballot.record(vote(1))
    referee.ask(vote(1))
    referee.finish()
    assert [row["oracle"] for row in Ballot(tmp_path).votes()] == [0.8, 0.8]
    said = []

    def fails():
        raise ValueError("no such model")

    broken = Referee(fails, ballot, said.append)
    broken.start()
    broken.finish()
    assert "no such model" in said[0]


def test_the_secret_is_its_owners_and_names_are_this_machines(tmp_path):
    first = _key(tmp_path / "arena" / "key")
    assert _key(tmp_path / "arena" / "key") == first and len(first) == 64
    (tmp_path / "arena" / "key").write_bytes(b"")
    assert len(_key(tmp_path / "arena" / "key")) == 64
    assert stat.S_IMODE((tmp_path / "arena" / "key").stat().st_mode) == 0o600
    assert _own_names("127.0.0.1") == {"127.0.0.1", "localhost"}
    assert _own_names("10.0.0.7") == {"10.0.0.7"}
    assert _hosts("Box.local", 8765) == {"box.local:8765"}
    assert _hosts("::1", 80) == {"[::1]", "[::1]:80", "localhost", "localhost:80"}


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


def test_the_report_tells_what_people_said(tmp_path):
    run = write_run(tmp_path / "run")
    vote_files.write(run / "arena" / "votes.parquet", [vote(0, oracle=0.9), vote(1, label="b", oracle=0.9)])
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="run1-people"' in text and "of 2 votes" in text
    (run / "arena" / "votes.parquet").write_bytes(b"broken")
    page.write([run], tmp_path / "report.html")
    assert "not a whole shard" in (tmp_path / "report.html").read_text(encoding="utf-8")


# In real browsers


@contextlib.contextmanager
def served(folder, key=KEY, prompts=4):
    """An arena on a port of its own; gives it and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    matches = Matches(answers(prompts), ["base", "iteration 1"], key)
    arena = Arena("run", matches, Ballot(folder), key, {f"127.0.0.1:{port}"})
    server = uvicorn.Server(uvicorn.Config(arena.app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield arena, f"http://127.0.0.1:{port}/?key={access_key(key)}"
    finally:
        server.should_exit = True
        thread.join()


READY = "body[data-ready=true]"


@pytest.fixture
def person(chromium):
    """Somebody at a browser, with its errors."""
    context = chromium.new_context()
    found = context.new_page()
    found.complaints = []
    found.on("pageerror", lambda error: found.complaints.append(str(error)))
    yield found
    context.close()
    assert found.complaints == []


def test_two_arenas_are_open_in_one_browser(tmp_path, person):
    with (
        served(tmp_path / "a", b"one") as (first, at_first),
        served(tmp_path / "b", b"two") as (_, at_second),
    ):
        for address in (at_first, at_second, at_first.partition("?")[0]):
            person.goto(address)
            person.wait_for_selector(READY)
        person.keyboard.press("1")
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert len(first.ballot.votes()) == 1


def test_the_address_can_be_a_link_on_another_page(tmp_path, person):
    with served(tmp_path) as (_, address):
        person.route(
            "http://other.example/",
            lambda of: of.fulfill(body=f"<a href='{address}'>vote</a>", content_type="text/html"),
        )
        person.goto("http://other.example/")
        person.click("a")
        person.wait_for_selector(READY)


def test_who_votes_with_the_buttons_and_the_keyboard_stays_on_the_button(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        person.focus("[data-choice=tie]")
        for count in (1, 2):
            person.keyboard.press("Enter")
            person.wait_for_selector(f"{READY}[data-votes='{count}']")
        person.keyboard.press("T")  # caps lock
        person.wait_for_selector(f"{READY}[data-votes='3']")
        assert person.evaluate("document.activeElement.dataset.choice") == "tie"
        person.keyboard.press("Enter")
        person.wait_for_selector("body[data-votes='4']")
        assert "You have seen every pair" in person.inner_text("#status")
        assert [row["label"] for row in arena.ballot.votes()] == ["tie"] * 4


def test_a_vote_that_does_not_count_is_said_and_one_without_the_key_is_kept(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        arena.matches._key, key = b"another", arena.matches._key
        person.keyboard.press("1")
        person.wait_for_selector(READY)
        assert "Your last vote does not count: this was not shown here" in person.inner_text("#status")
        arena.matches._key = key
        person.reload()
        person.wait_for_selector(READY)
        person.context.clear_cookies()
        person.keyboard.press("2")
        person.wait_for_selector("#status:has-text('is kept here')")
        person.click("summary")
        person.goto(address)
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert [row["label"] for row in arena.ballot.votes()] == ["b"]


# With a real server that is killed


class Server:
    def __init__(self, run, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "arena", str(run), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ctrl-C ends" in line:
                break
        (self.address,) = re.findall(r"http://\S+", "".join(lines)) or [None]
        assert self.address, lines
        self.port = re.search(r":(\d+)/", self.address).group(1)

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(60)
        self.process.stdout.close()


@pytest.mark.slow
def test_a_hundred_votes_by_key_from_two_browsers_survive_a_kill(tmp_path, chromium):
    hostile = "<script>document.title='owned'</script>\x1b[31m \u202etxt"
    run = write_run(
        tmp_path / "run", held_out=60, text=lambda t, p, k: f"{hostile} {'x' * 3000 if k else ''} {t} {p}"
    )
    server = Server(run, "--port", "0")
    people = []
    complaints = []
    try:
        for name, width, scheme in (("ann", 1280, "light"), ("ben", 400, "dark")):
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            context.add_init_script(f"localStorage.setItem('voter', '{name}')")
            one = context.new_page()
            one.on("pageerror", lambda error: complaints.append(str(error)))
            one.on(
                "request",
                lambda request: (
                    complaints.append(request.url)
                    if f":{server.port}/" not in request.url and not request.url.startswith("data:")
                    else None
                ),
            )
            one.goto(server.address)
            one.wait_for_selector("body[data-ready=true]")
            assert "key=" not in one.url and "owned" not in one.title()
            assert (
                "<script>" in one.locator("#left").inner_text()
                and "\\u202e" in one.locator("#left").inner_text()
            )
            assert one.evaluate("document.documentElement.scrollWidth <= innerWidth")
            people.append((name, one))
        keys = itertools.cycle(["1", "2", "t", "ArrowLeft", "ArrowRight", "0"])

        def press(one, count):
            one.keyboard.press(next(keys))
            one.wait_for_selector(f"body[data-ready=true][data-votes='{count}']")

        for count in range(1, 26):
            for _, one in people:
                press(one, count)
        people[0][1].keyboard.press("s")
        people[0][1].wait_for_timeout(300)
        people[0][1].wait_for_selector("body[data-ready=true]")
        server.end()
        for _, one in people:  # their votes find no server
            one.keyboard.press("1")
            one.wait_for_function("document.getElementById('status').textContent.includes('does not answer')")
        server = Server(run, "--port", server.port)
        for _, one in people:
            one.wait_for_selector("body[data-ready=true][data-votes='26']")
        for count in range(27, 51):
            for _, one in people:
                press(one, count)
        server.end(signal.SIGINT)
        assert complaints == []
    finally:
        server.end()
        for _, one in people:
            one.context.close()
    kept = vote_files.read(run / "arena" / "votes.parquet")
    assert collections.Counter(row["voter"] for row in kept) == {"ann": 50, "ben": 50}
    assert len({(row["voter"], row["prompt_id"]) for row in kept}) == 100
    assert all({row["policy_a"], row["policy_b"]} == {"base", "iteration 2"} for row in kept)
    assert all(
        row["response_a"].endswith(f"{0 if row['policy_a'] == 'base' else 2} {row['prompt_id'][5:]}")
        for row in kept
    )
    assert len(vote_files.read(run / "arena" / "skips.parquet")) == 1
