"""What a judge is asked, and how its verdicts are read."""

import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sppo.oracle import OracleError

Verdict = Literal["A", "B", "C"]
SCORE: dict[str, float] = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What a verdict says of the first response."""
PLACEHOLDERS = ("prompt", "response_a", "response_b")
_WRITTEN_OUT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_AROUND = " \t\n\"'`*[]().:"


class Template:
    """A prompt for judges, from a jinja template that is rendered in a sandbox.

    Args:
        text: with the placeholders prompt, response_a and response_b.
        name: for messages.

    Raises:
        OracleError: it does not parse, has an unknown variable, or does not show one of its placeholders.
    """

    def __init__(self, text: str, name: str) -> None:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.name = name
        try:
            self._template = ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(text)
        except TemplateError as error:
            raise OracleError(f"oracle.template: {name}: not a template: {error}") from error
        # digits, which filters such as upper leave alone
        marks = {placeholder: f"731907{number}" for number, placeholder in enumerate(PLACEHOLDERS)}
        shown = self.render(*marks.values())
        missing = [placeholder for placeholder, mark in marks.items() if mark not in shown]
        if missing:
            raise OracleError(
                f"oracle.template: {name}: does not show {', '.join(f'{{{{ {one} }}}}' for one in missing)};"
                " a judge must see the prompt and both responses"
            )

    def render(self, prompt: str, response_a: str, response_b: str) -> str:
        """The text that the judge is sent; nothing in its arguments is read as a template.

        Raises:
            OracleError: the template fails.
        """
        try:
            return self._template.render(prompt=prompt, response_a=response_a, response_b=response_b)
        except Exception as error:  # a template is a program: jinja's errors and Python's
            raise OracleError(f"oracle.template: {self.name}: {type(error).__name__}: {error}") from error


def source(template: str | None, verdict: str) -> str:
    """The text of a template: a file's, or the package's own for a kind of verdict.

    Raises:
        OracleError: the file cannot be read.
    """
    if template is None:
        return resources.files("sppo.oracle").joinpath(f"judge_{verdict}.jinja").read_text(encoding="utf-8")
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OracleError(f"oracle.template: {template}: cannot be read: {error}") from error


def written_out(text: str) -> float | None:
    """The score of the first response in a verdict such as [[A]]: the last one counts; None where there is none.

    A text that is a letter alone is a verdict as well.
    """
    found = _WRITTEN_OUT.findall(text)
    letter = found[-1] if found else text.strip(_AROUND)
    return SCORE.get(letter)


def masses(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The probability of each verdict as the answer's first token, tokens that differ by what is around a letter added.

    Returns:
        None where the server gives no log-probabilities.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    if not content:
        return None
    first = content[0]
    tokens = first.get("top_logprobs") or [first]
    found = dict.fromkeys(SCORE, 0.0)
    for token in tokens:
        letter = str(token.get("token", "")).strip(_AROUND + "▁Ġ")
        if letter in found:
            found[letter] += math.exp(min(0.0, float(token["logprob"])))
    return found
