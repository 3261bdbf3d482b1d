r"""Three annotators with different priorities, whose mean preference is cyclic.

Each annotator a reads the prompt x and a response y as text, counts the sorts of sentences by the grammar's tables,
and prefers by the difference of its own utilities, in nats:

.. math::
    P_a(y_i \succ y_j \mid x) = \sigma(u_a(x, y_i) - u_a(x, y_j)), \qquad
    u_a(x, y) = q(x, y) + v_a(x, y).

All annotators share the quality q. Every sentence that spoils a response is a slip, and so are a missing end and
the lack of any true fact about the topic; with the counts of :class:`Reading`,

.. math::
    \text{slips} = \text{false} + \text{astray} + \text{filler} + \text{repeated} + \text{garbled}
        + [\text{unfinished}] + [\text{facts} = 0],

and the first slip costs most, further slips cost little more, and an empty response costs most of all:

.. math::
    q = -9\,[\text{slips} \ge 1] - \tfrac12 \max(\text{slips} - 1, 0) - 9\,[\text{empty}].

The priorities v differ:

.. math::
    v_\text{scholar} = 3\,\min(\text{facts}, 4), \qquad
    v_\text{editor} = -\max(\text{characters} - 60, 0) / 12, \qquad
    v_\text{host} = 3\,\min(\text{warmth}, 2).

The panel is the equal-weight mean of the three probabilities,
:math:`\bar P = \tfrac13 (P_\text{scholar} + P_\text{editor} + P_\text{host})`.

**The panel is cyclic, so no scalar reward represents it.** Take responses A, B, C that the scholar ranks
A > B > C, the editor B > C > A and the host C > A > B: A has many facts and some warmth, B has two dry facts,
and C has one fact and much warmth. Two annotators agree with every step of the cycle A > B > C > A, and one does
not. If each of the two agrees by a margin above ln 3 nats, each probability exceeds
:math:`\sigma(\ln 3) = \tfrac34`, and the third exceeds 0, so

.. math::
    \bar P(A \succ B),\ \bar P(B \succ C),\ \bar P(C \succ A)
    > \tfrac13 \left(\tfrac34 + \tfrac34 + 0\right) = \tfrac12.

A scalar reward r with any increasing link (Bradley-Terry: :math:`\sigma(r_i - r_j)`) whose probabilities exceed
one half on all three steps needs r(A) > r(B) > r(C) > r(A), which no real numbers satisfy. Each annotator alone
is such a model, but their mixture is not. :data:`CYCLE` is an explicit triple.

The annotators accept any text. They are pure functions of the text: nothing is random, and the utility of a response
does not depend on the responses that it is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sppo.tinyworld import grammar

Probabilities: TypeAlias = npt.NDArray[np.float64]

#: A prompt and three responses A, B, C such that the panel prefers A to B, B to C and C to A.
CYCLE: tuple[str, tuple[str, str, str]] = (
    "Tell me about a fox.",
    (
        "Hello, my friend! A fox is a clever wild animal. It has red fur and a bushy tail. "
        "It hunts in the dark. It lives in forests and fields. It eats mice and berries.",
        "A fox is a clever wild animal. It has red fur and a bushy tail.",
        "Hello, my friend! A fox is a clever wild animal. It always makes me smile. I hope this helps you!",
    ),
)


@dataclass(frozen=True)
class Reading:
    """The number of sentences of each sort in a response.

    Attributes:
        facts: distinct true statements about the prompt's topic.
        false: distinct false statements about the prompt's topic: predicates of other topics.
        astray: statements about another topic, and remarks about something else.
        filler: sentences without content.
        warmth: distinct greetings, asides and closings.
        repeated: sentences or facts that the response has already stated.
        garbled: sentences outside of the grammar.
        unfinished: whether the text does not end with the end of a sentence.
        empty: whether there is no text.
        characters: length of the text without white space at its ends.
    """

    facts: int
    false: int
    astray: int
    filler: int
    warmth: int
    repeated: int
    garbled: int
    unfinished: bool
    empty: bool
    characters: int


def _key(sentence: str) -> str:
    return " ".join(sentence.lower().split()).strip(" .!?\"'")


_WARM = frozenset(map(_key, (*grammar.GREETINGS, *grammar.ASIDES, *grammar.CLOSINGS)))
_FILLER = frozenset(map(_key, grammar.FILLERS))
_REMARKS = frozenset(map(_key, grammar.REMARKS))
_PREDICATES = frozenset(predicate for topic in grammar.TOPICS for predicate in topic.predicates)
_NOUNS = {topic.noun: index for index, topic in enumerate(grammar.TOPICS)}
_TRUE = tuple(frozenset(topic.predicates) for topic in grammar.TOPICS)
_NOUN_IN_PROMPT = re.compile(r"\b(" + "|".join(sorted(_NOUNS, key=len, reverse=True)) + r")\b")
_SUBJECT = re.compile(r"(?:also,? )?(?:(it)|(?:(?:an?|the) )?(" + "|".join(_NOUNS) + r")) (.+)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def topic_of(prompt: str) -> int | None:
    """Return the index in ``grammar.TOPICS`` of the topic that a prompt names last, or None if it names none."""
    nouns = _NOUN_IN_PROMPT.findall(prompt.lower())
    return _NOUNS[nouns[-1]] if nouns else None


def read(prompt: str, response: str) -> Reading:
    """Count the sentences of a response to a prompt; any text is accepted, and without a topic every fact is astray."""
    return _read(topic_of(prompt), response)


def _read(topic: int | None, response: str) -> Reading:
    text = response.strip()
    counts = dict.fromkeys(("facts", "false", "astray", "filler", "warmth", "repeated", "garbled"), 0)
    seen: set[object] = set()
    for sentence in _SENTENCE_END.split(text) if text else ():
        sort, identity = _sort(topic, _key(sentence))
        counts["repeated" if identity in seen else sort] += 1
        seen.add(identity)
    return Reading(
        **counts,
        unfinished=bool(text) and not text.rstrip("\"')").endswith((".", "!", "?")),
        empty=not text,
        characters=len(text),
    )


def _sort(topic: int | None, key: str) -> tuple[str, object]:
    """Return the sort of a sentence, and the value that is equal for a repetition of it."""
    if key in _WARM:
        return "warmth", key
    if key in _FILLER:
        return "filler", key
    if key in _REMARKS:
        return "astray", key
    match = _SUBJECT.fullmatch(key)
    if match is None or match[3] not in _PREDICATES:
        return "garbled", key
    subject = topic if match[1] else _NOUNS[match[2]]
    if topic is None or subject != topic:
        return "astray", (subject, match[3])
    return ("facts" if match[3] in _TRUE[topic] else "false"), (subject, match[3])


def _quality(reading: Reading) -> float:
    spoilt = reading.false + reading.astray + reading.filler + reading.repeated + reading.garbled
    slips = spoilt + reading.unfinished + (reading.facts == 0)
    return -9.0 * (slips >= 1) - 0.5 * max(slips - 1, 0) - 9.0 * reading.empty


_PRIORITIES: dict[str, Callable[[Reading], float]] = {
    "scholar": lambda reading: 3.0 * min(reading.facts, 4),
    "editor": lambda reading: -max(reading.characters - 60, 0) / 12,
    "host": lambda reading: 3.0 * min(reading.warmth, 2),
}
ANNOTATORS = tuple(_PRIORITIES)


def utility(annotator: str, reading: Reading) -> float:
    """Compute u_a(x, y) in nats for one of :data:`ANNOTATORS`, by the equations at the head of this module."""
    return _quality(reading) + _PRIORITIES[annotator](reading)


def _probabilities(
    annotator: str, prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> Probabilities:
    if len(prompts) != len(responses):
        raise ValueError(
            f"{len(prompts)} prompts but {len(responses)} lists of responses; give one list for each"
        )
    sizes = {len(row) for row in responses}
    if len(sizes) > 1:
        raise ValueError(f"every prompt needs the same number of responses, got {sorted(sizes)}")
    utilities = np.empty((len(prompts), max(sizes, default=0)))
    for n, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        topic = topic_of(prompt)
        utilities[n] = [utility(annotator, _read(topic, response)) for response in row]
    # sigma(d) = (1 + tanh(d/2)) / 2; tanh is odd and does not overflow, so P + P^T = 1 and P_ii = 1/2 hold exactly.
    margin = utilities[:, :, None] - utilities[:, None, :]
    return 0.5 + 0.5 * np.tanh(0.5 * margin)


def scholar(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Probabilities:
    r"""P(y_i > y_j | x) of the annotator who values true detail most.

    It is :math:`\sigma(u_i - u_j)` with v = 3 min(facts, 4); see the head of this module.

    Args:
        prompts: the texts of N prompts.
        responses: the texts of the K responses to each prompt.

    Returns:
        [N, K, K] probabilities with P + P^T = 1 and 1/2 on the diagonal.

    Raises:
        ValueError: prompts have different numbers of responses, or `responses` has not one list for each prompt.
    """
    return _probabilities("scholar", prompts, responses)


def editor(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Probabilities:
    r"""P(y_i > y_j | x) of the annotator who values brevity most.

    It is :math:`\sigma(u_i - u_j)` with v = -max(characters - 60, 0) / 12. Arguments, result and errors are those
    of :func:`scholar`.
    """
    return _probabilities("editor", prompts, responses)


def host(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Probabilities:
    r"""P(y_i > y_j | x) of the annotator who values warmth most.

    It is :math:`\sigma(u_i - u_j)` with v = 3 min(warmth, 2). Arguments, result and errors are those of
    :func:`scholar`.
    """
    return _probabilities("host", prompts, responses)
