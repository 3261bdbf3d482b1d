"""The recipe's `workers:`."""

from typing import Literal

from pydantic import Field, field_validator

from sppo.recipe.section import Section


class Workers(Section):
    """The number of processes that make a stage's shards side by side, each with its own engine. It changes no result."""

    sample: int | Literal["auto"] = Field(
        "auto",
        description="Processes that sample; auto takes one for each GPU (or group of GPUs that one engine spans), else one.",
    )
    annotate: int | Literal["auto"] = Field(
        "auto",
        description="Processes that ask the oracle; auto takes as many as sample for an oracle with a model, else one.",
    )
    select: int | Literal["auto"] = Field(
        "auto", description="Processes for the opponent's log-probabilities; auto takes as many as sample."
    )
    evaluate: int | Literal["auto"] = Field(
        "auto",
        description="Processes for comparisons with the base and the previous policy; auto takes as many as sample.",
    )

    @field_validator("*")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value
