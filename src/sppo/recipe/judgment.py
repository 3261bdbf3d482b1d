"""The `evaluation:` and `guard:` sections: how an iteration is measured, and when it has failed."""

from typing import Literal

from pydantic import Field, model_validator

from sppo.recipe.oracle import OracleConfig
from sppo.recipe.section import Section


class Evaluation(Section):
    """The measurement of each policy on the held-out prompts after its iteration."""

    responses: int = Field(4, ge=1)
    """Responses per prompt and policy."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence of the intervals."""
    resamples: int = Field(2000, ge=100)
    """Resamples of the bootstrap over prompts."""
    oracle: OracleConfig | None = None
    """A held-out oracle, which then gives the win rates; those by the recipe's `oracle` are reported beside them."""


class Guard(Section):
    """The limits beyond which an iteration has failed, and what happens then."""

    on_failure: Literal["stop", "keep", "fall_back"] = "stop"
    """Whether a failed iteration stops the run, is kept, or is replaced by the policy before it."""
    min_length_ratio: float = Field(0.25, ge=0)
    """Least mean number of response tokens, relative to the base policy's."""
    max_length_ratio: float = Field(4.0, gt=0)
    """Largest mean number of response tokens, relative to the base policy's."""
    max_repetition: float = Field(0.3, ge=0)
    """Largest rise of the share of repeated 4-grams above the base policy's."""
    max_truncated_rise: float = Field(0.5, ge=0, le=1)
    """Largest rise of the share of truncated responses above the base policy's."""
    max_kl_per_token: float = Field(1.0, gt=0)
    """Largest KL divergence from the base policy, in nats per response token."""
    max_kl: float | None = Field(None, gt=0)
    """Largest KL divergence from the base policy, in nats per response; None sets no limit."""
    min_trained_share: float = Field(0.5, ge=0, le=1)
    """Least share of the iteration's prompts that have a response to train on."""
    max_sampler_deviation: float = Field(0.05, gt=0)
    """Largest mean deviation of the sampler's log-probabilities from the trainer's, in nats per token."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> "Guard":
        if self.min_length_ratio > self.max_length_ratio:
            raise ValueError(
                f"min_length_ratio: {self.min_length_ratio:g} is above max_length_ratio: {self.max_length_ratio:g}"
            )
        return self
