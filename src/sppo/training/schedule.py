"""The number of optimiser steps in a training stage, and the learning rate of each step."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Steps:
    """The optimiser steps of one iteration's training.

    Attributes:
        per_epoch: ceil(prompts / prompts per step).
        scheduled: the number of steps that the learning-rate schedule spans.
        warmup: the number of those steps in which the learning rate rises from 0, which is never 1.
        kept: the number of steps that are taken; the policy after the last of them is kept.
    """

    per_epoch: int
    scheduled: int
    warmup: int
    kept: int


def plan(
    prompts: int, *, batch_prompts: int, epochs: float, keep_epochs: float | None, warmup_ratio: float
) -> Steps:
    """Plan the steps of a training stage over a number of prompts.

    The paper's schedule is epochs 18 and keep_epochs 1, so its training stops in the middle of the warm-up.
    """
    per_epoch = math.ceil(prompts / batch_prompts)
    scheduled = math.ceil(per_epoch * epochs)
    kept = scheduled if keep_epochs is None else math.ceil(per_epoch * keep_epochs)
    warmup = math.ceil(scheduled * warmup_ratio)
    # The learning rate of the first warm-up step is 0. A warm-up of a single step would only lose it, since nothing rises.
    if warmup == 1:
        warmup = 0
    return Steps(per_epoch, scheduled, warmup, kept)


def learning_rate(step: int, steps: Steps, schedule: Schedule, peak: float) -> float:
    """The learning rate of a step (counted from 0), the same as that of transformers' scheduler of the same name."""
    if schedule == "constant":
        return peak
    if step < steps.warmup:
        return peak * step / max(1, steps.warmup)
    if schedule == "constant_with_warmup":
        return peak
    progress = (step - steps.warmup) / max(1, steps.scheduled - steps.warmup)
    if schedule == "linear":
        return peak * max(0.0, 1 - progress)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
