"""MT-Bench (Zheng et al., arXiv:2306.05685): a judge grades each of two turns from 1 to 10.

Questions of mathematics, reasoning and coding are graded beside a reference answer. The score of a turn is the mean
over its questions, the average that over all judgments.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import BenchmarkQuestion, Id, question_id

WITH_REFERENCE = ("math", "reasoning", "coding")
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
SETTINGS = {"temperature": 0.0, "max_tokens": 2048}
UNPARSED = -1
"""The score that FastChat's files have where the judge gave none."""

_GRADE = (
    "Then grade it from 1 (useless) to 10 (as good as it can be), in this form: [[grade]], e.g. Grade: [[5]]"
)
_WEIGH = (
    "Judge the assistant's answer to the user's question. Weigh whether it is correct, helpful, relevant, deep enough,"
    " detailed enough and, where that is asked for, creative. Explain your judgment in a few sentences first. "
)
_REFERENCE = (
    "Judge the assistant's answer to the user's question, beside a reference answer. Weigh whether it is correct and"
    " helpful: find its mistakes by comparing the two, and explain them first. "
)
_SECOND = "The conversation has two turns: grade the answer to the second question alone. "
_ONE_TURN = "# Question\n\n{question}\n\n"
_ONE_ANSWER = "# The assistant's answer\n\n{answer}\n\n# End of the answer"
_TWO_TURNS = (
    "# First question\n\n{question_1}\n\n# The assistant's first answer\n\n{answer_1}\n\n"
    "# Second question\n\n{question_2}\n\n# The assistant's second answer\n\n{answer_2}\n\n# End of the second answer"
)
PROMPTS = {
    "single-v1": JudgePrompt("single-v1", (("user", _WEIGH + _GRADE + "\n\n" + _ONE_TURN + _ONE_ANSWER),)),
    "single-math-v1": JudgePrompt(
        "single-math-v1",
        (
            (
                "user",
                f"{_REFERENCE}{_GRADE}\n\n{_ONE_TURN}# Reference answer\n\n{{ref_answer_1}}\n\n{_ONE_ANSWER}",
            ),
        ),
    ),
    "single-v1-multi-turn": JudgePrompt(
        "single-v1-multi-turn", (("system", _WEIGH + _SECOND + _GRADE), ("user", _TWO_TURNS))
    ),
    "single-math-v1-multi-turn": JudgePrompt(
        "single-math-v1-multi-turn",
        (
            ("system", _REFERENCE + _SECOND + _GRADE),
            (
                "user",
                "# Reference answer to the first question\n\n{ref_answer_1}\n\n"
                "# Reference answer to the second question\n\n{ref_answer_2}\n\n" + _TWO_TURNS,
            ),
        ),
    ),
}
"""By the benchmark's names: one turn or both, without and with a reference."""

_SCORE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
_WORDED = re.compile(
    r"\[+\s*(?:(?:rating|score|grade)\s*[:=]?\s*)?(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*\]+", re.IGNORECASE
)


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


def parse_score(judgment: str) -> float | None:
    """The grade in a judge's answer, 0 to 10.

    The first ``[[x]]``, else the first ``[x]``, as FastChat does; else the first like ``[rating: 7]`` or ``[[7/10]]``,
    which FastChat drops. A number above 10 is no grade.
    """
    for pattern in (_SCORE, _BACKUP, _WORDED):
        found = pattern.search(judgment)
        if found:
            value = float(found[1])
            return value if value <= 10 else None
    return None


def prompt_name(question: BenchmarkQuestion, turn: int) -> str:
    """Which of the judge's prompts a question's turn, 1 or 2, is graded with."""
    name = "single-math-v1" if question.category in WITH_REFERENCE else "single-v1"
    return name if turn == 1 else f"{name}-multi-turn"


def places(
    question: BenchmarkQuestion, answers: Sequence[str], reference: Sequence[str] | None
) -> dict[str, str]:
    """What the places of the judge's prompts are filled with."""
    values = {"question": question.turns[0], "answer": answers[0]}
    for name, texts in (("question", question.turns), ("answer", answers), ("ref_answer", reference or ())):
        values |= {f"{name}_{number}": text for number, text in enumerate(texts, 1)}
    return values


def read_prompts(path: Path) -> dict[str, JudgePrompt]:
    """FastChat's `judge_prompts.jsonl`: the four that grade single answers.

    Raises:
        JudgePromptError: one of them is missing or malformed.
        OutputsError: the file cannot be read.
    """
    rows = {row.get("name"): row for row in read_rows(path)}
    found = {}
    for name in PROMPTS:
        row = rows.get(name)
        if row is None or not isinstance(row.get("prompt_template"), str):
            raise JudgePromptError(f"{path}: there is no prompt {name!r} with a prompt_template in it")
        system = row.get("system_prompt")
        first = (("system", system),) if isinstance(system, str) and system else ()
        found[name] = JudgePrompt(name, (*first, ("user", row["prompt_template"])))
    return found


def judgment_row(
    question: Id, model: str, judge: str, prompt: str, asked: str, said: str, turn: int
) -> dict[str, Any]:
    """A row of FastChat's `JUDGE_single.jsonl`."""
    found = parse_score(said)
    return {
        "question_id": question,
        "model": model,
        "judge": [judge, prompt],
        "user_prompt": asked,
        "judgment": said,
        "score": UNPARSED if found is None else found,
        "turn": turn,
        "tstamp": time.time(),
    }


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


def judge_of(row: Mapping[str, Any]) -> str:
    """The judge's name in a row of FastChat's, which lists it with the prompt's."""
    judge = row.get("judge")
    return str((judge[0] if isinstance(judge, list) and judge else judge) or "unknown")


def read_judgments(path: Path) -> dict[str, list[dict[str, Any]]]:
    """FastChat's `JUDGE_single.jsonl`: rows by model.

    Raises:
        OutputsError: a row lacks a field, a score is out of range, a turn was judged twice, or the rows are of several
            judges.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[Any, ...]] = set()
    judges: set[str] = set()
    for number, row in enumerate(read_rows(path)):
        turn, value = row.get("turn"), row.get("score")
        if turn not in (1, 2) or isinstance(value, bool) or not isinstance(value, int | float):
            raise OutputsError(f"{path}, row {number}: no turn of 1 or 2 with a number as score")
        if value != UNPARSED and not 0 <= value <= 10:
            raise OutputsError(
                f"{path}, row {number}: score = {value:g}; it is 0 to 10, or {UNPARSED} where the judge gave none"
            )
        key = (str(row.get("model")), question_id(row, path, number), turn)
        if key in seen:
            raise OutputsError(
                f"{path}, row {number}: turn {turn} of question {key[1]} is judged twice; keep one"
            )
        seen.add(key)
        judges.add(judge_of(row))
        found.setdefault(str(row.get("model")), []).append(row)
    if len(judges) > 1:
        raise OutputsError(
            f"{path}: judgments of {', '.join(sorted(judges))} are mixed; give each its own file"
        )
    if not found:
        raise OutputsError(f"{path}: there are no judgments in it")
    return found
