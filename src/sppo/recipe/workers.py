"""The recipe's `workers:`."""

from typing import Literal

from pydantic import Field, field_validator

from sppo.recipe.section import Section


class Workers(Section):
    """How many processes make the shards of a stage side by side, each with an engine of its own; moves no result."""

    sample: int | Literal["auto"] = Field(
        "auto",
        description="auto: one for each GPU (or group of GPUs that one engine spans); without GPUs one",
    )
    annotate: int | Literal["auto"] = Field(
        "auto", description="auto: as sample for an oracle with a model, one for any other"
    )
    select: int | Literal["auto"] = Field("auto", description="auto: as sample; for the opponent's pass")
    evaluate: int | Literal["auto"] = Field(
        "auto", description="auto: as sample; for comparisons with the base and the previous policy"
    )

    @field_validator("*")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1, or auto")
        return value
