"""Sampling from an OpenAI-compatible server that serves the policy elsewhere.

The policy is trained on token ids, so the server must take prompts as token ids and return the ids that it sampled:
vLLM's does (`return_token_ids`). A server that returns only text is refused: tokenising its text again need not give the
tokens that the policy drew. Every answer that can be trained on is kept on disk as soon as it arrives.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from sppo import randomness
from sppo.endpoint import client as endpoints
from sppo.endpoint import exchange
from sppo.endpoint.exchange import Answer, Choice, Request
from sppo.policy import load as policies
from sppo.recipe.endpoint import EndpointConfig
from sppo.sampling import PromptBatch, Response, SampledPolicy, Sampler, Sampling
from sppo.sampling.stop_strings import StopStrings
from sppo.sampling.vllm import request_parameters


class ServedSampling(Sampling):
    """The engine `openai`: a server that serves the policy elsewhere."""

    holds_a_model: ClassVar[bool] = False

    engine: Literal["openai"] = "openai"
    endpoint: EndpointConfig = Field(
        description="The server; `{policy}` in its model's name stands for the policy's folder."
    )

    @field_validator("endpoint")
    @classmethod
    def _names_the_policy(cls, value: EndpointConfig) -> EndpointConfig:
        if "{policy}" not in value.model:
            raise ValueError(
                "model: must contain {policy}, which stands for the folder of each iteration's policy: a name without"
                " it would be the same policy in every iteration"
            )
        return value

    def load(self, policy: SampledPolicy) -> Sampler:
        """See :meth:`Sampling.load`.

        Raises:
            sppo.endpoint.exchange.EndpointError: the client is not installed, or its key is not set.
        """
        return ServedSampler(self, policy)


class ServedSampler(Sampler):
    """Draws responses from a server.

    Args:
        settings: the section of the recipe.
        policy: the policy that the server is to serve. Answers are cached by the content of its folder.

    Raises:
        sppo.endpoint.exchange.EndpointError: the client is not installed, or its key is not set.
    """

    def __init__(self, settings: ServedSampling, policy: SampledPolicy) -> None:
        config = settings.endpoint
        revision = f"{config.revision or ''} {policies.digest(policy.folder)}"
        named = {"model": config.model.replace("{policy}", str(policy.folder)), "revision": revision}
        self.endpoint = endpoints.Endpoint(config.model_copy(update=named))
        self.settings = settings
        self.stop_ids = sorted(policy.stop_ids)
        self.stop_strings = StopStrings(tuple(settings.stop), policy.decode)
        self.vocabulary = policies.vocabulary_size(policy.folder, policy.trust_remote_code)

    def close(self) -> None:
        """Do nothing: the sampler holds no weights."""

    def stream(
        self,
        batches: Iterable[PromptBatch],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> Iterator[tuple[int, list[list[Response]]]]:
        """See :meth:`sppo.sampling.Sampler.stream`.

        Raises:
            sppo.endpoint.exchange.EndpointError: the server refuses, stalls, returns fewer than K responses, leaves out
                token ids or log-probabilities, or read another prompt than it was sent.
        """
        parameters = request_parameters(self.settings, self.stop_ids) | {
            # Without these a server may take them from the model's generation_config.json.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,
        }
        requests = (
            [
                exchange.completion(prompt, n=k, seed=randomness.wide_seed(*key), **parameters)
                for prompt, key in zip(batch.prompts, batch.keys, strict=True)
            ]
            for batch in batches
        )
        for number, answers in self.endpoint.stream(
            requests, lambda count: on_response(count * k), self._why_unusable
        ):
            yield (
                number,
                [
                    [self._response(choice) for choice in sorted(answer.choices, key=_index)]
                    for answer in answers
                ],
            )

    def _response(self, choice: Choice) -> Response:
        assert choice.logprobs is not None, "checked before"
        ids, log_probs, reason = choice.token_ids, choice.logprobs.token_logprobs, choice.finish_reason
        return self.stop_strings.shortened(Response(ids, reason, log_probs))  # type: ignore[arg-type]

    def _why_unusable(self, request: Request, answer: Answer) -> str | None:
        """Why an answer cannot be trained on, as a phrase whose subject is the server; None if it can."""
        choices = answer.choices
        numbers = [_index(choice) for choice in choices]
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(choices))):
            return "does not number its choices from 0 (`index`)"
        reasons = (self._why_choice_unusable(choice, request.body["prompt"]) for choice in choices)
        return next((reason for reason in reasons if reason is not None), None)

    def _why_choice_unusable(self, choice: Choice, prompt: list[int]) -> str | None:
        ids, read, reason = choice.token_ids, choice.prompt_token_ids, choice.finish_reason
        if not ids:
            return (
                "returns no token ids (`token_ids` of a choice). Self-play trains on the sampled tokens, and tokenising"
                " the text again need not give the same ones; use a server that supports `return_token_ids`, such as"
                " vLLM's, or the engine vllm"
            )
        if read is not None and read != prompt:
            return (
                f"read another prompt than it was sent: {_shown(read)} instead of {_shown(prompt)}; it must take token"
                " ids unchanged, without a template or special tokens of its own"
            )
        unknown = [token for token in ids if not 0 <= token < self.vocabulary]
        if unknown:
            return (
                f"returned the token {unknown[0]}, but the policy's vocabulary has {self.vocabulary}; does it serve"
                " another model?"
            )
        log_probs = (choice.logprobs and choice.logprobs.token_logprobs) or []
        if len(log_probs) != len(ids) or -math.inf in log_probs:
            return "does not return the log-probability of every token (`logprobs`)"
        if reason not in ("stop", "length"):
            return f"ended a response with finish_reason {reason!r}; only stop and length are known"
        if len(ids) > self.settings.max_new_tokens:
            return f"returned {len(ids)} tokens, but max_tokens is {self.settings.max_new_tokens}"
        if reason == "stop" and not self.stop_strings.strings and ids[-1] not in self.stop_ids:
            return (
                f"ended a response with the token {ids[-1]}, which is not one of the policy's stop tokens"
                f" {self.stop_ids}; does it serve another model, or leave out the token that ends a turn?"
            )
        return None


def _index(choice: Choice) -> Any:
    return choice.index


def _shown(ids: Sequence[int]) -> str:
    return f"{ids[:8]}{'...' if len(ids) > 8 else ''} ({len(ids)} tokens)"
