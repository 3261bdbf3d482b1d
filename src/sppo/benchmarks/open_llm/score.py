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
        column: in tables.
        name: of lm-eval's task or group.
        file: of the packaged task, within lm-eval's tasks; a folder of tasks where there is one for each subject.
        shots: examples in the prompt.
        metric: of lm-eval's results.
        splits: files of local data, by the split that they are.
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
"""In the paper's order of columns."""


@dataclass(frozen=True)
class TaskScore:
    """A policy's score on one task.

    Attributes:
        score: in percent.
        standard_error: in percentage points.
        examples: how many it was measured on.
        parts: of how many subjects; 1 for a task without any.
    """

    score: float
    standard_error: float
    examples: int
    parts: int


def average(scores: Iterable[float]) -> float:
    """The leaderboard's average: of the six tasks alike."""
    values = list(scores)
    return sum(values) / len(values)


def weighted(results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], metric: str) -> TaskScore:
    """The mean over all examples of all parts."""
    total = sum(counts.values())
    mean = sum(counts[name] * float(results[name][metric]) for name in counts) / total
    # a share of right answers, but for TruthfulQA's: there its binomial error is an upper bound
    error = math.sqrt(max(mean * (1 - mean), 0.0) / max(total - 1, 1))
    return TaskScore(100 * mean, 100 * error, total, len(counts))
