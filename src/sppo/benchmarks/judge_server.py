"""A judge behind an OpenAI-compatible server, as the benchmarks use it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.endpoint.client import Answer, Endpoint, Request, tokens_of
from sppo.recipe import EndpointConfig

JUDGED = [
    ("judge", pa.string()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
]
"""Columns of every judgment: what the server calls itself, and what the answers cost."""


class Judge:
    """A judge.

    Args:
        config: where it is.
        home: the evaluation's folder; its answers are kept there unless the configuration names a file.
    """

    def __init__(self, config: EndpointConfig, home: Path) -> None:
        self.config = config
        self.endpoint = Endpoint(config, home / "judge-answers.sqlite")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return self.config.model_dump(include={"model", "revision", "extra_body"})

    def ask(self, requests: Sequence[Request], advance: Callable[[int], None] | None = None) -> list[Answer]:
        """Its answers, in order; see :meth:`sppo.endpoint.client.Endpoint.ask`."""
        return self.endpoint.ask(requests, advance)


@contextlib.contextmanager
def scoring(judgments: Path) -> Iterator[None]:
    """Where judgments give no figure, the error names their file and the way to ask for others.

    Raises:
        ValueError: as within, of the same class.
    """
    try:
        yield
    except ValueError as error:
        text = f"{error}; what was said is in {judgments}, and with another `revision` a judge is asked anew"
        raise type(error)(text) from error


def text_of(answer: Answer) -> str:
    """What a judge has said."""
    content = answer["choices"][0]["message"].get("content")
    return _whole(content) if isinstance(content, str) else ""


def judged(answers: Sequence[Answer]) -> dict[str, Any]:
    """The columns of :data:`JUDGED` for the answers that make up a judgment."""
    names = dict.fromkeys(name for name in map(_version, answers) if name)
    counts = [tokens_of(answer) or (0, 0) for answer in answers]
    return {
        "judge": " + ".join(names) or None,
        "prompt_tokens": sum(prompt for prompt, _ in counts),
        "completion_tokens": sum(completion for _, completion in counts),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Who judged, and what all judgments have cost, whenever they were made."""
    return {
        "versions": sorted({row["judge"] for row in rows if row["judge"]}),
        **{key: sum(row[key] or 0 for row in rows) for key in ("prompt_tokens", "completion_tokens")},
    }


def _version(answer: Answer) -> str:
    parts = [answer.get("model"), answer.get("system_fingerprint")]
    return " ".join(_whole(part) for part in parts if isinstance(part, str) and part)


def _whole(text: str) -> str:
    """A text with a question mark for half of a surrogate pair, which no table holds."""
    return text.encode("utf-8", "replace").decode()
