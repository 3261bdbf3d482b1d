"""The question that a judge is sent, and how the verdict in its answer is read."""

import math
import re
from importlib import resources
from pathlib import Path

from sppo.endpoint.exchange import Choice
from sppo.oracle import OracleError
from sppo.reading import regular

SCORE: dict[str, float] = {"A": 1.0, "B": 0.0, "C": 0.5}
"""The score that a verdict gives to the first response."""
PLACEHOLDERS = ("prompt", "response_a", "response_b")
_WRITTEN_OUT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_AROUND = " \t\n\"'`*[]().:"


class Template:
    """A prompt for judges, from a jinja template that is rendered in a sandbox.

    Args:
        text: the template, with the placeholders prompt, response_a and response_b.
        name: what it is called in messages.

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
                f"oracle.template: {name}: does not show {', '.join(f'{{{{ {placeholder} }}}}' for placeholder in missing)};"
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
    """The text of a template: that of a file, or the package's own for a kind of verdict.

    Raises:
        OracleError: the file cannot be read.
    """
    if template is None:
        return resources.files("sppo.oracle").joinpath(f"judge_{verdict}.jinja").read_text(encoding="utf-8")
    try:
        return regular(Path(template).expanduser()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OracleError(f"oracle.template: {template}: cannot be read: {error}") from error


def written_verdict(text: str) -> float | None:
    """The score of the first response in a verdict such as [[A]]: the last one counts; None where there is none.

    A text that is a letter alone is a verdict as well.
    """
    verdicts = _WRITTEN_OUT.findall(text)
    letter = verdicts[-1] if verdicts else text.strip(_AROUND)
    return SCORE.get(letter)


def verdict_probabilities(choice: Choice) -> dict[str, float]:
    """The probability of each verdict as the answer's first token; 0 where the answer has no token.

    Tokens that differ only by what stands around the letter are added up.
    """
    first = choice.first_token
    masses = dict.fromkeys(SCORE, 0.0)
    for token in (first.top_logprobs or [first]) if first else []:
        letter = verdict_letter(token.token)
        if letter is not None:
            masses[letter] += math.exp(token.logprob)
    return masses


def verdict_letter(token: str) -> str | None:
    """The verdict that a token stands for, whatever stands around its letter; None if it is no verdict."""
    letter = token.strip(_AROUND + "\u2581\u0120")  # the spaces of SentencePiece and byte-level tokenizers
    return letter if letter in SCORE else None
