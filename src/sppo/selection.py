"""Rules that select which of the K responses to a prompt are trained on.

The win rate P^ of a selected response is always the mean over all K responses.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Rule = Literal["best_worst", "all", "best_worst_random"]


def best_worst(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """The response with the highest and the one with the lowest win rate (the paper, Section 5.1).

    Ties go to the lower index. If all K win rates are equal, the first and the last response are selected, so
    that two different responses are returned.
    """
    del generator  # this rule is deterministic
    best = int(np.argmax(win_rate))
    worst = int(np.argmin(win_rate))
    return [best, worst] if best != worst else [0, len(win_rate) - 1]


def all_responses(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """All K responses, as in Algorithm 1."""
    del generator
    return list(range(len(win_rate)))


def best_worst_random(win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """The best, the worst and one of the others, drawn uniformly; only the first two if K = 2."""
    chosen = best_worst(win_rate, generator)
    others = [k for k in range(len(win_rate)) if k not in chosen]
    return chosen + ([int(generator.choice(others))] if others else [])


RULES: dict[str, Callable[[Sequence[float], np.random.Generator], list[int]]] = {
    "best_worst": best_worst,
    "all": all_responses,
    "best_worst_random": best_worst_random,
}


def select(rule: Rule, win_rate: Sequence[float], generator: np.random.Generator) -> list[int]:
    """Select the responses to train on by the named rule.

    Args:
        rule: a name in :data:`RULES`.
        win_rate: [n] P^ of the responses that can be selected, n <= K.
        generator: the prompt's own random generator, so that the draw does not depend on other prompts.

    Returns:
        Distinct indices into `win_rate`; all of them if n < 2.
    """
    return list(range(len(win_rate))) if len(win_rate) < 2 else RULES[rule](win_rate, generator)
