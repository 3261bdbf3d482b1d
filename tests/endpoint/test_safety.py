"""A server that is not to be trusted, and a file of answers that has been damaged."""

import gzip
import json
import random
import re
import sqlite3
import time
import zlib

import pytest
from chat_server import Reply, said, serve

from sppo.endpoint import server as servers
from sppo.endpoint.cache import AnswerCache, AnswerCacheError
from sppo.endpoint.client import Endpoint
from sppo.endpoint.exchange import EndpointError, chat
from sppo.recipe import EndpointConfig, RecipeError, parse_endpoint

KEY = "sk-very/secret-1234"


def ask(text="x", **settings):
    return chat([{"role": "user", "content": text}], **settings)


# the API key


def echo_plainly(path, body):
    return said(f"your key is {KEY}", reasoning=KEY)


def echo_escaped(path, body):
    content = json.dumps(said("your key is KEY").body).replace("KEY", KEY.replace("/", "\\/"))
    return Reply(content.encode())


def echo_in_unicode_escapes(path, body):
    content = json.dumps(said("your key is KEY").body)
    return Reply(content.replace("KEY", "".join(f"\\u{ord(letter):04x}" for letter in KEY)).encode())


def echo_packed(path, body):
    content = json.dumps(said(f"your key is {KEY}").body).encode()
    return Reply(gzip.compress(content), Content_Encoding="gzip")


@pytest.mark.parametrize("answer", [echo_plainly, echo_escaped, echo_in_unicode_escapes, echo_packed])
def test_a_key_that_a_server_repeats_is_masked_before_it_is_read_or_stored(
    endpoint, tmp_path, monkeypatch, answer
):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(answer) as server:
        for _ in range(2):  # from the server, and from the disk
            (found,) = endpoint(server, api_key_env="SOME_KEY").ask([ask()])
            assert found.choices[0].said == "your key is ***"
        assert len(server.asked) == 1
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    stored = (tmp_path / "answers.sqlite").read_bytes()
    assert b"your key is ***" in stored
    assert KEY.encode() not in stored
    assert b"secret" not in stored


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"error": {"message": f"bad key {KEY}"}}, 400),
        Reply({"choices": KEY}),
        Reply(KEY.encode()),
        Reply({}, 302, Location=f"http://elsewhere/?key={KEY}"),
        Reply({"detail": KEY}, 500),
    ],
)
def test_a_key_is_in_no_error(endpoint, monkeypatch, reply):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(lambda path, body: reply) as server, pytest.raises(EndpointError) as caught:
        endpoint(server, retries=0, api_key_env="SOME_KEY").ask([ask()])
    assert "***" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "caf\xe9", "a\nb", "tab\there"])
def test_a_key_that_cannot_be_one_is_refused_unseen(endpoint, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(
        EndpointError, match="SOME_KEY holds a space or a character that no API key has"
    ) as caught:
        endpoint("http://127.0.0.1:9/v1", api_key_env="SOME_KEY")
    assert key not in str(caught.value)


# who is asked, and what is sent


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(endpoint, status):
    with serve(lambda path, body: said("stolen")) as elsewhere:
        target = f"{elsewhere.url}/chat/completions"
        with (
            serve(lambda path, body: Reply({}, status, Location=target)) as server,
            pytest.raises(EndpointError, match=f"redirects to {target}; no request is sent there"),
        ):
            endpoint(server).ask([ask()])
        assert elsewhere.asked == []


def test_organization_and_project_come_from_the_recipe_alone(endpoint, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    with serve(lambda path, body: said("A")) as server:
        endpoint(server).ask([ask()])
        assert "from-the-environment" not in str(server.headers)
        assert not {"openai-organization", "openai-project"} & server.headers[0].keys()
        endpoint(server, organization="org-1", project="proj-1").ask([ask("y")])
        assert server.headers[1]["openai-organization"] == "org-1"
        assert server.headers[1]["openai-project"] == "proj-1"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": None, "seed": None, "max_completion_tokens": 5, "top_k": 1},
        {"temperature": None},
        {"seed": None, "min_p": None},
        {"max_tokens": None, "temperature": None, "reasoning": {"effort": None}},
    ],
)
def test_a_null_in_extra_body_takes_a_key_away(endpoint, settings):
    with serve(lambda path, body: said("A")) as server:
        endpoint(server, extra_body=settings).ask([ask(max_tokens=9, seed=1, temperature=0.0)])
        (sent,) = server.asked
    del sent["messages"]
    asked = {"model": "judge", "temperature": 0.0, "max_tokens": 9, "seed": 1}
    assert sent == {key: value for key, value in {**asked, **settings}.items() if value is not None}


