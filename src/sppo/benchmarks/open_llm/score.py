"""The six tasks of the Open LLM Leaderboard (v1), and how their scores are averaged."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
        standard_error: its standard error in percentage points.
        examples: the number of examples that it was measured on.
        parts: the number of subjects; 1 for a task without subjects.
    """

    score: float
    standard_error: float
    examples: int
    parts: int


def average(scores: Iterable[float]) -> float:
    """The leaderboard's average, in which the six tasks have equal weight."""
    values = list(scores)
    return sum(values) / len(values)


def weighted(results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], metric: str) -> TaskScore:
    """The score over all examples of all subjects."""
    total = sum(counts.values())
    mean = sum(counts[name] * float(results[name][metric]) for name in counts) / total
    # the binomial standard error of a share of right answers; TruthfulQA's scores are means of numbers in [0, 1], for
    # which it is an upper bound
    error = math.sqrt(max(mean * (1 - mean), 0.0) / max(total - 1, 1))
    return TaskScore(100 * mean, 100 * error, total, len(counts))
