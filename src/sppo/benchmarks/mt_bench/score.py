"""MT-Bench (Zheng et al., arXiv:2306.05685): a judge grades each of two turns from 1 to 10.

Questions of mathematics, reasoning and coding are graded beside a reference answer. The score of a turn is the mean
over its questions, the average that over all judgments.
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
"""Of the answers to each category's questions."""
OTHER_TEMPERATURE = 0.7
UNPARSED = -1
"""The score that FastChat's files have where the judge gave none."""


@dataclass(frozen=True)
class Score:
    """A model's scores, 1 to 10.

    Attributes:
        first_turn: mean over the questions; None where none was graded.
        second_turn: likewise.
        average: over all judgments.
        standard_error: of the average, over judgments.
        by_category: averages.
        judged: judgments with a grade.
        unparsed: those without, which no figure counts.
    """

    first_turn: float | None
    second_turn: float | None
    average: float
    standard_error: float
    by_category: Mapping[str, float]
    judged: int
    unparsed: int


def score(rows: Sequence[Mapping[str, Any]], categories: Mapping[Id, str] | None = None) -> Score:
    """The scores of one model from rows with `question_id`, `turn` and `score`, -1 where there is none.

    Raises:
        OutputsError: there is no grade at all.
    """
    graded = [row for row in rows if row["score"] != UNPARSED]
    if not graded:
        raise OutputsError("the judge gave no grade at all")
    values = np.array([float(row["score"]) for row in graded])
    turns = {turn: [float(row["score"]) for row in graded if row["turn"] == turn] for turn in (1, 2)}
    groups: dict[str, list[float]] = {}
    for row in graded:
        groups.setdefault((categories or {}).get(row["question_id"], ""), []).append(float(row["score"]))
    return Score(
        float(np.mean(turns[1])) if turns[1] else None,
        float(np.mean(turns[2])) if turns[2] else None,
        float(values.mean()),
        float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0,
        {name: float(np.mean(of)) for name, of in sorted(groups.items()) if name},
        len(graded),
        len(rows) - len(graded),
    )