@pytest.mark.parametrize(
    ("message", "way_out"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            r"set extra_body: \{max_tokens: null, max_completion_tokens: 9\}",
        ),
        ("seed: Extra inputs are not permitted", r"set extra_body: \{seed: null\}"),
        ("Unsupported value: 'temperature' does not support 0.0", r"set extra_body: \{temperature: null\}"),
        ("unknown fields min_p, seed", r"set extra_body: \{seed: null, min_p: null\}"),
        ({"message": "Unknown parameter", "param": "seed"}, r"\(seed\)\); .*set extra_body: \{seed: null\}"),
        (
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "min_p"], "msg": "Extra inputs"}]},
            r"set extra_body: \{min_p: null\}",
        ),
    ],
)
def test_a_refusal_names_the_key_to_leave_out(endpoint, message, way_out):
    request = ask(max_tokens=9, seed=1, temperature=0.0, min_p=0.1)
    with (
        serve(
            lambda path, body: Reply(
                {"error": message if isinstance(message, dict) else {"message": message}}, 400
            )
        ) as server,
        pytest.raises(EndpointError, match=way_out),
    ):
        endpoint(server).ask([request])


@pytest.mark.parametrize("name", ["messages", "model", "prompt", "stream"])
def test_extra_body_leaves_the_question_as_it_is(name):
    with pytest.raises(RecipeError, match=f"extra_body: must not set {name}: every request sets its own"):
        parse_endpoint({"url": "http://x/v1", "model": "m", "extra_body": {name: None}})


# time and size


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(endpoint):
    begun = time.perf_counter()
    with serve(lambda path, body: Reply(said("A").body, pace=0.1)) as server:
        with pytest.raises(EndpointError, match=r"has not answered within 0\.5 s"):
            endpoint(server, timeout_seconds=0.5, retries=0).ask([ask()])
        assert time.perf_counter() - begun < 5


BOMB = b'{"choices": "' + b" " * (servers.MOST_BYTES + 1) + b'"}'


@pytest.mark.parametrize(
    ("content", "encoding"),
    [(gzip.compress(BOMB), "gzip"), (zlib.compress(BOMB), "deflate"), (BOMB, "identity")],
)
def test_an_answer_that_unpacks_to_more_than_the_limit_is_given_up(endpoint, content, encoding):
    with (
        serve(lambda path, body: Reply(content, Content_Encoding=encoding)) as server,
        pytest.raises(
            EndpointError, match="the answer is larger than 64 MiB; ask for fewer tokens or choices"
        ),
    ):
        endpoint(server, retries=0).ask([ask()])


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_packing_that_was_not_asked_for_is_refused(endpoint, encoding):
    with serve(lambda path, body: Reply(b"xxxx", Content_Encoding=encoding)) as server:
        with pytest.raises(
            EndpointError, match=f"answers in the encoding '{encoding}', which was not asked for"
        ):
            endpoint(server, retries=0).ask([ask()])
        assert server.headers[0]["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(b"{}" * 500)[:40]], ids=["no gzip", "truncated"]
)
def test_a_packed_answer_that_is_damaged_is_an_error(endpoint, content):
    with (
        serve(lambda path, body: Reply(content, Content_Encoding="gzip")) as server,
        pytest.raises(EndpointError, match=r"cannot be reached|answers nonsense"),
    ):
        endpoint(server, retries=0).ask([ask()])


# refusals of a single request


