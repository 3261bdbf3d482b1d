"""An oracle behind HTTP: what is answered, what is refused and how, and that nobody is left waiting."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chat_server import Reply, said, serve
from run_folders import RECIPE, write_run
from starlette.testclient import TestClient
from test_docs import ROOT, blocks
from typer.testing import CliRunner

from sppo import oracle
from sppo.cli.main import app
from sppo.oracle import CheckedOracle, OracleError
from sppo.oracle_server.cohorts import Cohorts
from sppo.oracle_server.desk import Desk
from sppo.oracle_server.questions import Limits, Questions
from sppo.oracle_server.server import OracleServer
from sppo.policy.messages import plain_text
from sppo.serving.bodies import RefusedRequest


class Longer:
    """P = sigma of the difference of the lengths; counts its calls, and can be made to fail or to wait."""

    def __init__(self):
        self.calls, self.fails_on, self.may_answer = [], "no text", threading.Event()
        self.may_answer.set()

    def compare(self, prompts, responses):
        self.calls.append(list(prompts))
        self.may_answer.wait(30)
        if self.fails_on in prompts:
            raise OracleError(f"broken at {self.fails_on}")
        lengths = np.array([[len(text) for text in texts] for texts in responses], dtype=float)
        return 1 / (1 + np.exp(lengths[:, None, :] - lengths[:, :, None]))


@pytest.fixture
def longer():
    return Longer()


@pytest.fixture
def started():
    """Starts servers in this process, and ends their threads."""
    desks, running = [], contextlib.ExitStack()

    def start(inner, limits=None, **settings):
        limits = limits or Limits()
        desk = Desk(CheckedOracle(inner), limits.waiting)
        desks.append((desk, inner))
        server = OracleServer("longer", desk, Questions(limits, plain_text), **settings)
        return running.enter_context(TestClient(server.app()))  # all requests in one event loop

    yield start
    running.close()
    for desk, inner in desks:
        getattr(inner, "may_answer", threading.Event()).set()
        desk.close()


QUESTION = {"prompt": "Say a word.", "responses": ["a", "aaa", "aa"]}
RATES = np.array([(0.5 + 1 / (1 + np.e**2) + 1 / (1 + np.e)) / 3, 0, 0])
RATES[1] = 1 - RATES[0]
RATES[2] = 0.5


def test_the_whole_matrix_of_a_prompt(started, longer):
    client = started(longer)
    answer = client.post("/preferences", json=QUESTION).json()
    np.testing.assert_allclose(answer["matrix"], longer.compare([""], [QUESTION["responses"]])[0])
    np.testing.assert_allclose(answer["win_rates"], RATES)
    assert answer["components"] == {}
    conversation = [{"role": "user", "content": text} for text in ("Hello.", "Say a word.")]
    client.post("/preferences", json={**QUESTION, "prompt": conversation})
    assert longer.calls[-1] == ["User: Hello.\n\nUser: Say a word."]
    about = client.get("/").json()
    assert (about["oracle"], about["limits"]["responses"], about["cohort"]) == ("longer", 64, None)


def test_a_panel_shows_its_members(started):
    """The question of docs/serve.md, word by word."""
    (question,) = blocks(ROOT / "docs" / "serve.md", "json")
    client = started(oracle.load({"type": "panel"}))
    headers = {"Content-Type": "application/json"}
    answer = client.post("/preferences", content=question, headers=headers).json()
    assert len(answer["components"]) > 1
    assert all(np.shape(matrix) == (3, 3) for matrix in answer["components"].values())


def test_the_rewards_of_a_batch(started, longer):
    client = started(longer)
    batch = {"prompts": ["p", "q", "p", "q"], "completions": ["a", "a", "aa", "aa"]}
    low = (0.5 + 1 / (1 + np.e)) / 2
    found = client.post("/rewards", json=batch).json()
    np.testing.assert_allclose(found["rewards"], [low, low, 1 - low, 1 - low])
    batch = {"prompts": ["p"] * 4, "completions": ["a", "aa", "a", "aa"], "group_size": 2}
    np.testing.assert_allclose(client.post("/rewards", json=batch).json()["rewards"], [low, 1 - low] * 2)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/preferences", {"prompt": "p", "responses": ["a"]}, "responses: 1 of them; a response is compared"),
        ("/preferences", {"prompt": "p", "responses": []}, "responses: 0 of them"),
        ("/preferences", {"prompt": "p", "responses": ["a"] * 5}, "responses: 5 of them; at most 4"),
        (
            "/preferences",
            {"prompt": "p", "responses": "ab"},
            "responses: it must be an array of texts, not a string",
        ),
        (
            "/preferences",
            {"prompt": "p", "responses": ["a", 1]},
            r"responses\[1\]: it must be a text, not a number",
        ),
        ("/preferences", {"prompt": "p", "responses": ["a", None]}, r"responses\[1\]: .* not null"),
        (
            "/preferences",
            {"prompt": "p", "responses": ["a", "a" * 51]},
            r"responses\[1\]: 51 characters; at most 50",
        ),
        ("/preferences", {"prompt": "p" * 51, "responses": ["a", "b"]}, "prompt: 51 characters"),
        ("/preferences", {"prompt": "p", "responses": ["a", "\ud800"]}, r"responses\[1\]: .*surrogate"),
        ("/preferences", {"prompt": "", "responses": ["a", "b"]}, "prompt: the prompt is empty"),
        ("/preferences", {"prompt": 1, "responses": ["a", "b"]}, "prompt: a prompt is a string or a list"),
        ("/preferences", {"prompt": [{"role": "x", "content": "p"}], "responses": ["a", "b"]}, "role 'x'"),
        ("/preferences", {"responses": ["a", "b"]}, "prompt: missing"),
        ("/preferences", {"prompt": "p", "response": ["a", "b"]}, "'response': there is no such field"),
        ("/preferences", ["a"], "must be a JSON object, not an array"),
        ("/rewards", {"prompts": ["p"], "completions": ["a", "b"]}, "completions: 2 for 1 prompts"),
        ("/rewards", {"prompts": ["p"] * 2, "completions": ["a", "b"], "group_size": "2"}, "group_size: '2'"),
        (
            "/rewards",
            {"prompts": ["p"] * 2, "completions": ["a", "b"], "group_size": True},
            "group_size: True",
        ),
        ("/rewards", {"prompts": ["p"] * 5, "completions": ["a"] * 5}, "5 for one prompt, and at most 4"),
        ("/rewards", {"prompts": ["p"], "completions": [["a"]]}, r"completions\[0\]: a response is a text"),
        ("/verify", {"response": {"output": []}}, "responses_create_params: missing"),
        (
            "/verify",
            {"responses_create_params": {"input": "p"}, "response": []},
            "response: it must be an object",
        ),
        (
            "/verify",
            {"responses_create_params": {"input": "p"}, "response": {"output": "x"}},
            "response.output: it must be an array of objects",
        ),
        (
            "/verify",
            {"responses_create_params": {"input": [{"type": "function_call"}]}, "response": {"output": []}},
            r"input\[0\]: 'function_call' cannot be shown",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(started, longer, path, body, message):
    client = started(longer, Limits(responses=4, characters=50, body=2_000), cohort=2)
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert re.search(message, answer.json()["problem"]), answer.json()
    assert longer.calls == []


def test_bodies_that_are_no_json_and_strangers(started, longer):
    client = started(longer, Limits(body=2_000), key="secret")
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}

    def asked(content, path="/preferences", **changes):
        changed = {name.replace("_", "-"): value for name, value in changes.items()}
        return client.post(path, content=content, headers={**headers, **changed})

    question = json.dumps(QUESTION)
    assert asked(question).status_code == 200
    assert (answer := asked("{")).status_code == 400 and "not JSON" in answer.json()["problem"]
    assert (answer := asked(b"\xff")).status_code == 400 and "not JSON" in answer.json()["problem"]
    assert (answer := asked("[" * 1999)).status_code == 400 and "deeply" in answer.json()["problem"]
    assert (answer := asked(" " * 2001)).status_code == 413 and "2,000 bytes" in answer.json()["problem"]
    assert asked(question, content_type="text/plain").status_code == 415
    assert asked(question, origin="http://127.0.0.1:8766").status_code == 403
    for authorization in ("", "Bearer", "Bearer wrong", "Basic secret", "Bearer s\xe9cret"):
        answer = client.post(
            "/preferences",
            content=question,
            headers={"content-type": "application/json", "authorization": authorization.encode("latin-1")},
        )
        assert answer.status_code == 401 and "secret" not in answer.text
    assert (answer := asked(question, path="/x")).status_code == 404 and "no such path" in answer.json()[
        "problem"
    ]
    assert client.get("/preferences", headers=headers).status_code == 405
    assert client.get("/").status_code == 401
    answer = asked(question, path="/verify")
    assert answer.status_code == 409 and "--cohort" in answer.json()["problem"]


def test_an_oracle_that_fails_fails_its_own_question_alone(started, longer):
    told = []
    client = started(longer, say=told.append)
    longer.fails_on = "bad"
    longer.may_answer.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/preferences", json={**QUESTION, "prompt": "first"})
        while not longer.calls:
            time.sleep(0.01)
        prompts = ["a", "bad", "b"]
        others = [pool.submit(client.post, "/preferences", json={**QUESTION, "prompt": p}) for p in prompts]
        while client.get("/").json()["waiting"]["prompts"] < 4:
            time.sleep(0.01)
        longer.may_answer.set()
        assert first.result().status_code == 200
        assert [other.result().status_code for other in others] == [200, 502, 200]
    assert "broken at bad" in others[1].result().json()["problem"]
    assert len(told) == 1 and "broken at bad" in told[0]
    assert sorted(longer.calls[1]) == ["a", "b", "bad"]  # what waited was asked at once, and then one by one


def test_an_answer_that_is_no_matrix_and_an_error_of_the_program(started):
    class Strange:
        answer = np.full((1, 3, 3), 0.9)

        def compare(self, prompts, responses):
            if self.answer is None:
                raise KeyError("a bug")
            return self.answer

    strange, told = Strange(), []
    client = started(strange, say=told.append)
    answer = client.post("/preferences", json=QUESTION)
    assert answer.status_code == 502 and "P[0, 0] = 0.9" in answer.json()["problem"]
    strange.answer = None
    answer = client.post("/preferences", json=QUESTION)
    assert (
        answer.status_code == 500
        and "Traceback" not in answer.text
        and "a KeyError" in answer.json()["problem"]
    )
    assert len(told) == 2


def test_more_than_may_wait_is_refused_and_may_come_again(started, longer):
    client = started(longer, Limits(waiting=2))
    longer.may_answer.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/preferences", json=QUESTION) for _ in range(2)]
        while client.get("/").json()["waiting"]["prompts"] < 2:
            time.sleep(0.01)
        refused = client.post("/preferences", json=QUESTION)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert "--max-waiting" in refused.json()["problem"]
        longer.may_answer.set()
        assert [answer.result().status_code for answer in asked] == [200, 200]
    assert client.post("/preferences", json=QUESTION).status_code == 200


def rollout(text, rollout=None, task=7, **extra):
    """A request to verify as NeMo-Gym's simple_agent sends it, with a thought and a call of a tool before the answer."""
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "Say a word."}], "tools": []},
        "response": {
            "id": "r",
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thinking of words"}]},
                {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
                message,
            ],
        },
        "_ng_task_index": task,
        "_ng_rollout_index": rollout,
        **extra,
    }


