"""A judge behind an OpenAI-compatible server, as the benchmarks use it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.endpoint.client import Endpoint
from sppo.endpoint.exchange import Answer, EndpointError, Request
from sppo.recipe import EndpointConfig

JUDGED = [
    ("judge", pa.string()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
]
"""The columns of every judgment: what the server calls itself, and how many tokens its answers took."""


class Judge:
    """A language model that judges.

    Args:
        config: the server and its settings.
        home: the evaluation's folder, which keeps the answers unless the configuration names a file.
    """

    def __init__(self, config: EndpointConfig, home: Path) -> None:
        self.config = config
        self.endpoint = Endpoint(config, home / "judge-answers.sqlite")
        self._asked = 0

    def identity(self) -> dict[str, Any]:
        """The settings that the judge's answers depend on."""
        return self.config.model_dump(include={"model", "revision", "extra_body"})

    def ask(self, requests: Sequence[Request], advance: Callable[[int], None] | None = None) -> list[Answer]:
        """The judge's answers, in order; one that it refuses to give has a :attr:`~sppo.endpoint.exchange.Choice.refusal`.

        Raises:
            EndpointError: the server fails, or has refused everything that it was asked so far.
        """
        answers = self.endpoint.ask(requests, advance, allow_refusals=True)
        refusals = [answer.choices[0].refusal for answer in answers if answer.choices[0].refusal is not None]
        self._asked += len(answers)
        if refusals and self.endpoint.usage.refusals == self._asked:
            raise EndpointError(f"the judge {self.config.model} refuses everything; it says: {refusals[-1]}")
        return answers


@contextlib.contextmanager
def scoring(judgments: Path) -> Iterator[None]:
    """Add to an error of the scores where the judgments lie, and how to ask for others.

    Raises:
        ValueError: the error that was raised within, of the same class.
    """
    try:
        yield
    except ValueError as error:
        text = f"{error}; what was said is in {judgments}, and with another `revision` a judge is asked anew"
        raise type(error)(text) from error


def text_of(answer: Answer) -> str:
    """The text of an answer, thought included; empty where the text or a thought in it is unfinished, or it is refused."""
    choice = answer.choices[0]
    return "" if choice.refusal is not None or choice.conclusion is None else choice.said


def judged(answers: Sequence[Answer]) -> dict[str, Any]:
    """The columns of :data:`JUDGED` for the answers that make up a judgment."""
    names = dict.fromkeys(name for name in map(_version, answers) if name)
    counts = [answer.tokens for answer in answers]
    return {
        "judge": " + ".join(names) or None,
        "prompt_tokens": sum(prompt for prompt, _ in counts),
        "completion_tokens": sum(completion for _, completion in counts),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The judge's own name, and the number of tokens of all judgments, whenever they were made."""
    return {
        "versions": sorted({row["judge"] for row in rows if row["judge"]}),
        **{key: sum(row[key] or 0 for row in rows) for key in ("prompt_tokens", "completion_tokens")},
    }


def _version(answer: Answer) -> str:
    return " ".join(part for part in (answer.model, answer.system_fingerprint) if part)