def error(text, status):
    return Reply({"error": {"message": text}}, status)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        *((error("content policy", status), f"refuses the request .{status}: content policy")
          for status in (400, 413, 422, 451)),
        (error("Your input was flagged by moderation", 403), "refuses the request .403: Your input was flagged"),
        (error("Blocked by the content_filter", 403), "refuses the request .403: Blocked by the content_filter"),
        (Reply({"error": {"message": "no endpoint", "code": 400}}), "choices: Field required.*no endpoint"),
        (Reply({"object": "chat.completion", "choices": []}), "choices: List should have at least 1 item"),
        (Reply({"choices": None, "promptFeedback": "SAFETY"}), "choices: Input should be a valid list.*SAFETY"),
        (
            said("A", logprobs={"content": [{"token": "A", "logprob": float("nan")}]}),
            "logprob: .*nan is not a log-probability",
        ),
    ],
)  # fmt: skip
def test_a_refused_request_can_be_answered_with_the_refusal(endpoint, refusal, words):
    def answer(path, body):
        return refusal if body["messages"][0]["content"] == "bad" else said("A")

    requests = [ask("good"), ask("bad"), ask("fine")]
    with serve(answer) as server:
        with pytest.raises(EndpointError, match=words) as caught:
            endpoint(server, retries=0).ask(requests)
        assert caught.value.is_refusal
        client = endpoint(server, retries=0)
        found = client.ask(requests, allow_refusals=True)
        assert [answer.choices[0].said for answer in found] == ["A", "", "A"]
        assert re.search(words, found[1].choices[0].refusal)
        assert client.usage.refusals == 1
        asked = len(server.asked)
        endpoint(server, retries=0).ask(requests, allow_refusals=True)
        assert len(server.asked) == asked + 1  # the refusal alone is not kept


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_other_failures_are_no_refusals(endpoint, status):
    with (
        serve(lambda path, body: error("no", status)) as server,
        pytest.raises(EndpointError) as caught,
    ):
        endpoint(server, retries=0).ask([ask()], allow_refusals=True)
    assert not caught.value.is_refusal


def test_a_page_of_another_program_is_no_refusal(endpoint):
    with (
        serve(lambda path, body: Reply(b"<html>be right back</html>")) as server,
        pytest.raises(EndpointError, match="not JSON") as caught,
    ):
        endpoint(server, retries=0).ask([ask()], allow_refusals=True)
    assert not caught.value.is_refusal


# the file of answers


def test_no_damage_of_the_file_becomes_an_answer(tmp_path):
    path = tmp_path / "answers.sqlite"
    questions = {f"question {n}": json.dumps(said(f"answer {n} {'x' * 50}").body) for n in range(40)}
    with AnswerCache(path) as cache:
        for question, answer in questions.items():
            cache.put(question, answer, "m", 1)
    whole = path.read_bytes()
    generator = random.Random(0)
    lost = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            with AnswerCache(path) as cache:
                found = cache.get(questions)
        except AnswerCacheError:
            lost += 1
            continue
        assert found.items() <= questions.items()
        lost += found != questions
    assert lost > 20  # the damage does reach answers


def test_a_damaged_answer_is_asked_for_again(endpoint, tmp_path):
    with serve(lambda path, body: said("right")) as server:
        endpoint(server).ask([ask()])
        with sqlite3.connect(tmp_path / "answers.sqlite") as file:
            file.execute("UPDATE checked_answers SET answer = replace(answer, 'right', 'wrong')")
        file.close()
        (found,) = endpoint(server).ask([ask()])
        assert found.choices[0].said == "right"
        assert len(server.asked) == 2


def test_answers_of_an_earlier_version_are_kept(endpoint, tmp_path):
    """They had no digest, and stood in a table of another name."""
    with serve(lambda path, body: said("paid for")) as server:
        endpoint(server).ask([ask()])
        with sqlite3.connect(tmp_path / "answers.sqlite") as file:
            file.execute("INSERT INTO answers SELECT question, answer FROM checked_answers")
            file.execute("DELETE FROM checked_answers")
            file.execute("INSERT INTO spent SELECT model, tokens FROM checked_spent")
            file.execute("DELETE FROM checked_spent")
        file.close()
        of = endpoint(server)
        assert of.ask([ask()])[0].choices[0].said == "paid for"
        assert len(server.asked) == 1
        with AnswerCache(tmp_path / "answers.sqlite") as answers:
            assert answers.spent(of.model_key) > 0


def test_an_answer_that_was_kept_by_a_laxer_version_is_asked_for_again(tmp_path):
    with serve(lambda path, body: said("whole")) as server:
        of = Endpoint(EndpointConfig(url=server.url, model="judge", cache=str(tmp_path / "answers.sqlite")))
        with AnswerCache(of.cache) as cache:
            cache.put(of.content(ask()), '{"choices": []}', of.model_key, 1)
        assert of.ask([ask()])[0].choices[0].said == "whole"
