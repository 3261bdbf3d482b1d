import asyncio
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from chat_server import Reply, said, serve

from sppo import oracle
from sppo.endpoint.cache import AnswerCache, AnswerCacheError
from sppo.endpoint.client import Endpoint
from sppo.endpoint.exchange import BudgetError, EndpointError, chat, completion
from sppo.oracle import OracleError
from sppo.recipe import EndpointConfig, RecipeError, parse_endpoint


def echo(path, body):
    return said(body["messages"][-1]["content"].upper())


def ask(text, **settings):
    return chat([{"role": "user", "content": text}], **settings)


def texts(answers):
    return [answer.choices[0].said for answer in answers]


# asking


def test_answers_come_in_the_order_of_the_requests_and_are_counted(endpoint):
    with serve(echo) as server:
        of = endpoint(server)
        seen = []
        found = of.ask([ask(f"a{n}", temperature=0.5) for n in range(40)], seen.append)
    assert texts(found) == [f"A{n}" for n in range(40)]
    assert sum(seen) == 40
    assert (of.usage.requests, of.usage.cached, of.usage.retries) == (40, 0, 0)
    assert (of.usage.prompt_tokens, of.usage.completion_tokens, of.usage.tokens) == (280, 120, 400)
    assert server.asked[0]["model"] == "judge"
    assert server.asked[0]["temperature"] == 0.5


def test_as_many_are_on_their_way_as_the_limit_says(endpoint):
    def slow(path, body):
        time.sleep(0.05)
        return echo(path, body)

    with serve(slow) as server:
        endpoint(server, concurrency=4).ask([ask(str(n)) for n in range(12)])
    assert server.most == 4


def test_the_next_batch_is_begun_while_the_last_answer_of_a_batch_is_missing(endpoint):
    next_has_begun = threading.Event()
    seen_meanwhile = []

    def answer(path, body):
        text = body["messages"][0]["content"]
        if text == "a0":
            seen_meanwhile.append(next_has_begun.wait(10))
        elif text.startswith("b"):
            next_has_begun.set()
        return echo(path, body)

    batches = [[ask(name + str(n)) for n in range(3)] for name in "ab"]
    with serve(answer) as server:
        of, counted = endpoint(server, concurrency=2), []
        found = {number: texts(answers) for number, answers in of.stream([*batches, []], counted.append)}
    assert seen_meanwhile == [True]
    assert found == {0: ["A0", "A1", "A2"], 1: ["B0", "B1", "B2"], 2: []}
    assert sum(counted) == 6
    assert server.most == 2


def test_a_failure_in_one_batch_loses_no_answer_of_another(endpoint):
    failed = threading.Event()

    def answer(path, body):
        text = body["messages"][0]["content"]
        if text == "b":
            failed.set()
            return Reply({"error": "no"}, status=401)
        failed.wait(10)
        return echo(path, body)

    with serve(answer) as server:
        of = endpoint(server, concurrency=2, retries=0)
        with pytest.raises(EndpointError, match="401"):
            list(of.stream([[ask("a")], [ask("b")], [ask("c")]]))
        assert texts(of.ask([ask("a")])) == ["A"]
    assert sorted(body["messages"][0]["content"] for body in server.asked) == ["a", "b"]


def test_completions_take_token_ids_and_give_log_probabilities(endpoint):
    logprobs = {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -0.5}], "text_offset": [0]}

    def complete(path, body):
        assert path == "/v1/completions"
        return Reply({"choices": [{"index": 0, "text": str(sum(body["prompt"])), "logprobs": logprobs}]})

    with serve(complete) as server:
        (answer,) = endpoint(server, extra_body={"top_k": 5}).ask([completion([1, 2, 3], logprobs=1, seed=7)])
    assert answer.choices[0].said == "6"
    assert answer.choices[0].logprobs.token_logprobs == [-0.5]
    assert server.asked == [{"model": "judge", "prompt": [1, 2, 3], "logprobs": 1, "seed": 7, "top_k": 5}]


def test_it_can_be_asked_from_inside_a_loop(endpoint):
    async def inside(of):
        return of.ask([ask("x")])

    with serve(echo) as server:
        assert texts(asyncio.run(inside(endpoint(server)))) == ["X"]


def test_nothing_asked_nothing_answered(endpoint):
    assert endpoint("http://127.0.0.1:9/v1").ask([]) == []


