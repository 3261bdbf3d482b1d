"""y ~ pi(. | x): one protocol for everything that draws responses from a policy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Protocol

from sppo import recipe

Key = tuple[str | int, ...]


class SamplingError(RuntimeError):
    """Sampling cannot begin or go on; the message says what to change."""


@dataclass(frozen=True)
class Response:
    """One sampled response.

    Attributes:
        token_ids: with the end-of-turn token, if it was reached.
        finish_reason: `stop` where it ended by itself or with a stop string, `length` where it was cut.
        token_log_probs: log pi of each token after those before it, in nats: the policy's own, at temperature 1 and
            without truncation, however the response was drawn.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    token_log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """log pi(y|x) in nats."""
        return math.fsum(self.token_log_probs)


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn; the fields are those of the recipe's `sampling:`, a temperature below 0.01 apart.

    Truncation follows the temperature, in the order min-p, top-k, top-p.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 512
    stop: Sequence[str] = ()
    batch_tokens: int = 65536


class Sampler(Protocol):
    """Anything that draws responses from a policy."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> list[list[Response]]:
        """K responses to each prompt.

        Args:
            prompts: token ids, generation prompt included.
            keys: of each prompt; response number i draws its random numbers from (\\*key, i) alone.
            k: responses per prompt.
            on_response: called with the number of responses just finished.

        Returns:
            For each prompt, in their order, its K responses.
        """
        ...

    def close(self) -> None:
        """Let go of the weights and all memory; the sampler is of no use afterwards."""
        ...


def check(of: recipe.Sampling) -> None:
    """Refuse, before anything is computed, an engine that is not installed.

    Raises:
        SamplingError: the message names the extra.
    """
    if of.engine == "vllm":
        from sppo.sampling import vllm

        vllm.check_installed()


def load(
    of: recipe.Sampling,
    policy: Path,
    *,
    stop_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    dtype: str,
    temperature: float | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> Sampler:
    """The sampler that a recipe's `sampling:` stands for, with the policy's weights in it.

    Args:
        of: engine, settings and what the engine is started with.
        policy: a transformers folder, or an adapter's.
        stop_ids: tokens that end a response; they belong to it.
        decode: token ids to text, for `sampling.stop`.
        dtype: of the weights, where `of` does not say.
        temperature: in the place of `of`'s; below 0.01 the most probable token.
        attn_implementation: as in transformers.
        trust_remote_code: run Python that comes with the model.
        quantization: of the weights, as in :func:`sppo.policy.load`; of the engine transformers alone.

    Raises:
        SamplingError: the engine is not installed or does not start, or the model does not fit the memory.
        sppo.policy.load.PolicyError: the policy does not load.
    """
    settings = SamplingSettings(**{item.name: getattr(of, item.name) for item in fields(SamplingSettings)})
    if temperature is not None:
        settings = replace(settings, temperature=temperature)
    dtype = of.dtype or dtype
    match of.engine:
        case "transformers":
            from sppo.policy import load as policies
            from sppo.sampling.memory import check_room
            from sppo.sampling.transformers import TransformersSampler

            check_room(policy, dtype, settings.batch_tokens, quantization)
            model = policies.load(
                policy,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                quantization=quantization,
            )
            return TransformersSampler(model, settings, stop_ids, decode)
        case "vllm":
            from sppo.sampling.memory import check_weights
            from sppo.sampling.vllm import VllmSampler

            check_weights(policy, dtype, of.engine_args, of.devices)
            return VllmSampler(
                policy,
                settings,
                stop_ids,
                dtype=dtype,
                engine_args=of.engine_args,
                trust_remote_code=trust_remote_code,
                decode=decode,
            )
        case "openai":
            from sppo.sampling.served import ServedSampler

            assert of.endpoint is not None
            return ServedSampler(of.endpoint, policy, settings, stop_ids, decode, trust_remote_code)
