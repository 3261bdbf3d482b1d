"""How many optimiser steps a training stage takes, and the learning rate of each."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Steps:
    """The optimiser steps of one iteration's training.

    Attributes:
        per_epoch: ceil(prompts / prompts per step).
        scheduled: steps that the learning-rate schedule spans.
        warmup: steps of them in which it rises.
        kept: steps that are taken; the policy after the last of them is kept.
    """

    per_epoch: int
    scheduled: int
    warmup: int
    kept: int


def plan(
    prompts: int, *, batch_prompts: int, epochs: float, keep_epochs: float | None, warmup_ratio: float
) -> Steps:
    """The steps of a training stage over so many prompts.

    The paper's schedule is epochs 18 and keep_epochs 1: it is left in the middle of its warm-up.
    """
    per_epoch = math.ceil(prompts / batch_prompts)
    scheduled = math.ceil(per_epoch * epochs)
    kept = scheduled if keep_epochs is None else math.ceil(per_epoch * keep_epochs)
    # a schedule that is all warm-up would be all zero where it has one step
    warmup = min(math.ceil(scheduled * warmup_ratio), scheduled - 1)
    return Steps(per_epoch, scheduled, warmup, kept)


def learning_rate(step: int, steps: Steps, schedule: Schedule, peak: float) -> float:
    """The learning rate of a step (counted from 0), as transformers' schedulers of the same names give it."""
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