# the cache


def test_a_second_time_costs_nothing(endpoint):
    with serve(echo) as server:
        endpoint(server).ask([ask("a"), ask("b")])
        again = endpoint(server)
        assert texts(again.ask([ask("b"), ask("c"), ask("a"), ask("c")])) == ["B", "C", "A", "C"]
    assert len(server.asked) == 3
    assert (again.usage.requests, again.usage.cached) == (1, 2)


def test_what_makes_another_question(endpoint):
    with serve(echo) as server:
        first = endpoint(server)
        first.ask([ask("a"), ask("a", draw=1), ask("a", seed=1), ask("a", temperature=0.0)])
        endpoint(server, revision="second").ask([ask("a")])
        endpoint(server, extra_body={"top_k": 1}).ask([ask("a")])
        assert len(server.asked) == 6
        endpoint(server, concurrency=2, timeout_seconds=9).ask([ask("a")])
        assert len(server.asked) == 6
    with serve(echo) as elsewhere:  # the same model at another address
        endpoint(elsewhere).ask([ask("a")])
        assert elsewhere.asked == []


def test_answers_before_a_failure_are_kept(endpoint):
    def fails_at_5(path, body):
        return (
            Reply({"error": {"message": "broken"}}, 500)
            if body["messages"][0]["content"] == "5"
            else echo(path, body)
        )

    requests = [ask(str(n)) for n in range(10)]
    with serve(fails_at_5) as server:
        with pytest.raises(EndpointError, match=r"model 'judge', fails \(500: broken; 0 retries\)") as caught:
            endpoint(server, concurrency=1, retries=0).ask(requests)
        assert caught.value.request_index == 5
        server.answer = echo
        again = endpoint(server)
        again.ask(requests)
    assert (again.usage.cached, again.usage.requests) == (5, 5)


def _ask_some(url, cache, numbers):
    Endpoint(EndpointConfig(url=url, model="judge", cache=str(cache))).ask([ask(str(n)) for n in numbers])


def _start(url, cache, first, last):
    code = (
        "import sys\nfrom sppo.endpoint.client import Endpoint\nfrom sppo.endpoint.exchange import chat\nfrom sppo.recipe import EndpointConfig\n"
        "url, cache, first, last = sys.argv[1:]\n"
        "of = Endpoint(EndpointConfig(url=url, model='judge', concurrency=2, cache=cache))\n"
        "of.ask([chat([{'role': 'user', 'content': str(n)}]) for n in range(int(first), int(last))])\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, url, str(cache), str(first), str(last)])


def test_several_processes_share_a_cache(tmp_path):
    cache = tmp_path / "answers.sqlite"
    with serve(echo) as server:
        processes = [_start(server.url, cache, *numbers) for numbers in ((0, 60), (30, 90))]
        assert [process.wait(60) for process in processes] == [0, 0]
        count = len(server.asked)
        _ask_some(server.url, cache, range(90))
        assert len(server.asked) == count
        with AnswerCache(cache) as answers:
            assert answers.spent('["judge", null]') == 10 * count


def test_a_kill_loses_only_what_was_on_its_way(tmp_path):
    cache = tmp_path / "answers.sqlite"

    def slow(path, body):
        time.sleep(0.02)
        return echo(path, body)

    with serve(slow) as server:
        process = _start(server.url, cache, 0, 100)
        while len(server.asked) < 40:
            time.sleep(0.01)
        process.kill()
        process.wait()
        asked = len(server.asked)
        assert asked < 100
        server.answer = echo
        _ask_some(server.url, cache, range(100))
        # two on their way at 20 ms each, for the 50 ms before they are written, and one that came in meanwhile
        assert len(server.asked) <= 100 + 2 * 4 + 1


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"hello" * 1000)
    with pytest.raises(AnswerCacheError, match=r"x\.sqlite: file is not a database; .* move it away"):
        Endpoint(EndpointConfig(url="http://127.0.0.1:9/v1", model="m", cache=str(tmp_path / "x.sqlite")))


def test_questions_with_lone_surrogates_and_long_texts_are_kept(tmp_path):
    with AnswerCache(tmp_path / "a") as answers:
        answers.put("\ud800", "first", "m", 1)
        answers.put("x" * 100_000, "y" * 100_000, "m", 2)
        answers.flush()
        assert answers.get(["\ud800", "x" * 100_000, *map(str, range(2000))]) == {
            "\ud800": "first",
            "x" * 100_000: "y" * 100_000,
        }
        assert (answers.spent("m"), answers.spent("n")) == (3, 0)


