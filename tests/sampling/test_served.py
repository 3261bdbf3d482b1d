"""A policy behind a server: a real one answers through its own sampler; then servers that misbehave."""

import json

import pytest
from chat_server import Reply, serve

from sppo import sampling
from sppo.endpoint.exchange import EndpointError
from sppo.policy import load as policies
from sppo.recipe import RecipeError, parse, parse_sampling
from sppo.sampling.decoding import TransformersSampler
from sppo.sampling.served import ServedSampler
from sppo.sampling.transformers import TransformersSampling
from sppo.tinyworld import POLICY

PROMPTS = [[1, 20, 30, 40], [1, 50, 60]]
KEYS = [("sample", 1, "a"), ("sample", 1, "b")]
STOPS = [5]


@pytest.fixture(scope="module")
def policy_sampler():
    model = policies.load(POLICY, dtype="float32", device="cpu")
    return TransformersSampler(model, TransformersSampling(max_new_tokens=12), STOPS)


@pytest.fixture
def answer(policy_sampler):
    """As vLLM's server answers a completion whose prompt is token ids."""

    def of(path, body, **changes):
        assert path == "/v1/completions"
        drawn = policy_sampler.sample([body["prompt"]], [(body["seed"],)], body["n"])[0]
        choices = [
            {
                "index": number,
                "text": "",
                "finish_reason": response.finish_reason,
                "token_ids": response.token_ids,
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": response.token_log_probs},
                **changes,
            }
            for number, response in enumerate(drawn)
        ]
        return Reply({"choices": choices[::-1], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    return of


@pytest.fixture
def sampler(tmp_path):
    def make(server, stop=(), **more):
        values = {"url": server.url, "model": "{policy}", "retries": 0, "cache": str(tmp_path / "answers")}
        of = parse_sampling(
            {"engine": "openai", "endpoint": {**values, **more}, "max_new_tokens": 12, "stop": list(stop)}
        )
        return sampling.load(of, POLICY, stop_ids=STOPS, decode=str, dtype="float32")

    return make


def test_the_servers_tokens_are_kept_as_they_are(sampler, answer, policy_sampler):
    with serve(answer) as server:
        of = sampler(server)
        assert isinstance(of, ServedSampler)
        counted = []
        drawn = of.sample(PROMPTS, KEYS, 3, counted.append)
    by_prompt = {tuple(body["prompt"]): body for body in server.asked}
    for prompt, responses in zip(PROMPTS, drawn):
        body = by_prompt[tuple(prompt)]
        assert responses == policy_sampler.sample([prompt], [(body["seed"],)], 3)[0]
        assert body["model"] == str(POLICY)
        assert body["n"] == 3 and body["return_token_ids"] and body["stop_token_ids"] == STOPS
    assert len({body["seed"] for body in server.asked}) == 2
    assert sum(counted) == 6


def test_what_was_answered_is_not_asked_again(sampler, answer):
    with serve(answer) as server:
        first = sampler(server).sample(PROMPTS, KEYS, 2)
        again = sampler(server).sample(PROMPTS, KEYS, 2)
        assert first == again
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": None}, "returns no token ids"),
        ({"token_ids": ["a"]}, "returns no token ids"),
        ({"prompt_token_ids": [1, 2]}, "read another prompt than it was sent"),
        ({"logprobs": None}, "does not return the log-probability of every token"),
        ({"logprobs": {"token_logprobs": [-1.0]}, "token_ids": [7, 5]}, "of every token"),
        ({"finish_reason": "content_filter"}, "finish_reason 'content_filter'"),
        (
            {"token_ids": [7] * 13, "logprobs": {"token_logprobs": [-1.0] * 13}, "finish_reason": "length"},
            "13 tokens, but max_tokens is 12",
        ),
        ({"token_ids": [7, 1200]}, "returned the token 1200, but the policy's vocabulary has 1200"),
        ({"token_ids": [-1, 5]}, "returned the token -1"),
        ({"token_ids": [7, 5], "logprobs": {"token_logprobs": [-1.0, "x"]}}, "logprobs.token_logprobs.1: "),
        (
            {"token_ids": [7, 5], "logprobs": {"token_logprobs": [-1.0, float("nan")]}},
            "nan is not a log-probability",
        ),
        ({"token_ids": [7, 5], "logprobs": {"token_logprobs": [-1.0, 0.5]}}, "0.5 is not a log-probability"),
        ({"logprobs": [-1.0]}, "choices.0.logprobs: "),
        ({"prompt_token_ids": 7}, "choices.0.prompt_token_ids: "),
        ({"index": 0}, "does not number its choices"),
        ({"index": "first"}, "does not number its choices"),
        (
            {"token_ids": [7, 9], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "stop"},
            "not one of the policy's stop tokens",
        ),
    ],
)
def test_answers_that_cannot_be_trained_on_are_refused(sampler, answer, changes, said):
    with (
        serve(lambda path, body: answer(path, body, **changes)) as server,
        pytest.raises(EndpointError) as error,
    ):
        sampler(server).sample(PROMPTS, KEYS, 2)
    assert said in str(error.value) and server.url in str(error.value)


