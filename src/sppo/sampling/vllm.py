"""Sampling with vLLM, in a process of its own.

A policy's K responses to a prompt are one request, so that the prompt's keys and values are computed once. The process
is the engine's (:mod:`sppo.sampling.vllm_engine`), which may outlive the sampler (:mod:`sppo.sampling.engine_keepers`). Each
request has a seed of its own, and vLLM gives response i the seed + i (`vllm.v1.engine.parallel_sampling`), so that draws depend
on what shares the batch only through rounding.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from sppo import randomness
from sppo.policy import adapter as adapters
from sppo.policy.saving import save_merged
from sppo.sampling import PromptBatch, Response, SampledPolicy, Sampler, Sampling, SamplingError
from sppo.sampling.engine_keepers import keep_engine, start_engine
from sppo.sampling.memory import check_weights
from sppo.sampling.stop_strings import StopStrings

# The number of engines that may fail before another batch is finished.
_ATTEMPTS = 3
# The engine's arguments that sppo sets itself, and the recipe's key to use in their place.
_SET_BY_SPPO = {
    "model": "policy.model",
    "dtype": "sampling.dtype",
    "trust_remote_code": "policy.trust_remote_code",
    "tokenizer": "policy.model",
    "seed": "seed",
    "logprobs_mode": None,
    "skip_tokenizer_init": None,
    "enable_lora": None,
}


class VllmSampling(Sampling):
    """The engine `vllm`: vLLM in a process of its own."""

    keeps_engines: ClassVar[bool] = True

    engine: Literal["vllm"] = "vllm"
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of vllm.EngineArgs, e.g. tensor_parallel_size."
    )

    @field_validator("engine_args")
    @classmethod
    def _can_be_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _SET_BY_SPPO.keys() & value.keys():
            way_out = f"use {_SET_BY_SPPO[name]}" if _SET_BY_SPPO[name] else "remove it"
            raise ValueError(f"{name!r} is set by sppo; {way_out}")
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "max_model_len"):
            number = value.get(name, 1)
            if type(number) is not int or number < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1 (got {number!r})")
        return value

    @property
    def devices(self) -> int:
        """The number of GPUs that one engine spans: its tensor and pipeline parallel sizes, multiplied."""
        return int(
            self.engine_args.get("tensor_parallel_size", 1)
            * self.engine_args.get("pipeline_parallel_size", 1)
        )

    @property
    def engine_context(self) -> int | None:
        """`max_model_len`, if it is given."""
        return self.engine_args.get("max_model_len")

    def check(self) -> None:
        """See :meth:`Sampling.check`."""
        if importlib.util.find_spec("vllm") is None:
            raise SamplingError(
                "sampling.engine: vllm is not installed here; pip install 'sppo[vllm]', or use the engine transformers"
            )

    def load(self, policy: SampledPolicy) -> Sampler:
        """See :meth:`Sampling.load`."""
        check_weights(policy.folder, policy.dtype, self.engine_args, self.devices)
        self.check()
        return VllmSampler(self, policy)


class VllmSampler(Sampler):
    """Draws responses with vLLM, which decides by itself how many it decodes side by side.

    The next batch begins as soon as fewer responses are unfinished than the engine decodes side by side. An engine that
    dies while it draws, because it was killed or ran out of memory, is replaced by a new one, and the prompts whose
    responses are missing are sampled again; the responses do not depend on that.

    Args:
        settings: the section of the recipe.
        policy: the policy; an adapter is merged into its base first.

    Raises:
        SamplingError: vLLM does not start.
    """

    def __init__(self, settings: VllmSampling, policy: SampledPolicy) -> None:
        self.settings = settings
        self.stop_ids = sorted(policy.stop_ids)
        self.stop_strings = StopStrings(tuple(settings.stop), policy.decode)
        self._merged = _merged(policy)
        self._model = Path(self._merged.name) if self._merged else policy.folder
        self._arguments = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            **settings.engine_args,
            "dtype": policy.dtype,
            "trust_remote_code": policy.trust_remote_code,
            # All samplers report log pi at temperature 1 and without truncation.
            "logprobs_mode": "raw_logprobs",
        }
        self._attempts = 0  # the number of engines that have died since a batch was finished
        self.engine = start_engine(self._arguments, self._model)

    def stream(
        self,
        batches: Iterable[PromptBatch],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> Iterator[tuple[int, list[list[Response]]]]:
        """See :meth:`sppo.sampling.Sampler.stream`.

        Raises:
            SamplingError: the engine has died at every one of its attempts.
        """
        coming = enumerate(batches)
        begun: dict[int, _Begun] = {}
        while True:
            while not begun or k * sum(len(batch.missing) for batch in begun.values()) < self.engine.rows:
                number, batch = next(coming, (-1, None))
                if batch is None:
                    break
                if not batch.prompts:
                    yield number, []
                    continue
                begun[number] = _Begun(batch)
                self._begin(number, begun[number], k)
            if not begun:
                return
            number, prompt, responses = self._next_responses(begun, k)
            begun[number].add(prompt, responses)
            on_response(k)
            if not begun[number].missing:
                self._attempts = 0
                finished = begun.pop(number)
                self.engine.is_idle = not begun
                yield number, finished.responses

    def _begin(self, number: int, begun: "_Begun", k: int) -> None:
        """Hand the engine the prompts of a batch that have no responses yet."""
        request = request_parameters(self.settings, self.stop_ids) | {"detokenize": bool(self.settings.stop)}
        prompts = [
            (
                f"{number}:{n}",
                list(map(int, begun.batch.prompts[n])),
                randomness.wide_seed(*begun.batch.keys[n]),
            )
            for n in sorted(begun.missing)
        ]
        self.engine.is_idle = False
        self.engine.send(("sample", (request, prompts, k)))

    def _next_responses(self, begun: Mapping[int, "_Begun"], k: int) -> tuple[int, int, list[Response]]:
        """The numbers of the batch and of the prompt that is finished next, and its responses."""
        while True:
            try:
                name, drawn = self.engine.receive()
                break
            except SamplingError as error:
                self._attempts += 1
                if self._attempts == _ATTEMPTS:
                    message = f"{error}\nThis was engine number {_ATTEMPTS} that failed at these prompts"
                    raise SamplingError(message) from error
                self.engine.end()
                self.engine = start_engine(self._arguments, self._model)
                for number, batch in begun.items():
                    self._begin(number, batch, k)
        number, _, prompt = name.partition(":")
        return int(number), int(prompt), [self.stop_strings.shortened(Response(*fields)) for fields in drawn]

    def close(self) -> None:
        """Hand the engine back: it ends, and its memory is free, or it is kept for the next policy."""
        keep_engine(self.engine)
        if self._merged:
            self._merged.cleanup()


class _Begun:
    """A batch that the engine is working on.

    Attributes:
        batch: the prompts.
        missing: the numbers of the prompts that have no responses yet.
    """

    def __init__(self, batch: PromptBatch) -> None:
        self.batch = batch
        self.missing = set(range(len(batch.prompts)))
        self.responses: list[list[Response]] = [[] for _ in batch.prompts]

    def add(self, prompt: int, responses: list[Response]) -> None:
        self.responses[prompt] = responses
        self.missing.remove(prompt)


def request_parameters(settings: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The parameters of a request by vLLM's names, which its server takes as well."""
    return {
        "max_tokens": settings.max_new_tokens,
        # vLLM would raise other temperatures below 0.01 to 0.01.
        "temperature": settings.temperature if settings.temperature >= 0.01 else 0.0,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "stop_token_ids": list(stop_ids),
        "stop": list(settings.stop) or None,
        "include_stop_str_in_output": bool(settings.stop),
        "logprobs": 0,  # log-probabilities of the sampled tokens, and of no alternatives
    }


def _merged(policy: SampledPolicy) -> "tempfile.TemporaryDirectory[str] | None":
    """Merge an adapter into an ordinary folder; None if the policy is no adapter."""
    # vLLM could load adapters itself, but it limits their rank and which layers they may adapt.
    if not adapters.is_adapter(policy.folder):
        return None
    folder = tempfile.TemporaryDirectory(prefix="sppo-merged-")
    save_merged(
        policy.folder,
        Path(folder.name),
        dtype=policy.dtype,
        trust_remote_code=policy.trust_remote_code,
    )
    return folder
