"""IFEval's verifiable constraints (Zhou et al., arXiv:2311.07911): 25 kinds, each with a program that checks it.

A prompt states constraints by name and arguments, such as ``length_constraints:number_words`` with at least 300 words.
:func:`kept` says which of them a response keeps, strictly or loosely. Loosely, a response is also tried without its
first line, without its last line and without asterisks, since an introduction such as "Sure, here it is:" should not
break a constraint.

The checks follow the benchmark's published definitions. Where the benchmark uses trained models, this module has rules:
sentences end at ``.``, ``!`` or ``?`` unless it belongs to an abbreviation, and languages are told by script and frequent
words (:mod:`sppo.benchmarks.ifeval.languages`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sppo.benchmarks.ifeval.languages import may_be
from sppo.reading import parse, regular


class ConstraintError(ValueError):
    """A file of prompts with constraints, or a constraint, that cannot be used; the message says why."""


@dataclass(frozen=True)
class Constraint:
    """A constraint of a prompt.

    Attributes:
        name: the benchmark's name, e.g. `punctuation:no_comma`.
        arguments: the values that the check takes.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ConstrainedPrompt:
    """A prompt with the constraints that it states.

    Attributes:
        key: the benchmark's number of the prompt.
        text: the prompt.
        constraints: the constraints, at least one.
    """

    key: int | str
    text: str
    constraints: tuple[Constraint, ...]


def read_prompts(path: Path) -> list[ConstrainedPrompt]:
    """Read IFEval's JSON lines: `prompt`, `instruction_id_list`, `kwargs` and mostly `key`.

    Raises:
        ConstraintError: the file cannot be read, a row is malformed, a constraint is unknown, or a prompt is there twice.
    """
    prompts: dict[str, ConstrainedPrompt] = {}
    try:
        lines = regular(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConstraintError(f"{path}: the prompts with constraints cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(parse(line), number)
        except (ValueError, TypeError, KeyError) as error:
            raise ConstraintError(
                f"{path}, line {number}: {error}; a line is a mapping with `prompt`, `instruction_id_list` and `kwargs`,"
                " a mapping for each instruction"
            ) from error
        if prompt.text in prompts:
            raise ConstraintError(f"{path}, line {number}: this prompt is there twice; keep one")
        prompts[prompt.text] = prompt
    if not prompts:
        raise ConstraintError(f"{path}: there are no prompts in it")
    return list(prompts.values())


def digest(path: Path) -> str:
    """SHA-256 of a file of prompts.

    Raises:
        ConstraintError: the file cannot be read.
    """
    try:
        return hashlib.sha256(regular(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ConstraintError(f"{path}: the prompts with constraints cannot be read: {error}") from error


def kept(constraints: Sequence[Constraint], response: str, *, loose: bool = False) -> list[bool]:
    """Whether a response keeps each of its prompt's constraints; an empty response keeps none."""
    versions = _loose_versions(response) if loose else [response]
    versions = [version for version in versions if version.strip()]
    return [
        any(CHECKS[constraint.name](version, **constraint.arguments) for version in versions)
        for constraint in constraints
    ]


def _prompt(row: Any, number: int) -> ConstrainedPrompt:
    text, names, arguments = row["prompt"], row["instruction_id_list"], row["kwargs"]
    if not isinstance(text, str) or not names or len(names) != len(arguments):
        raise ValueError("no text as prompt, no instruction, or another number of kwargs")
    constraints = []
    for name, values in zip(names, arguments, strict=True):
        if name not in CHECKS:
            raise ValueError(f"the instruction {name!r} is unknown; known are {', '.join(CHECKS)}")
        constraint = Constraint(
            name, {key: value for key, value in (values or {}).items() if value is not None}
        )
        kept([constraint], "A trial that finds missing arguments.")
        constraints.append(constraint)
    return ConstrainedPrompt(row.get("key", number), text, tuple(constraints))


def _loose_versions(response: str) -> list[str]:
    lines = response.split("\n")
    versions = [
        response,
        *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])),
    ]
    return [
        version.replace("*", "") if bare else version for version, bare in product(versions, (False, True))
    ]


def _related(count: int, relation: str, threshold: int) -> bool:
    """Whether a count is less than, or at least, a threshold."""
    if relation not in ("less than", "at least"):
        raise ValueError(f"the relation {relation!r} is neither 'less than' nor 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


# Keywords: words are found in any case.


def _keywords(response: str, *, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), response, re.IGNORECASE) for word in keywords)


def _keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _related(len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE)), relation, frequency)


def _forbidden_words(response: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(response.lower().count(letter.lower()), let_relation, let_frequency)


# Lengths.


def _words(response: str, *, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", response)), relation, num_words)


_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|inc|ltd|co|corp|no|vol|fig|approx|dept|est|gen|gov|lt|col|sgt|rev|hon|"
    r"jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mt|ave|e\.g|i\.e|a\.m|p\.m|u\.s|u\.k|ph\.d)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s)")


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end at `.`, `!` or `?` before white space, unless an abbreviation ends there."""
    parts, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        following = text[end.end() :].lstrip()
        is_abbreviation = end[0] == "." and _ABBREVIATION.search(text[start : end.end()])
        if is_abbreviation or (following[:1].islower() and end[0].startswith(".")):
            continue
        parts.append(text[start : end.end()].strip())
        start = end.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    return _related(len(sentences(response)), relation, num_sentences)


def _paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are separated by ***; only the first and the last may be empty, and do not count then."""
    paragraphs = re.split(r"\s?\*\*\*\s?", response)
    inner = paragraphs[1:-1]
    ends = [paragraphs[0], *paragraphs[1:][-1:]]
    if not all(paragraph.strip() for paragraph in inner):
        return False
    return len(inner) + sum(bool(paragraph.strip()) for paragraph in ends) == num_paragraphs


def _paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = response.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    words = paragraphs[nth_paragraph - 1].split() if nth_paragraph <= count else []
    if not words:
        return False
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    return count == num_paragraphs and word.lower() == first_word.lower()


# Contents.


def _placeholders(response: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def _postscript(response: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker.lower())), response.lower()) is not None


# Formats.


def _bullets(response: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained_response(response: str) -> bool:
    return any(f"My answer is {answer}." in response for answer in ("yes", "no", "maybe"))


def _highlights(response: str, *, num_highlights: int) -> bool:
    # of a **bold** part the first pattern finds only the empty pairs of asterisks around it, which do not count
    single = [part for part in re.findall(r"\*[^\n\*]*\*", response) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", response) if part[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", response)) >= num_sections


def _json(response: str) -> bool:
    text = re.sub(r"^```(?:json|Json|JSON)?", "", response.strip()).removesuffix("```").strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str) -> bool:
    return any(part.lstrip("<").rstrip(">").strip() for part in re.findall(r"<<[^\n]+>>", response))


# Combinations.


def _two_responses(response: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    texts = [part for part in parts if part]
    return len(texts) == 2 and texts[0] != texts[1]


def _repeats_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


# Beginning and end, letter case, punctuation, language.


def _ends_with(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _capital_words(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"\w+(?:[-.&/]\w+)*|'\w+", response)
    return _related(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capitals(response: str) -> bool:
    return response.isupper() and may_be(response, "en")


def _english_lowercase(response: str) -> bool:
    return response.islower() and may_be(response, "en")


def _no_comma(response: str) -> bool:
    return "," not in response


def _language(response: str, *, language: str) -> bool:
    return may_be(response, language)


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _paragraph_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capitals,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""The check of each constraint, by the benchmark's name; its arguments have the benchmark's names as well."""