def test_an_answer_that_is_refused_is_asked_for_again_when_the_server_is_mended(sampler, answer):
    with serve(lambda path, body: answer(path, body, token_ids=None)) as server:
        with pytest.raises(EndpointError, match="returns no token ids"):
            sampler(server).sample(PROMPTS, KEYS, 2)
        server.answer = answer
        assert len(sampler(server).sample(PROMPTS, KEYS, 2)[1]) == 2


def test_servers_that_refuse_stall_or_give_too_few(sampler, answer):
    def too_few(path, body):
        reply = answer(path, body)
        reply.body["choices"].pop()
        return reply

    cases = [
        (lambda path, body: Reply({"error": {"message": "no"}}, 404), "is not there"),
        (lambda path, body: Reply({}, seconds=2.0), "has not answered within"),
        (too_few, "1 choices where n = 2"),
    ]
    for server_answer, said in cases:
        with serve(server_answer) as server, pytest.raises(EndpointError, match=said):
            sampler(server, timeout_seconds=0.5).sample(PROMPTS[:1], KEYS[:1], 2)


def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(sampler, answer):
    # decode is str here: the text of [1, 2] is "[1, 2]"
    ids, log_probs = [7, 8, 9, 10], [-1.0, -2.0, -3.0, -4.0]
    changes = {"token_ids": ids, "logprobs": {"token_logprobs": log_probs}, "finish_reason": "length"}
    with serve(lambda path, body: answer(path, body, **changes)) as server:
        (drawn,) = sampler(server, stop=["9"]).sample(PROMPTS[:1], KEYS[:1], 1)
    assert json.dumps(drawn[0].token_ids) == "[7, 8, 9]"
    assert drawn[0].finish_reason == "stop"
    assert drawn[0].log_prob == -6.0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"engine": "openai"}, "sampling.endpoint: missing"),
        (
            {"engine": "openai", "endpoint": {"url": "http://localhost/v1", "model": "fixed"}},
            "must contain {policy}",
        ),
        ({"endpoint": {"url": "http://localhost/v1", "model": "{policy}"}}, "is for the engine openai"),
        ({"engine": "vllm", "engine_args": {"seed": 3}}, "'seed' is set by sppo"),
        (
            {"engine": "vllm", "engine_args": {"tensor_parallel_size": 0}},
            "tensor_parallel_size: must be a whole number of at least 1 (got 0)",
        ),
        (
            {"engine": "vllm", "engine_args": {"max_model_len": "4k"}},
            "max_model_len: must be a whole number of at least 1 (got '4k')",
        ),
        ({"engine_args": {"tensor_parallel_size": 2}}, "engine_args: is for the engine vllm"),
        ({"stop": [""]}, "sampling.stop: an empty text"),
        ({"engine": "vlm"}, "sampling.engine: 'vlm' is unknown; did you mean 'vllm'?"),
        ({"engine": "vllm", "batch_token": 1}, "sampling.batch_token: unknown key"),
    ],
)
def test_engines_settings_that_do_not_fit_are_refused(section, said):
    recipe = {
        "policy": {"model": "tinyworld"},
        "prompts": {"train": "tinyworld/train"},
        "oracle": {"type": "panel"},
        "sampling": section,
    }
    with pytest.raises(RecipeError) as error:
        parse(recipe)
    assert said in str(error.value)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_stored_recipe_with_the_keys_of_every_engine_is_still_read(engine):
    stored = {"engine": engine, "engine_args": {}, "endpoint": None, "batch_tokens": 1000, "k": 3}
    settings = parse_sampling(stored)
    assert (settings.engine, settings.k) == (engine, 3)
    assert getattr(settings, "batch_tokens", None) == (1000 if engine == "transformers" else None)
