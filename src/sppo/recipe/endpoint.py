"""A model behind an OpenAI-compatible server."""

import re
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from sppo.recipe.section import Section


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible server: its address, its name, and the limits of requests to it."""

    url: str
    """The server's URL with the path of the API, e.g. http://localhost:8000/v1."""
    model: str = Field(min_length=1)
    """The server's name for the model."""
    revision: str | None = None
    """A word for the weights behind the name; with another word no kept answer is used."""
    api_key_env: str | None = None
    """The environment variable that holds the API key."""
    organization: str | None = None
    """The organization that requests are billed to."""
    project: str | None = None
    """The project that requests are billed to."""
    concurrency: int = Field(16, ge=1, le=10_000)
    """The number of requests that are in flight at once."""
    timeout_seconds: float = Field(300, gt=0)
    """The time that a request may take until its answer is complete."""
    retries: int = Field(5, ge=0, le=100)
    """The number of times that a failed request is sent again, with exponential back-off."""
    token_budget: int | None = Field(None, ge=1)
    """Prompt and completion tokens that may be spent on all answers of the cache; None sets no limit."""
    cache: str | None = Field(None, min_length=1)
    """The file that answers are kept in; None takes the run's file, or outside of a run the user's."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Keys that are added to every request, e.g. a server's own sampling settings; null takes a key away."""

    @field_validator("extra_body")
    @classmethod
    def _leaves_the_question(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = sorted({"messages", "model", "prompt", "stream"} & value.keys())
        if own:
            raise ValueError(f"must not set {', '.join(own)}: every request sets its own")
        return value

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise PydanticCustomError(
                "hidden",
                "must contain no password and no query; name the variable that holds the API key in api_key_env",
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
"""The name of the file in a run folder in which the endpoints of the run keep their answers."""
S = TypeVar("S", bound=Section)


def keep_answers_in(section: S, file: Path) -> S:
    """A copy of a recipe's section in which every endpoint that names no cache keeps its answers in the given file."""
    if isinstance(section, EndpointConfig):
        return section if section.cache else section.model_copy(update={"cache": str(file)})

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(item) for item in value]
        return keep_answers_in(value, file) if isinstance(value, Section) else value

    return section.model_copy(
        update={name: kept(getattr(section, name)) for name in type(section).model_fields}
    )
