"""Traits that a policy's responses have taken on, and what two oracles think of responses that have them.

A policy that exploits an oracle's weakness shows it in what it writes: a phrase that most responses end with, a mark of
formatting, lengths that the first policy rarely reached, repetition. Each trait is something that a response has or has not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from sppo.winrates import Array

WORDS = (1, 5)
"""The fewest and the most words of a phrase; a single word only if it has no letter, such as a mark of formatting."""
RISE = 0.05
"""The least rise of the share of responses with a trait since the base policy."""
PROMPTS = 0.15
"""The least share of the prompts with a response that has it, so that a fact about one prompt is no trait of the policy."""
KEPT = 5
"""So many traits with the largest rise are kept, and so many that the two oracles differ most about."""
LOOKED_AT = 2000
"""Phrases are sought in this many responses of each policy at most."""
EXAMPLES, EXAMPLE_LENGTH = 2, 200
CONFIDENCE = 0.95

Has = Bool[Array, "prompts m"]
Texts = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Trait:
    """A trait of a policy's responses.

    Attributes:
        name: what such a response does, such as `says "I hope this helps"`.
        base_share: the share of the base's responses that have it.
        share: the share of the policy's.
        win_rate: how often those of the policy are preferred to the base's by the oracle; None without an oracle.
        held_out: the same by the held-out oracle; None if there is none.
        gap: `mean`, `low` and `high` of the difference of the two, over prompts by Student's t; None without both.
        examples: the beginnings of responses that have it, each with its `prompt_id`.
    """

    name: str
    base_share: float
    share: float
    win_rate: float | None
    held_out: float | None
    gap: dict[str, float] | None
    examples: list[dict[str, str]]

    def record(self) -> dict[str, Any]:
        """The values, for a record."""
        return asdict(self)


def risen(
    prompt_ids: Sequence[str],
    texts: Texts,
    base: Texts,
    by_oracle: Float[Array, "prompts m"] | None = None,
    held_out: Float[Array, "prompts m"] | None = None,
) -> list[Trait]:
    """The traits that are more common in a policy's responses than in the base's, beginning with the largest rise.

    Args:
        prompt_ids: one for each prompt.
        texts: the policy's m responses to each prompt.
        base: the base's responses to each prompt.
        by_oracle: how often each response is preferred to the base's by the oracle; NaN where it is not known.
        held_out: the same by the held-out oracle.
    """
    found = []
    for name, ours, theirs in (*_shapes(texts, base), *_new_phrases(texts, base)):
        if ours.mean() - theirs.mean() >= RISE and ours.any(1).mean() >= PROMPTS:
            found.append((name, ours, float(theirs.mean())))
    found.sort(key=lambda of: of[2] - of[1].mean())
    traits = [
        Trait(
            name,
            base_share,
            float(has.mean()),
            _mean(by_oracle, has),
            _mean(held_out, has),
            _gap(by_oracle, held_out, has),
            _examples(prompt_ids, texts, has),
        )
        for name, has, base_share in _without_parts(found)
    ]
    suspicious = sorted(traits, key=lambda trait: 0.0 if trait.gap is None else -trait.gap["low"])[:KEPT]
    return [trait for n, trait in enumerate(traits) if n < KEPT or trait in suspicious]


def _shapes(texts: Texts, base: Texts) -> Iterator[tuple[str, Has, Has]]:
    """Lengths that are rare among the base's responses, and repetition, as names with who has them: policy and base."""
    short, long = np.quantile([len(text.split()) for row in base for text in row], [0.1, 0.9])
    shapes: dict[str, Callable[[str], bool]] = {
        f"has more than {long:g} words": lambda text: len(text.split()) > long,
        f"has fewer than {short:g} words": lambda text: len(text.split()) < short,
        "repeats a sentence": _repeats,
    }
    for name, has in shapes.items():
        ours, theirs = (np.array([[has(text) for text in row] for row in of]) for of in (texts, base))
        yield name, ours, theirs


def _new_phrases(texts: Texts, base: Texts) -> Iterator[tuple[str, Has, Has]]:
    """The phrases that have become more common, in the form of :func:`_shapes`."""
    before, after = (_shares(of) for of in (base, texts))
    risen = {phrase for phrase, share in after.items() if share - before.get(phrase, 0.0) >= RISE}
    ours, theirs = ([[_phrases(text) & risen for text in row] for row in of] for of in (texts, base))
    for phrase in sorted(risen):
        now, then = (np.array([[phrase in said for said in row] for row in of]) for of in (ours, theirs))
        yield f'says "{" ".join(phrase)}"', now, then


def _shares(texts: Texts) -> dict[tuple[str, ...], float]:
    """The share of responses that each phrase stands in."""
    flat = [text for row in texts for text in row][:LOOKED_AT]
    counts: Counter[tuple[str, ...]] = Counter()
    for text in flat:
        counts.update(_phrases(text))
    return {phrase: count / len(flat) for phrase, count in counts.items() if count > 1}


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    fewest, most = WORDS
    phrases = {
        tuple(words[start : start + n])
        for n in range(max(fewest, 2), most + 1)
        for start in range(len(words) - n + 1)
    }
    return phrases | {(word,) for word in words if not any(map(str.isalpha, word))}


def _repeats(text: str) -> bool:
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if len(part.split()) > 2]
    return len(set(sentences)) < len(sentences)


def _without_parts(found: Sequence[tuple[str, Has, float]]) -> list[tuple[str, Has, float]]:
    """The traits, with only the most telling one of the phrases that stand in almost the same responses."""
    kept: list[tuple[str, Has, float]] = []
    for name, has, base_share in found:
        twins = [
            n
            for n, (other_name, other, _) in enumerate(kept)
            if name.startswith("says")
            and other_name.startswith("says")
            and (has != other).mean() <= 0.05 * has.mean()
        ]
        if not twins:
            kept.append((name, has, base_share))
        elif _wholeness(name) > _wholeness(kept[twins[0]][0]):
            kept[twins[0]] = (name, has, base_share)
    return kept


def _wholeness(name: str) -> tuple[int, int]:
    """A phrase from one sentence says more than one across two, and a longer one more than a shorter one."""
    return -len(re.findall(r"[.!?] ", name)), len(name)


def _mean(rates: Float[Array, "prompts m"] | None, has: Has) -> float | None:
    known = None if rates is None else rates[has & ~np.isnan(rates)]
    return None if known is None or not len(known) else float(known.mean())


def _gap(
    by_oracle: Float[Array, "prompts m"] | None, held_out: Float[Array, "prompts m"] | None, has: Has
) -> dict[str, float] | None:
    """The mean over prompts of how much better the oracle finds the responses with the trait than the held-out oracle."""
    if by_oracle is None or held_out is None:
        return None
    differences = np.where(has, by_oracle - held_out, np.nan)
    counted = ~np.isnan(differences)
    by_prompt = np.array([row[of].mean() for row, of in zip(differences, counted, strict=True) if of.any()])
    if len(by_prompt) < 2:
        return None
    mean, spread = float(by_prompt.mean()), float(by_prompt.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(by_prompt) - 1)) * spread / len(by_prompt) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _examples(prompt_ids: Sequence[str], texts: Texts, has: Has) -> list[dict[str, str]]:
    """The first response with the trait to each of a few prompts."""
    rows = [(n, int(row.argmax())) for n, row in enumerate(has) if row.any()][:EXAMPLES]
    return [{"prompt_id": prompt_ids[n], "text": texts[n][k][:EXAMPLE_LENGTH]} for n, k in rows]