def test_a_damaged_number_of_spent_tokens_is_noticed(tmp_path):
    with AnswerCache(tmp_path / "a") as answers:
        answers.put("x", "y", "m", 2)
    with sqlite3.connect(tmp_path / "a") as file:
        file.execute("UPDATE checked_spent SET tokens = 1")
    file.close()
    with AnswerCache(tmp_path / "a") as answers:
        answers.put("z", "y", "m", 2)
        answers.flush()
        with pytest.raises(AnswerCacheError, match="that its answers have cost is damaged"):
            answers.spent("m")


# the budget


def test_a_budget_stops_before_more_is_paid_and_restarts_do_not_renew_it(endpoint):
    requests = [ask(str(n)) for n in range(10)]
    with serve(echo) as server:
        for _ in range(2):
            with pytest.raises(
                BudgetError, match=r"30 tokens are spent of token_budget: 25; raise it .* are kept"
            ):
                endpoint(server, concurrency=1, token_budget=25).ask(requests)
            assert len(server.asked) == 3  # 10 tokens each
        assert texts(endpoint(server, token_budget=25).ask(requests[:3])) == ["0", "1", "2"]
        endpoint(server, token_budget=1000).ask(requests)
        assert len(server.asked) == 10


def test_a_server_that_counts_no_tokens_cannot_be_held_to_a_budget(endpoint):
    def uncounted(path, body):
        reply = echo(path, body)
        del reply.body["usage"]
        return reply

    with serve(uncounted) as server:
        with pytest.raises(EndpointError, match="token_budget cannot be kept"):
            endpoint(server, token_budget=100).ask([ask("a")])
        of = endpoint(server)
        of.ask([ask("a")])
        assert of.usage.tokens == 0


# servers that misbehave


def fails_first(times, reply):
    left = [times]

    def answer(path, body):
        left[0] -= 1
        return reply if left[0] >= 0 else echo(path, body)

    return answer


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply({"error": {"message": "slow down"}}, 429, Retry_After="1"), 1.0),
        (Reply({"error": {"message": "oops"}}, 500), 0.3),
        (Reply(b"<html>Bad Gateway</html>", 502), 0.3),
        (Reply(b'{"choices": [', 200), 0.3),
        (Reply({"choices": []}, 200), 0.3),
        (Reply({"hello": 1}, 200), 0.3),
        (Reply([], 200), 0.3),
    ],
)
def test_what_goes_by_is_asked_again(endpoint, reply, seconds):
    with serve(fails_first(1, reply)) as server:
        of = endpoint(server)
        begin = time.perf_counter()
        assert texts(of.ask([ask("a")])) == ["A"]
        assert time.perf_counter() - begin >= seconds
    assert (of.usage.requests, of.usage.retries) == (1, 1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply({"error": {"message": "Bad key secret-key"}}, 401),
            r"refuses access \(401: Bad key \*\*\*\); check",
        ),
        (
            Reply({"detail": "no such model"}, 404),
            r"is not there \(404: no such model\); it offers: judge, other",
        ),
        (Reply({"error": {"message": "unknown field"}}, 400), r"refuses the request \(400: unknown field\)"),
        (
            Reply({"error": {"message": "wait"}}, 429),
            r"takes no more for now \(429: wait; 0 retries\); lower conc",
        ),
        (
            Reply({"error": {"message": "x"}}, 429, Retry_After="1000"),
            "start again later. All answers so far",
        ),
        (Reply(b"<html>", 503), r"fails \(503: <html>; 0 retries\)"),
        (Reply(b"[1, 2", 200), r"answers nonsense: not JSON: '\[1, 2'; is http"),
        (Reply({"choices": None}, 200), "answers nonsense: choices: Input should be a valid list:"),
        (Reply({"choices": [{"text": "x"}]}, 200), "nonsense: choices.0.message: missing:"),
        (Reply({"choices": [3]}, 200), "nonsense: choices.0: Input should be a valid dict"),
        (said("a", "b"), "gives 2 choices where n = 1 were asked for; use n = 1"),
    ],
)
def test_what_stays_is_an_error_with_a_way_out(endpoint, monkeypatch, reply, message):
    monkeypatch.setenv("SOME_KEY", "secret-key")
    with serve(lambda path, body: reply) as server:
        with pytest.raises(EndpointError, match=message) as caught:
            endpoint(server, retries=0, api_key_env="SOME_KEY").ask([ask("a")])
        assert server.url in str(caught.value)
        assert "'judge'" in str(caught.value)
        assert "secret-key" not in str(caught.value)
        assert server.headers[0]["authorization"] == "Bearer secret-key"


