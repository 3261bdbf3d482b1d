"""A model behind an OpenAI-compatible server."""

import re
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from sppo.recipe.section import Section


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible server: who is asked, and how hard."""

    url: str = Field(description="with the path of the API, e.g. http://localhost:8000/v1")
    model: str = Field(min_length=1, description="by the server's name for it")
    revision: str | None = Field(
        None, description="any word for what stands behind the name; with another one, all is asked anew"
    )
    api_key_env: str | None = Field(None, description="the environment variable that holds the API key")
    concurrency: int = Field(16, ge=1, le=10_000, description="requests on their way at once")
    timeout_seconds: float = Field(300, gt=0, description="for one request")
    retries: int = Field(5, ge=0, le=100, description="of a request, with exponential back-off")
    token_budget: int | None = Field(
        None, ge=1, description="prompt and completion tokens, over all that its cache holds; None: no limit"
    )
    cache: str | None = Field(
        None,
        min_length=1,
        description="the file of the answers; None: the run's, or outside of runs the user's",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="sent with every request, e.g. a server's own sampling settings"
    )

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise PydanticCustomError(
                "hidden", "must hold no password and no query; name the variable of an API key in api_key_env"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            # the value may be the key itself: it is not shown
            raise PydanticCustomError(
                "hidden", "must be the name of an environment variable, e.g. OPENAI_API_KEY, never the key"
            )
        return value


ANSWERS = "answers.sqlite"
"""The name of the file in a run's folder where its endpoints keep their answers."""
S = TypeVar("S", bound=Section)


def keep_answers_in(section: S, file: Path) -> S:
    """A copy of a part of a recipe in which every endpoint that names no cache keeps its answers in a file."""
    if isinstance(section, EndpointConfig):
        return section if section.cache else section.model_copy(update={"cache": str(file)})

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(item) for item in value]
        return keep_answers_in(value, file) if isinstance(value, Section) else value

    return section.model_copy(
        update={name: kept(getattr(section, name)) for name in type(section).model_fields}
    )
