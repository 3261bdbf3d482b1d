"""MT-Bench's files of judgments, as FastChat writes them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.benchmarks.mt_bench.judge import parse_score
from sppo.benchmarks.mt_bench.score import UNPARSED
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import Id, question_id


def judgment_row(
    question: Id, model: str, judge: str, prompt: str, asked: str, said: str, turn: int
) -> dict[str, Any]:
    """A row of FastChat's `JUDGE_single.jsonl`.

    Args:
        question: the question's id.
        model: the model that was judged.
        judge: the judge's name.
        prompt: the name of the judge's prompt.
        asked: the prompt's text.
        said: the text of the judgment, from which the grade is read.
        turn: 1 or 2.
    """
    grade = parse_score(said)
    return {
        "question_id": question,
        "model": model,
        "judge": [judge, prompt],
        "user_prompt": asked,
        "judgment": said,
        "score": UNPARSED if grade is None else grade,
        "turn": turn,
        "tstamp": time.time(),
    }


def judge_of(row: Mapping[str, Any]) -> str:
    """The judge's name in a row of FastChat's, which lists it with the prompt's name."""
    judge = row.get("judge")
    return str((judge[0] if isinstance(judge, list) and judge else judge) or "unknown")


def read_judgments(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read FastChat's `JUDGE_single.jsonl` into rows by model.

    Raises:
        OutputsError: a row lacks a field, a score is out of range, a turn was judged twice, or there are judgments of
            several judges.
    """
    by_model: dict[str, list[dict[str, Any]]] = {}
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
        by_model.setdefault(key[0], []).append(row)
    if len(judges) > 1:
        raise OutputsError(
            f"{path}: judgments of {', '.join(sorted(judges))} are mixed; give each its own file"
        )
    if not by_model:
        raise OutputsError(f"{path}: there are no judgments in it")
    return by_model