def test_a_server_without_a_list_of_models(endpoint):
    with serve(lambda path, body: Reply({"detail": "Not Found"}, 404)) as server:
        server.models = []
        with pytest.raises(EndpointError, match="it lists no models either: the url needs the path"):
            endpoint(server).ask([ask("a")])


def test_a_server_that_stalls(endpoint):
    def stalls(path, body):
        return Reply({}, seconds=1.0)

    with serve(stalls) as server:
        with pytest.raises(
            EndpointError, match=r"has not answered within 0\.1 s \(1 retries\); raise timeout_seconds"
        ):
            endpoint(server, timeout_seconds=0.1).ask([ask("a")])
        assert len(server.asked) == 2


def test_nobody_listens(endpoint):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"cannot be reached \(0 retries\): .*is the server running"):
            endpoint(url, retries=0).ask([ask("a")])


# the configuration


def test_a_key_that_is_not_there(endpoint, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(
        EndpointError, match="the environment variable NO_SUCH_KEY is not set; export the key of http"
    ):
        endpoint("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "localhost:8000"}, "url: must be a URL like http://localhost:8000/v1"),
        ({"url": "https://me:hunter2@host/v1"}, "url: must contain no password"),
        ({"api_key_env": "sk-hunter2"}, "api_key_env: must be the name of an environment variable"),
        ({"api_key_env": "gsk_hunter2"}, "api_key_env: must be the name of an environment variable"),
        ({"concurency": 3}, "did you mean `concurrency`"),
        ({"token_budget": 0}, "token_budget: must be greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_and_no_secret_is_shown(wrong, message):
    with pytest.raises(RecipeError) as caught:
        parse_endpoint({"url": "http://localhost/v1", "model": "m", **wrong})
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


# a real server


@pytest.mark.slow
def test_a_real_server_answers_and_refuses(real_server, endpoint):
    url, model = real_server
    of = endpoint(url, model=model)
    settings = {"max_tokens": 4, "temperature": 0.0}
    found = of.ask([ask("Hello", **settings), completion("Hello, how", **settings), ask("Hello", **settings)])
    assert found[0].choices[0].message is not None
    assert found[1].choices[0].text is not None
    assert found[2] == found[0]
    assert of.usage.requests == 2
    assert of.usage.prompt_tokens > 10
    assert 2 <= of.usage.completion_tokens <= 8
    assert endpoint(url, model=model).ask([ask("Hello", **settings)]) == found[:1]
    with pytest.raises(EndpointError, match=r"model '/no/such/model', "):
        endpoint(url, model="/no/such/model").ask([ask("Hello")])
    with pytest.raises(EndpointError, match=r"refuses the request \(4\d\d: .*n|gives 1 choices where n = 2"):
        of.ask([ask("Hello", n=2, **settings)])


@pytest.mark.slow
def test_a_judge_behind_a_real_server_says_what_it_lacks(real_server, tmp_path):
    """This server gives no log-probabilities, and this model no verdicts."""
    url, model = real_server
    address = {"url": url, "model": model, "retries": 0, "cache": str(tmp_path / "answers.sqlite")}
    with pytest.raises(OracleError, match=r"gives no log-probabilities; set oracle\.verdict: samples"):
        oracle.load({"type": "judge", "endpoint": address}).compare(["Hello"], [["a", "b"]])
    settings = {
        "type": "judge",
        "endpoint": address,
        "verdict": "samples",
        "max_tokens": 3,
        "parse_retries": 1,
    }
    judge = oracle.load(settings)
    with pytest.raises(
        OracleError, match="gives no verdict that can be read on responses 0 and 1 in either order"
    ):
        judge.compare(["Hello"], [["a", "b"]])
    assert judge.counts["unreadable_verdicts"] == 4
    assert judge.counts["completion_tokens"] <= 12
