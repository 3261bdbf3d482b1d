"""Sampling from an OpenAI-compatible server that a policy is served by elsewhere.

What is trained on is token ids, so the server must take prompts as token ids and give the ids of what it drew: vLLM's
does (`return_token_ids`). A server that answers in text alone is refused: tokenised again, its text need not give the
tokens that the policy drew. Every answer that can be trained on is kept on disk as it comes.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sppo import randomness
from sppo.endpoint import client as endpoints
from sppo.endpoint.client import Answer, Request
from sppo.policy import load as policies
from sppo.recipe import EndpointConfig
from sppo.sampling import Key, Response, SamplingSettings
from sppo.sampling.stop_strings import StopStrings, kept

_ROUNDING = 1e-3
"""How far above 0 a log-probability may be."""


class ServedSampler:
    """Draws responses from a server.

    Args:
        config: the server; `{policy}` in its model's name becomes the policy's folder.
        policy: the folder of what is to be served, whose content the answers are kept under.
        settings: temperature, truncation and lengths.
        stop_ids: tokens that end a response; they belong to it.
        decode: token ids to text, for `settings.stop`.
        trust_remote_code: run Python that comes with the model.

    Raises:
        sppo.endpoint.client.EndpointError: the client is not installed, or its key is not set.
    """

    def __init__(
        self,
        config: EndpointConfig,
        policy: Path,
        settings: SamplingSettings,
        stop_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        trust_remote_code: bool = False,
    ) -> None:
        revision = f"{config.revision or ''} {policies.digest(policy)}"
        named = {"model": config.model.replace("{policy}", str(policy)), "revision": revision}
        self.endpoint = endpoints.Endpoint(config.model_copy(update=named))
        self.settings = settings
        self.stop_ids = sorted(stop_ids)
        self.stop_strings = StopStrings(tuple(settings.stop), decode)
        self.vocabulary = policies.vocabulary_size(policy, trust_remote_code)

    def close(self) -> None:
        """Nothing is held here."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> list[list[Response]]:
        """As :meth:`sppo.sampling.Sampler.sample`.

        Raises:
            sppo.endpoint.client.EndpointError: the server refuses, stalls, gives fewer than K responses, does not say token
                ids and log-probabilities, or read another prompt than it was sent.
        """
        requests = [
            endpoints.completion(prompt, n=k, seed=randomness.wide_seed(*key), **self._body())
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        answers = self.endpoint.ask(requests, lambda count: on_response(count * k), self._fault)
        return [
            [self._response(choice) for choice in sorted(answer["choices"], key=_index)] for answer in answers
        ]

    def _body(self) -> dict[str, Any]:
        of = self.settings
        return {
            "max_tokens": of.max_new_tokens,
            "temperature": of.temperature if of.temperature >= 0.01 else 0.0,
            "top_p": of.top_p,
            "top_k": of.top_k,
            "min_p": of.min_p,
            # what a server may have taken from the model's generation config
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": self.stop_ids,
            "stop": list(of.stop) or None,
            "include_stop_str_in_output": bool(of.stop),
            "logprobs": 0,  # of the token that was drawn alone
            "return_token_ids": True,
        }

    def _response(self, choice: dict[str, Any]) -> Response:
        log_probs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        return kept(Response(choice["token_ids"], choice["finish_reason"], log_probs), self.stop_strings)

    def _fault(self, request: Request, answer: Answer) -> str | None:
        """What keeps an answer from being trained on, as :data:`sppo.endpoint.client.Fault`."""
        choices = answer["choices"]
        numbers = [_index(choice) for choice in choices]
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(choices))):
            return "does not number its choices from 0 (`index`)"
        faults = (self._fault_of(choice, request.body["prompt"]) for choice in choices)
        return next((fault for fault in faults if fault is not None), None)

    def _fault_of(self, choice: dict[str, Any], prompt: list[int]) -> str | None:
        ids: Any = choice.get("token_ids")
        read, reason = choice.get("prompt_token_ids"), choice.get("finish_reason")
        if not _are_ids(ids):
            return (
                "gives no token ids (`token_ids` of a choice). Self-play trains on the tokens that were drawn, and"
                " text tokenised again need not give them; use a server that knows `return_token_ids`, such as"
                " vLLM's, or the engine vllm"
            )
        if read is not None and read != prompt:
            return (
                f"read another prompt than it was sent: {_shown(read)} in the place of {_shown(prompt)}; it must"
                " take token ids as they are, without a template or special tokens of its own"
            )
        strange = [token for token in ids if not 0 <= token < self.vocabulary]
        if strange:
            return f"gave the token {strange[0]}, but the policy knows {self.vocabulary}; does it serve another model?"
        if not _are_log_probs(choice.get("logprobs"), len(ids)):
            return "does not give the log-probability of every token (`logprobs`)"
        if reason not in ("stop", "length"):
            return f"ended a response with finish_reason {reason!r}; known are stop and length"
        if len(ids) > self.settings.max_new_tokens:
            return f"gave {len(ids)} tokens where max_tokens = {self.settings.max_new_tokens}"
        if reason == "stop" and not self.stop_strings.strings and ids[-1] not in self.stop_ids:
            return (
                f"ended a response with the token {ids[-1]}, which is none of the policy's stop tokens"
                f" {self.stop_ids}; does it serve another model, or leave out the token that ends a turn?"
            )
        return None


def _index(choice: dict[str, Any]) -> Any:
    return choice.get("index")


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _are_log_probs(given: Any, count: int) -> bool:
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and -math.inf < value < _ROUNDING for value in values)
    )


def _shown(ids: Any) -> str:
    if not isinstance(ids, list):
        return repr(ids)[:80]
    return f"{ids[:8]}{'...' if len(ids) > 8 else ''} ({len(ids)} tokens)"