def test_a_cohort_is_verified_when_it_is_complete(started, longer):
    client = started(longer, cohort=3)
    assert client.post("/seed_session", json={}).json() == {}
    with ThreadPoolExecutor(4) as pool:
        bodies = [rollout(text, n, dataset="example") for n, text in enumerate(QUESTION["responses"])]
        answers = list(pool.map(lambda body: client.post("/verify", json=body).json(), bodies))
    np.testing.assert_allclose([answer.pop("reward") for answer in answers], RATES)
    assert answers == bodies and longer.calls == [["Say a word."]]


def test_who_sends_a_response_again_does_not_count_twice(started, longer):
    client = started(longer, cohort=2)
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(client.post, "/verify", json=rollout("a", 0)) for _ in range(2)]
        while client.get("/").json()["waiting"]["responses_of_incomplete_cohorts"] < 1:
            time.sleep(0.01)
        time.sleep(0.1)
        other_task = pool.submit(client.post, "/verify", json=rollout("a", 1, task=8))
        assert not first[0].done() and not other_task.done()
        last = client.post("/verify", json=rollout("aa", 1)).json()["reward"]
        client.post("/verify", json=rollout("aa", 0, task=8))
        rewards = [answer.result().json()["reward"] for answer in (*first, other_task)]
    assert rewards == [pytest.approx(1 - last)] * 3


