"""The six tasks of the Open LLM Leaderboard (v1), and how their scores are averaged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


class OpenLlmError(ValueError):
    """lm-eval, its tasks or local data that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Task:
    """One task of the leaderboard.

    Attributes:
        column: the task's name in tables.
        name: the name of lm-eval's task or group.
        file: the file of the packaged task, within lm-eval's tasks; a folder where there is a task for each subject.
        shots: the number of examples in the prompt.
        metric: the name of the metric in lm-eval's results.
        splits: the splits that local data must have.
    """

    column: str
    name: str
    file: str
    shots: int
    metric: str
    splits: tuple[str, ...]


TASKS = (
    Task("arc", "arc_challenge", "arc/arc_challenge.yaml", 25, "acc_norm,none", ("train", "test")),
    Task("truthfulqa", "truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", 0, "acc,none", ("validation",)),
    Task("winogrande", "winogrande", "winogrande/default.yaml", 5, "acc,none", ("train", "validation")),
    Task("gsm8k", "gsm8k", "gsm8k/gsm8k.yaml", 5, "exact_match,strict-match", ("train", "test")),
    Task("hellaswag", "hellaswag", "hellaswag/hellaswag.yaml", 10, "acc_norm,none", ("train", "validation")),
    Task("mmlu", "mmlu", "mmlu/default", 5, "acc,none", ("dev", "test")),
)
"""The tasks in the paper's order of columns."""


@dataclass(frozen=True)
class TaskScore:
    """A policy's score on one task.

    Attributes:
        score: the score in percent.
        standard_error: its standard error in percentage points; None for a single example.
        examples: the number of examples that it was measured on.
        parts: the number of subjects; 1 for a task without subjects.
    """

    score: float
    standard_error: float | None
    examples: int
    parts: int


def average(scores: Sequence[Mapping[str, Any]]) -> tuple[float, float | None]:
    """The leaderboard's average, in which the six tasks have equal weight, with its standard error.

    Args:
        scores: of each task `score` and `standard_error`, as in a :class:`TaskScore`.
    """
    errors = [score["standard_error"] for score in scores if score["standard_error"] is not None]
    known = len(errors) == len(scores)
    return fmean(score["score"] for score in scores), math.hypot(*errors) / len(scores) if known else None


def score(samples: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> TaskScore:
    """The mean over all items of all subjects, with the standard error of a mean of independent items.

    Args:
        samples: for each of lm-eval's tasks its items, each with its figures and the name of the filter of answers.
        metric: the name of a figure and of the filter, with a comma between them.
    """
    name, answers = metric.split(",")
    values = [float(item[name]) for items in samples.values() for item in items if item["filter"] == answers]
    error = 100 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return TaskScore(100 * fmean(values), error, len(values), len(samples))
