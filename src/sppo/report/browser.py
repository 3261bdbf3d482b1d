"""The data of the page's browser of responses: a random sample of prompts, and beside it the most unusual ones.

Texts are data: control characters and direction marks are made visible, and everything goes into the page as JSON.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from sppo import randomness
from sppo.progress import printable
from sppo.report.samples import ComparedResponses, Responses
from sppo.rundir.reader import BASE, label

LONGEST = 20_000
"""A text of more characters is shown by its beginning and its end, with the number of characters."""
UNUSUAL_PROMPTS = 4
"""The prompts of each iteration with the most cycles, disagreement, length and spread that are always shown."""
LONGEST_DIFF = 3_000
"""Texts of more words than this are not compared word by word, which would take too long."""

Span = tuple[int, int]


def browse(
    compared: Mapping[int, ComparedResponses], held_out: Mapping[int, Responses], budget: int
) -> dict[str, Any]:
    """Prompts with their responses, as plain data of at most `budget` bytes of JSON; unusual prompts come last.

    Args:
        compared: the responses that were sampled for training, by iteration.
        held_out: the responses to held-out prompts, by iteration; 0 for the base policy.
        budget: bytes, shared equally by the iterations and the held-out prompts.
    """
    share = budget // max(1, len(compared) + bool(held_out))
    trained: list[dict[str, Any]] = []
    for number, responses in compared.items():
        prompts = _within(_sampled_prompts(number, responses), share)
        trained += sorted(prompts, key=lambda prompt: bool(prompt["unusual"]))
    names = shared_prompts(held_out)
    return {
        "trained": trained,
        "heldOut": _within((_held_out_prompt(held_out, name) for name in names), share),
        "read": {
            "trained": sum(len(responses.matrix) for responses in compared.values()),
            "trainedOf": sum(responses.responses.total for responses in compared.values()),
            "heldOut": len(names),
            "heldOutOf": max((responses.total for responses in held_out.values()), default=0),
        },
    }


def shared_prompts(held_out: Mapping[int, Responses]) -> list[str]:
    """The held-out prompts to which a response of every policy was read, in random order."""
    names = (
        set.intersection(*(set(responses.prompt_ids) for responses in held_out.values()))
        if held_out
        else set()
    )
    return sorted(names, key=lambda name: randomness.digest("report", name))


def embedded(value: Any) -> Markup:
    """Plain data as JSON for a script element: no character of it can end the element or begin a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def shown(text: str) -> str:
    """A text for the page: control characters are visible, and the middle of a very long text is left out."""
    half = LONGEST // 2
    # making a character visible lengthens the text, so its length is looked at before and after
    visible = printable(text if len(text) <= LONGEST else text[:half] + text[-half:])
    if len(text) <= LONGEST and len(visible) <= LONGEST:
        return visible
    note = f"[... the middle of {len(text):,} characters is left out here ...]"
    return f"{visible[:half]}\n\n{note}\n\n{visible[-half:]}"


def changes(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """The spans of `before` that `after` does not have, and the spans that are new in it, word by word."""
    words = [[match.span() for match in re.finditer(r"\w+|[^\w\s]", text)] for text in (before, after)]
    if max(map(len, words)) > LONGEST_DIFF:
        return [], []
    old, new = (
        [text[slice(*span)] for span in spans] for text, spans in zip((before, after), words, strict=True)
    )
    removed: list[Span] = []
    added: list[Span] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind != "equal":
            removed += [(words[0][i][0], words[0][j - 1][1])] if j > i else []
            added += [(words[1][k][0], words[1][m - 1][1])] if m > k else []
    return removed, added


def _within(prompts: Iterator[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    kept = []
    for prompt in prompts:
        budget -= len(embedded(prompt).encode())
        if budget < 0:
            break
        kept.append(prompt)
    return kept


def _sampled_prompts(iteration: int, compared: ComparedResponses) -> Iterator[dict[str, Any]]:
    names = compared.responses.prompt_ids
    unusual = _unusual_prompts(compared)
    order = sorted(range(len(names)), key=lambda index: randomness.digest("report", names[index]))
    for index in [*unusual, *(index for index in order if index not in unusual)]:
        yield _sampled_prompt(iteration, compared, index, unusual.get(index, ""))


def _unusual_prompts(compared: ComparedResponses) -> dict[int, str]:
    """The positions of the most unusual prompts, each with what is unusual about it."""
    measures = {
        "cycles": compared.cycles,
        "disagreement": compared.disagreement,
        "spread": np.ptp(compared.win_rates, axis=1),
        "length": np.array([np.mean(counts) for counts in compared.responses.tokens]),
    }
    unusual: dict[int, str] = {}
    for name, values in measures.items():
        for index in np.argsort(-np.nan_to_num(values), kind="stable")[:UNUSUAL_PROMPTS]:
            if values[index] > 0:
                unusual.setdefault(int(index), name)
    return unusual


def _sampled_prompt(iteration: int, compared: ComparedResponses, index: int, unusual: str) -> dict[str, Any]:
    responses, rates = compared.responses, compared.win_rates[index]
    columns = (responses.texts[index], responses.tokens[index], responses.truncated[index], rates)
    return {
        "id": printable(responses.prompt_ids[index]),
        "t": iteration,
        "unusual": unusual,
        "prompt": shown(responses.prompts[index]),
        "responses": [
            {"text": shown(text), "tokens": tokens, "truncated": truncated, "rate": _rounded(rate)}
            for text, tokens, truncated, rate in zip(*columns, strict=True)
        ],
        "matrix": _rounded_rows(compared.matrix[index]),
        "components": [
            {"name": printable(name), "matrix": _rounded_rows(matrices[index])}
            for name, matrices in compared.components.items()
        ],
        "best": _rounded(np.max(rates)),
        "tokens": _rounded(np.mean(responses.tokens[index])),
        "disagreement": _rounded(compared.disagreement[index]),
        "cycles": _rounded(compared.cycles[index]),
    }


def _held_out_prompt(held_out: Mapping[int, Responses], name: str) -> dict[str, Any]:
    """The first response of each policy to a prompt, with the words that the base's response does not have."""
    rows: list[dict[str, Any]] = []
    for number, responses in held_out.items():
        index = responses.prompt_ids.index(name)
        text = shown(responses.texts[index][0])
        rows.append(
            {
                "policy": label(number),
                "text": text,
                "tokens": responses.tokens[index][0],
                "truncated": responses.truncated[index][0],
                "rate": _rounded(responses.win_rates.get(name, np.nan)),
                "new": changes(rows[0]["text"], text)[1] if rows and BASE in held_out else [],
            }
        )
    first = next(iter(held_out.values()))
    return {
        "id": printable(name),
        "prompt": shown(first.prompts[first.prompt_ids.index(name)]),
        "responses": rows,
        "rate": rows[-1]["rate"],
        "tokens": _rounded(np.mean([row["tokens"] for row in rows])),
    }


def _rounded(value: Any) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _rounded_rows(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    return [[_rounded(value) for value in row] for row in matrix]
