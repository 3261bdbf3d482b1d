r"""MT-Bench (Zheng et al., arXiv:2306.05685): a judge grades each of two turns from 1 to 10.

Questions of mathematics, reasoning and coding are graded beside a reference answer. The score of a turn is the mean over
its questions, and the average is the mean over all grades.

The two grades of a question are not independent, since the second turn goes on from the first. So the standard error of
the average is given over questions as well:

.. math:: \mathrm{SE} = \frac{1}{n} \sqrt{\frac{q}{q - 1} \sum_{j=1}^{q} \Big(\sum_{i \in j} (x_i - \bar x)\Big)^2}

for n grades x of q questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.question_files import Id

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""The temperature at which responses to the questions of each category are sampled."""
OTHER_TEMPERATURE = 0.7
UNPARSED = -1
"""The score in FastChat's files where the judge gave none."""


@dataclass(frozen=True)
class Score:
    """A model's scores, 1 to 10.

    Attributes:
        first_turn: the mean over the questions; None where no first turn was graded.
        second_turn: likewise for second turns.
        average: the mean over all grades.
        standard_error: the standard error of the average, as if all grades were independent.
        question_standard_error: the standard error of the average over questions.
        by_category: the average of each category.
        judged: the number of judgments with a grade.
        unparsed: the number of judgments without a grade, which are in no figure.
    """

    first_turn: float | None
    second_turn: float | None
    average: float
    standard_error: float
    question_standard_error: float
    by_category: Mapping[str, float]
    judged: int
    unparsed: int


def score(rows: Sequence[Mapping[str, Any]], categories: Mapping[Id, str] | None = None) -> Score:
    """The scores of one model from rows with `question_id`, `turn` and `score`, which is -1 where there is no grade.

    Raises:
        OutputsError: there is no grade at all.
    """
    graded = [row for row in rows if row["score"] != UNPARSED]
    if not graded:
        raise OutputsError("the judge gave no grade at all")
    values = np.array([float(row["score"]) for row in graded])
    turns = {turn: [float(row["score"]) for row in graded if row["turn"] == turn] for turn in (1, 2)}
    by_category: dict[str, list[float]] = {}
    by_question: dict[Id, float] = {}
    for row, value in zip(graded, values, strict=True):
        by_category.setdefault((categories or {}).get(row["question_id"], ""), []).append(float(value))
        deviation = float(value - values.mean())
        by_question[row["question_id"]] = by_question.get(row["question_id"], 0.0) + deviation
    deviations, questions = np.array(list(by_question.values())), len(by_question)
    return Score(
        float(np.mean(turns[1])) if turns[1] else None,
        float(np.mean(turns[2])) if turns[2] else None,
        float(values.mean()),
        float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0,
        float(np.sqrt(questions / (questions - 1) * (deviations**2).sum()) / len(values))
        if questions > 1
        else 0.0,
        {name: float(np.mean(grades)) for name, grades in sorted(by_category.items()) if name},
        len(graded),
        len(rows) - len(graded),
    )
