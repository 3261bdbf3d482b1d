"""IFEval's four scores: the share of prompts and of instructions that are followed, strictly and loosely.

The instructions of one prompt are answered by the same response and are not independent, so the standard errors of the
instruction-level scores are over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """A policy's scores in percent, with standard errors over prompts in percentage points.

    Attributes:
        prompt_strict: the share of prompts all of whose instructions are followed.
        prompt_strict_error: its standard error.
        instruction_strict: the share of instructions that are followed.
        instruction_strict_error: its standard error.
        prompt_loose: as `prompt_strict`, by the loose check.
        prompt_loose_error: its standard error.
        instruction_loose: as `instruction_strict`, by the loose check.
        instruction_loose_error: its standard error.
        prompts: the number of prompts.
        instructions: the number of instructions.
    """

    prompt_strict: float
    prompt_strict_error: float
    instruction_strict: float
    instruction_strict_error: float
    prompt_loose: float
    prompt_loose_error: float
    instruction_loose: float
    instruction_loose_error: float
    prompts: int
    instructions: int


def score(strict: Sequence[Sequence[bool]], loose: Sequence[Sequence[bool]]) -> Score:
    """The scores from what :func:`sppo.benchmarks.ifeval.constraints.kept` found for each prompt."""
    figures: list[tuple[float, float]] = []
    for checked in (strict, loose):
        figures.append(_share([all(kept) for kept in checked], [1] * len(checked)))
        figures.append(_share([sum(kept) for kept in checked], [len(kept) for kept in checked]))
    prompts, instructions, loose_prompts, loose_instructions = figures
    return Score(
        *prompts, *instructions, *loose_prompts, *loose_instructions, len(strict), sum(map(len, strict))
    )


def _share(followed: Sequence[float], stated: Sequence[int]) -> tuple[float, float]:
    """A share in percent and its standard error over prompts, by the delta method for a ratio of sums."""
    kept, count = np.array(followed, dtype=np.float64), np.array(stated, dtype=np.float64)
    prompts, share = len(kept), kept.sum() / count.sum()
    if prompts < 2:
        return float(100 * share), 0.0
    deviations = kept - share * count
    error = np.sqrt(prompts / (prompts - 1) * (deviations**2).sum()) / count.sum()
    return float(100 * share), float(100 * error)
