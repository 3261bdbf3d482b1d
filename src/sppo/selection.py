"""Which of the K responses to a prompt are trained on. Their P^ is always the mean over all K."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Rule = Literal["best_worst", "all", "best_worst_random"]


def best_worst(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """The response with the highest and the one with the lowest win rate (the paper, Section 5.1).

    Ties go to the lower index. Where all K win rates are equal the first and the last are taken, so that
    two different responses are returned.
    """
    del generator  # nothing is drawn
    best = int(np.argmax(win_rate))
    worst = int(np.argmin(win_rate))
    return [best, worst] if best != worst else [0, len(win_rate) - 1]


def all_responses(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """All K, as Algorithm 1 is written."""
    del generator
    return list(range(len(win_rate)))


def best_worst_random(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """Best, worst and one of the others drawn uniformly; only the first two where K = 2."""
    chosen = best_worst(win_rate, generator)
    others = [k for k in range(len(win_rate)) if k not in chosen]
    return chosen + ([int(generator.choice(others))] if others else [])


RULES: dict[str, Callable[[Sequence[float], np.random.Generator], list[int]]] = {
    "best_worst": best_worst,
    "all": all_responses,
    "best_worst_random": best_worst_random,
}


def select(rule: Rule, win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """Indices of the responses to train on, by the rule's name.

    Args:
        rule: one of :data:`RULES`.
        win_rate: [n] P^ of the responses that may be chosen, n <= K.
        generator: of this prompt alone, so that the draw depends on no other prompt.

    Returns:
        Distinct indices into `win_rate`; the only one where n = 1, none where n = 0.
    """
    return list(range(len(win_rate))) if len(win_rate) < 2 else RULES[rule](win_rate, generator)
