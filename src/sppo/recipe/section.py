"""The base class of all recipe sections, with strict fields, and the error that recipes raise."""

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class RecipeError(ValueError):
    """Raised for a recipe that cannot be used; the message names each wrong field, its value and the way out."""


class Section(BaseModel):
    """A section of a recipe, in which unknown keys, non-finite numbers and values of a wrong type are errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [] if value == "none" else [value]
    return value


Trackers = Annotated[list[str], BeforeValidator(_as_list)]
"""Names of transformers' trackers; one name may stand by itself, and `none` stands for none."""


def _as_date(value: Any) -> Any:
    try:
        return value if value is None else date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError("must be a date such as 2024-07-26") from None


TemplateDate = Annotated[str, BeforeValidator(_as_date)]
"""A date as YYYY-MM-DD, which YAML reads as a date where it is not in quotes."""