def test_a_cohort_that_is_not_completed_ends_with_a_word_and_leaves_nothing(started, longer):
    client = started(longer, Limits(waiting=1), cohort=3, cohort_seconds=0.3)
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(client.post, "/verify", json=rollout("a", 0))
        while client.get("/").json()["waiting"]["responses_of_incomplete_cohorts"] < 1:
            time.sleep(0.01)
        full = client.post("/verify", json=rollout("b", 1))
    assert full.status_code == 503 and "--max-waiting" in full.json()["problem"]
    assert late.result().status_code == 504
    assert "only 1 of the 3 responses" in late.result().json()["problem"]
    assert client.get("/").json()["waiting"]["responses_of_incomplete_cohorts"] == 0


def test_a_cohort_shares_the_failure_of_its_oracle_and_the_next_one_is_its_own():
    calls = []

    async def compare(prompt, responses):
        calls.append(responses)
        if len(calls) == 1:
            raise OracleError("broken")
        await asyncio.sleep(0.2)  # longer than a response may wait for others
        return [0.25, 0.75]

    async def play():
        cohorts = Cohorts(2, 0.1, 10, compare)
        failed = await asyncio.gather(
            *(cohorts.reward("key", None, "p", text) for text in "ab"), return_exceptions=True
        )
        assert [str(error) for error in failed] == ["broken"] * 2
        first = [asyncio.create_task(cohorts.reward("key", None, "p", text)) for text in "ab"]
        await asyncio.sleep(0.05)
        alone = asyncio.create_task(cohorts.reward("key", None, "p", "c"))
        assert await asyncio.gather(*first) == [0.25, 0.75]
        with pytest.raises(RefusedRequest, match="only 1 of the 2"):
            await alone
        ending = asyncio.create_task(cohorts.reward("key", None, "p", "d"))
        await asyncio.sleep(0)
        cohorts.close()
        with pytest.raises(RefusedRequest, match="is ending"):
            await ending
        assert cohorts.waiting == 0

    asyncio.run(play())


