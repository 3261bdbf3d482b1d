"""What an iteration is measured by, and when it has failed."""

from typing import Literal

from pydantic import Field, model_validator

from sppo.recipe.oracle import OracleConfig
from sppo.recipe.section import Section


class Evaluation(Section):
    """What is measured on the held-out prompts after each iteration."""

    responses: int = Field(4, ge=1, description="per prompt and policy")
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100, description="of the bootstrap over prompts")
    oracle: OracleConfig | None = Field(
        None,
        description="a held-out oracle: win rates are its own, and those of the recipe's `oracle` stand beside them",
    )


class Guard(Section):
    """When an iteration has failed, and what then."""

    on_failure: Literal["stop", "keep", "fall_back"] = "stop"
    min_length_ratio: float = Field(0.25, ge=0, description="mean response tokens over the base policy's")
    max_length_ratio: float = Field(4.0, gt=0)
    max_repetition: float = Field(
        0.3, ge=0, description="rise of the share of repeated 4-grams over the base's"
    )
    max_truncated_rise: float = Field(
        0.5, ge=0, le=1, description="of the share of cut responses over the base's"
    )
    max_kl_per_token: float = Field(1.0, gt=0, description="KL to the base in nats per response token")
    max_kl: float | None = Field(
        None, gt=0, description="KL to the base in nats per response; None: no limit"
    )

    min_trained_share: float = Field(
        0.5, ge=0, le=1, description="share of the iteration's prompts that have a response to train on"
    )

    @model_validator(mode="after")
    def _limits_in_order(self) -> "Guard":
        if self.min_length_ratio > self.max_length_ratio:
            raise ValueError(
                f"min_length_ratio: {self.min_length_ratio:g} is above max_length_ratio: {self.max_length_ratio:g}"
            )
        return self
