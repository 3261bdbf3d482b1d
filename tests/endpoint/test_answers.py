"""The validation of a server's answers, the same for every client, and the end of a thought."""

import json

import pytest
from chat_server import Reply, said, serve

from sppo.endpoint.exchange import EndpointError, after_thought, chat, completion, parse_answer

QUESTION = chat([{"role": "user", "content": "x"}])


def with_logprobs(**first):
    return said("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": [], **first}]})


def changed(**fields):
    reply = said("A")
    reply.body |= fields
    return reply


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        (with_logprobs(logprob=None), r"choices\.0\.logprobs\.content\.0\.logprob: "),
        (
            with_logprobs(logprob=float("nan")),
            r"logprobs\.content\.0\.logprob: .*nan is not a log-probability",
        ),
        (with_logprobs(logprob=0.5), r"0\.5 is not a log-probability, which is a number of at most 0"),
        (with_logprobs(logprob="-0.1"), r"logprobs\.content\.0\.logprob: "),
        (with_logprobs(logprob=True), r"logprobs\.content\.0\.logprob: "),
        (with_logprobs(token=7), r"logprobs\.content\.0\.token: "),
        (
            with_logprobs(top_logprobs=[{"token": "A", "logprob": float("inf")}]),
            r"top_logprobs\.0\.logprob: .*inf is not",
        ),
        (with_logprobs(top_logprobs=[{"token": "A"}]), r"top_logprobs\.0\.logprob: Field required"),
        (with_logprobs(top_logprobs=[None]), r"top_logprobs\.0: "),
        (said("A", logprobs=[]), r"choices\.0\.logprobs: "),
        (said("A", logprobs={"content": {}}), r"choices\.0\.logprobs\.content: "),
        (said("A", message=None), r"choices\.0\.message: missing"),
        (said("A", message="A"), r"choices\.0\.message: "),
        (said("A", message={"content": 7}), r"choices\.0\.message\.content: "),
        (changed(choices=None), "choices: "),
        (changed(choices=[]), "choices: "),
        (changed(choices={"0": {}}), "choices: "),
        (Reply(b'{"choices": ' + b"[" * 100_000), "not JSON"),
        (Reply(b'{"choices": ' + b'{"a":' * 100_000), "not JSON"),
        (Reply(b"\xff\xfe\x00"), "not JSON"),
        (Reply(b"1" * 10_000), "not JSON"),
        (Reply(b""), "not JSON"),
    ],
)
def test_a_malformed_answer_is_refused_with_the_name_of_its_field(endpoint, reply, field):
    with serve(lambda path, body: reply) as server:
        with pytest.raises(EndpointError, match=f"answers nonsense: .*{field}"):
            endpoint(server, retries=0).ask([QUESTION])
        server.answer = lambda path, body: said("whole")
        assert endpoint(server).ask([QUESTION])[0].choices[0].said == "whole"  # the other was not kept


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "x", "logprobs": {"token_logprobs": [None]}},
        {"text": "x", "logprobs": {"token_logprobs": [float("nan")]}},
        {"text": "x", "logprobs": {"token_logprobs": [0.01]}},
        {"text": None},
        {"message": {"content": "x"}},
    ],
)
def test_a_malformed_completion_is_refused(endpoint, choice):
    with (
        serve(lambda path, body: Reply({"choices": [choice]})) as server,
        pytest.raises(EndpointError, match=r"answers nonsense: choices\.0\."),
    ):
        endpoint(server, retries=0).ask([completion([1, 2])])


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": "many"},
        {"usage": {"prompt_tokens": 1}},
        {"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 1}},
        {"model": 7},
        {"system_fingerprint": ["a"]},
        {"something": {"new": [1, 2]}},
    ],
)
def test_what_only_describes_an_answer_does_not_spoil_it(endpoint, fields):
    with serve(lambda path, body: changed(**fields)) as server:
        (answer,) = endpoint(server, retries=0).ask([QUESTION])
    assert answer.choices[0].said == "A"
    assert answer.tokens == ((0, 0) if "usage" in fields else (7, 3))


def test_contents_in_parts_and_thoughts_in_fields_of_their_own():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "[[A]]"}]},
        {"type": "text", "text": "[["},
        {"type": "text", "text": "B]]"},
    ]
    answer = parse_answer(json.dumps(said("", message={"content": parts}).body), "chat/completions")
    assert answer.choices[0].conclusion == "[[B]]"
    for field in ("reasoning", "reasoning_content", "thinking"):
        message = {"content": None, field: "I must end with [[A]]"}
        answer = parse_answer(json.dumps(said("", message=message).body), "chat/completions")
        assert answer.choices[0].conclusion == ""


def test_halves_of_surrogate_pairs_are_replaced(endpoint):
    with serve(lambda path, body: said("m\ud83d")) as server:
        assert endpoint(server).ask([QUESTION])[0].choices[0].said == "m?"
        assert endpoint(server).ask([QUESTION])[0].choices[0].said == "m?"
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("no thought", "no thought"),
        ("<think>[[A]] if so</think>[[B]]", "[[B]]"),
        ("the template began the thought: [[A]]</think>\n[[B]]", "\n[[B]]"),
        ("<think>one</think> <think>two</think>three", "three"),
        ('<think>it writes "</think>[[A]]"</think>[[B]]', "[[B]]"),
        ("<THINK>x</Think>y", "y"),
        ("<thinking>x</thinking>y", "y"),
        ("<thought>x</thought>y", "y"),
        ("<reasoning>x</reasoning>y", "y"),
        ("[THINK]x[/THINK]y", "y"),
        ("<seed:think>x</seed:think>y", "y"),
        ("<|begin_of_thought|>x<|end_of_thought|>y", "y"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y", "y"),
        ("◁think▷x◁/think▷y", "y"),
        ("<think>[[A]] if, [[B]] if, [[C]] if", None),
        ("<think>closed</think> <think>[[C]] open", None),
        ("[THINK]open [[A]]", None),
        ("<|channel|>analysis<|message|>open [[A]]", None),
        ("<thinking>open", None),
        ("", ""),
    ],
)
def test_the_end_of_a_thought(text, conclusion):
    assert after_thought(text) == conclusion