def judge(path, body):
    """Prefers the longer answer, as far as its words say."""
    a, b = (
        body["messages"][-1]["content"].split(f"[answer {name}]\n")[1].split("\n[end")[0] for name in "AB"
    )
    letter = "A" if len(a) > len(b) else "B"
    top = [{"token": letter, "logprob": -0.1}]
    return said(letter, logprobs={"content": [{"token": letter, "logprob": -0.1, "top_logprobs": top}]})


@pytest.mark.slow
def test_a_served_run_asks_its_judge_once_and_its_key_is_never_shown(tmp_path, monkeypatch):
    """The command, in a process of its own: its answers are kept with the run's, and outlive it."""
    monkeypatch.setenv("JUDGE_KEY", "sk-hidden")
    answers = [judge]
    with serve(lambda path, body: answers[-1](path, body)) as server:
        endpoint = {"url": server.url, "model": "judge", "api_key_env": "JUDGE_KEY", "retries": 0}
        run = tmp_path / "run"
        write_run(run, recipe={**RECIPE, "oracle": {"type": "judge", "endpoint": endpoint}})
        with Serving(run) as url:
            rates = post(f"{url}/preferences", QUESTION)[1]["win_rates"]
        assert rates[1] > rates[2] > rates[0] and len(server.asked) == 6
        assert (run / "answers.sqlite").is_file()
        answers.append(lambda path, body: Reply({"error": {"message": "wrong key sk-hidden"}}, 401))
        with Serving(run) as url:
            assert post(f"{url}/preferences", QUESTION)[1]["win_rates"] == rates
            status, failed = post(f"{url}/preferences", {**QUESTION, "prompt": "Another."})
    assert status == 502 and "401" in failed["problem"] and "sk-hidden" not in failed["problem"]


def post(url, body):
    """The status and the JSON of an answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Serving:
    """`sppo oracle serve` as a process, which is interrupted at the end."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo", "oracle", "serve", *map(str, words), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )

    def __enter__(self):
        said_ = ""
        while not said_.endswith("}\n"):
            said_ += (line := self.process.stdout.readline())
            assert line, self.process.stderr.read()
        return json.loads(said_)["address"]

    def __exit__(self, *error):
        self.process.send_signal(signal.SIGINT)
        _, complaints = self.process.communicate(timeout=30)
        assert "Traceback" not in complaints and "sk-hidden" not in complaints
        assert self.process.returncode == 0, complaints


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("panel --cohort 65", "--cohort 65: it is more than --max-responses 64"),
        ("panel --api-key-env NOT_THERE", "--api-key-env NOT_THERE: there is no such variable"),
        ("panel --host 203.0.113.1", "--host 203.0.113.1 --port 8766"),
        ("panel --held-out", "panel is no run"),
        ("{type: function, function: 'a:b', text: chat}", "there is no policy; serve a run"),
        ("{type: function, function: 'not_there:b'}", "module 'not_there' cannot be imported"),
    ],
)
def test_what_cannot_be_served(words, message):
    words = words.split() if words.startswith("panel") else [words]
    done = CliRunner().invoke(app, ["oracle", "serve", *words], env={"COLUMNS": "300"})
    assert done.exit_code == 1 and message in done.output
