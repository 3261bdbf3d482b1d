"""The interface of every sampler: the recipe's `sampling:` section, and the object that draws responses from a policy."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field, field_validator, model_validator

from sppo.recipe.registered import Registered
from sppo.recipe.section import Section

Key = tuple[str | int, ...]
GREEDY = 1e-4
"""The temperature that stands for 0: the most probable token is the limit of a vanishing temperature."""
LOG_PROB_ROUNDING = 1e-3
"""How far above 0 a log-probability may be: engines and servers add up rounded numbers."""
_KEYS_OF_ENGINES = {"engine_args": "vllm", "endpoint": "openai", "batch_tokens": "transformers"}


@dataclass(frozen=True)
class Response:
    """One sampled response.

    Attributes:
        token_ids: the sampled tokens, with the end-of-turn token if it was reached.
        finish_reason: `stop` if the response ended by itself or with a stop string, `length` if it was truncated.
        token_log_probs: log pi of each token given the tokens before it, in nats. It is the policy's own, at temperature
            1 and without nucleus or other truncation, however the response was drawn.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    token_log_probs: list[float]

    @property
    def fault(self) -> str | None:
        """The fault of the log-probabilities, as a phrase, whichever engine drew them; None if there is none."""
        if len(self.token_log_probs) != len(self.token_ids):
            return f"{len(self.token_log_probs)} log-probabilities for {len(self.token_ids)} tokens"
        wrong = [value for value in self.token_log_probs if not -math.inf < value <= LOG_PROB_ROUNDING]
        return f"the log-probability {wrong[0]}; it must be finite and at most 0" if wrong else None

    @property
    def log_prob(self) -> float:
        """log pi(y|x) in nats."""
        return math.fsum(self.token_log_probs)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts whose responses are wanted together, such as those of one shard.

    Attributes:
        prompts: token ids, with the generation prompt.
        keys: one key for each prompt. Response number i draws its random numbers from (\\*key, i) alone.
    """

    prompts: Sequence[Sequence[int]]
    keys: Sequence[Key]


class FirstToken(NamedTuple):
    """The token behind a prompt, before any is drawn: at temperature 1 and without truncation, in nats.

    Attributes:
        log_probs: log pi of each token that was asked about.
        best: the most probable token of all.
        best_log_prob: its log pi.
    """

    log_probs: Sequence[float]
    best: int
    best_log_prob: float


class Sampler(Protocol):
    """Draws responses from a policy. A subclass has `sample` or `stream`, or both."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> list[list[Response]]:
        """Draw K responses to each prompt of one batch.

        Args:
            prompts: the prompts of a :class:`PromptBatch`.
            keys: its keys.
            k: the number of responses per prompt.
            on_response: called with the number of responses that have just been finished.

        Returns:
            For each prompt, in the given order, its K responses.
        """
        ((_, responses),) = self.stream([PromptBatch(prompts, keys)], k, on_response)
        return responses

    def stream(
        self,
        batches: Iterable[PromptBatch],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> Iterator[tuple[int, list[list[Response]]]]:
        """Draw K responses to each prompt of many batches.

        Sampling one batch after another, as this method does, leaves an engine nearly idle while the last responses of
        each batch are finished. Engines that can do better take the next batch as soon as they have room for it.

        Args:
            batches: the batches; the next one is taken when there is room for it.
            k: the number of responses per prompt.
            on_response: called with the number of responses that have just been finished.

        Yields:
            The number of a batch, counted from 0, and its responses as :meth:`sample` returns them, as soon as all of
            them are finished; not always in the order of the batches.
        """
        for number, batch in enumerate(batches):
            yield number, self.sample(batch.prompts, batch.keys, k, on_response)

    def first_tokens(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list["FirstToken"]:
        """The probabilities of some tokens as the first behind each prompt, where :attr:`Sampling.gives_first_tokens`.

        Args:
            prompts: token ids, with the generation prompt.
            tokens: the tokens whose log-probabilities are wanted.
        """
        missing = f"{type(self).__name__} has no first_tokens"
        raise NotImplementedError(missing)

    def close(self) -> None:
        """Free the weights and all memory; the sampler cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class SampledPolicy:
    """The policy that responses are drawn from.

    Attributes:
        folder: a transformers folder, or an adapter's.
        stop_ids: the tokens that end a response. The token belongs to the response.
        decode: converts token ids to text, to find the stop strings of `sampling.stop`.
        dtype: the type of the weights.
        attn_implementation: the implementation of attention, as in transformers.
        trust_remote_code: run Python code that comes with the model.
        quantization: how the weights are quantised, as in :func:`sppo.policy.load`.
    """

    folder: Path
    stop_ids: Sequence[int]
    decode: Callable[[Sequence[int]], str]
    dtype: str = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None


class Sampling(Section):
    """The recipe's `sampling:`, y_1..K ~ pi_t(. | x): the settings that all samplers share.

    A subclass is one engine. It sets ``engine: Literal[NAME] = NAME`` to its name in recipes, adds its own settings as
    fields, and loads a policy. It imports torch inside its methods only: reading a recipe must not load torch.

    Attributes:
        holds_a_model: whether the weights lie in this process or one that it starts, so that each worker needs a GPU.
        takes_adapters: whether it can sample from an adapter that has not been merged into its base.
        gives_first_tokens: whether its samplers have :meth:`Sampler.first_tokens`.
        keeps_engines: whether its samplers take engines that outlive them (:mod:`sppo.sampling.engine_keepers`).
    """

    holds_a_model: ClassVar[bool] = True
    takes_adapters: ClassVar[bool] = False
    gives_first_tokens: ClassVar[bool] = False
    keeps_engines: ClassVar[bool] = False

    engine: str
    """The engine that samples."""
    k: int = Field(5, ge=1, le=1024)
    """Responses per prompt, the paper's K."""
    temperature: float = Field(1.0, ge=0.01)
    """Divides the logits before a token is drawn."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the most probable tokens that together have this probability; 1 draws among all."""
    top_k: int = Field(0, ge=0)
    """Draw among so many most probable tokens; 0 sets no limit."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Draw among tokens of at least this probability, relative to the most probable one's."""
    max_new_tokens: int = Field(512, ge=1)
    """The longest response, in tokens; longer ones are truncated."""
    stop: list[str] = Field(default_factory=list, max_length=16)
    """Texts that end a response, beside the end of turn."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Data type of the weights while sampling; None takes bfloat16 for policies of at least 50 million parameters on a CPU that
    multiplies it natively, and policy.dtype otherwise."""

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text would end every response at once; remove it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_keys_of_other_engines(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        # Earlier versions stored the keys of all engines in every recipe.yaml; those of other engines had no effect.
        others = _KEYS_OF_ENGINES.keys() - cls.model_fields.keys()
        for key in sorted(others & value.keys()):
            if value[key] not in ({}, None) and key != "batch_tokens":
                raise ValueError(f"{key}: is for the engine {_KEYS_OF_ENGINES[key]}; remove it")
        return {key: item for key, item in value.items() if key not in others}

    @property
    def devices(self) -> int:
        """The number of GPUs that one engine spans."""
        return 1

    @property
    def engine_context(self) -> int | None:
        """The most tokens of prompt and response that the engine is told to hold; None: as many as the policy."""
        return None

    def check(self) -> None:
        """Refuse, before anything is computed, an engine that is not installed.

        Raises:
            sppo.sampling.SamplingError: the message says how to install it.
        """

    def load(self, policy: SampledPolicy) -> Sampler:
        """Load a policy's weights into a sampler.

        Raises:
            sppo.sampling.SamplingError: the engine is not installed or does not start, or the model does not fit into
                the memory.
            sppo.policy.load.PolicyError: the policy does not load.
        """
        raise NotImplementedError(f"{type(self).__name__} has no load")


SamplingConfig = Annotated[Sampling, Registered("samplers", default="transformers", key="engine")]
