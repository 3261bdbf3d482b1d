"""The JSON-lines files of MT-Bench (FastChat) and Arena-Hard: questions, answers, judgments by question id."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.outputs import OutputsError, read_rows, whole_text
from sppo.rundir.shards import replacing

Id = int | str


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question.

    Attributes:
        id: as in the file.
        category: of the benchmark.
        turns: the user's messages.
    """

    id: Id
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class BenchmarkAnswers:
    """A model's answers.

    Attributes:
        model: its name.
        turns: by question id, one text for each turn.
        tokens: by question id, where the file counts them.
    """

    model: str
    turns: Mapping[Id, tuple[str, ...]]
    tokens: Mapping[Id, int]

    def to(self, questions: Sequence[BenchmarkQuestion]) -> list[tuple[str, ...]]:
        """The answers to exactly these questions, in their order.

        Raises:
            OutputsError: some are missing, there are others, or one has too few turns.
        """
        wanted = {question.id for question in questions}
        missing = [question.id for question in questions if question.id not in self.turns]
        extra = [identity for identity in self.turns if identity not in wanted]
        if missing:
            raise OutputsError(
                f"{self.model}: {len(missing)} of {len(questions)} questions have no answer, the first: {missing[0]}"
            )
        if extra:
            raise OutputsError(
                f"{self.model}: {len(extra)} answers are to questions that the benchmark does not have, the first:"
                f" {extra[0]}; remove them"
            )
        for question in questions:
            if len(self.turns[question.id]) != len(question.turns):
                raise OutputsError(
                    f"{self.model}: question {question.id} has {len(question.turns)} turns and"
                    f" {len(self.turns[question.id])} answers"
                )
        return [self.turns[question.id] for question in questions]


def read_questions(path: Path) -> list[BenchmarkQuestion]:
    """A benchmark's `question.jsonl`.

    Raises:
        OutputsError: it cannot be read, a question has no id or text, or an id is there twice.
    """
    found = []
    for number, row in _by_question(path):
        turns = tuple(_text(turn, path, number) for turn in _list(row.get("turns"), path, number))
        found.append(BenchmarkQuestion(row["question_id"], str(row.get("category") or ""), turns))
    if not found:
        raise OutputsError(f"{path}: there are no questions in it")
    return found


def read_answers(path: Path, name: str | None = None) -> BenchmarkAnswers:
    """A model's answers in either benchmark's format; of several choices the first.

    Raises:
        OutputsError: as :func:`read_questions`, or answers of several models.
    """
    turns: dict[Id, tuple[str, ...]] = {}
    tokens: dict[Id, int] = {}
    models: dict[str, None] = {}
    for number, row in _by_question(path):
        choices = _list(row.get("choices"), path, number)
        if not isinstance(choices[0], dict):
            raise OutputsError(f"{path}, row {number}: a choice is no mapping")
        said = _list(choices[0].get("turns"), path, number)
        turns[row["question_id"]] = tuple(_text(turn, path, number, may_be_empty=True) for turn in said)
        counts: list[Any] = [turn.get("token_len") for turn in said if isinstance(turn, dict)]
        whole = row.get("conv_metadata")
        if counts and all(isinstance(count, int) for count in counts):
            tokens[row["question_id"]] = sum(counts)
        elif isinstance(whole, dict) and isinstance(whole.get("token_len"), int):
            tokens[row["question_id"]] = whole["token_len"]
        models[str(row.get("model_id") or path.stem)] = None
    if not turns:
        raise OutputsError(f"{path}: there are no answers in it")
    if len(models) > 1:
        raise OutputsError(f"{path}: answers of several models ({', '.join(models)}); give each its own file")
    return BenchmarkAnswers(name or next(iter(models)), turns, tokens)


def write_answers(
    path: Path,
    model: str,
    questions: Sequence[BenchmarkQuestion],
    answers: Sequence[Sequence[str]],
    tokens: Sequence[int] | None = None,
) -> None:
    """A model's answers: FastChat's format, or with the tokens of each answer Arena-Hard's."""
    rows = []
    for number, (question, turns) in enumerate(zip(questions, answers, strict=True)):
        said: list[Any] = list(turns)
        if tokens is not None:
            said = [{"content": text, "token_len": tokens[number]} for text in turns]
        identity = hashlib.sha256(json.dumps([model, question.id, list(turns)]).encode()).hexdigest()[:22]
        rows.append(
            {
                "question_id": question.id,
                "answer_id": identity,
                "model_id": model,
                "choices": [{"index": 0, "turns": said}],
                "tstamp": time.time(),
            }
        )
    write_lines(path, rows)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    with replacing(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def question_id(row: Mapping[str, Any], path: Path, number: int) -> Id:
    """The `question_id` of a row.

    Raises:
        OutputsError: there is none.
    """
    found = row.get("question_id")
    if not isinstance(found, int | str) or isinstance(found, bool):
        raise OutputsError(f"{path}, row {number}: no `question_id`")
    return found


def one_value(rows: Sequence[Mapping[str, Any]], key: str, path: Path) -> Any:
    """The value that all rows have under a key.

    Raises:
        OutputsError: they have several: judgments of different judges or models are not mixed.
    """
    found = {json.dumps(row.get(key)): row.get(key) for row in rows}
    if len(found) > 1:
        shown = ", ".join(sorted(found)[:3])
        raise OutputsError(
            f"{path}: rows with several values of {key!r} ({shown}) are mixed; give each its own file"
        )
    return next(iter(found.values()), None)


def _by_question(path: Path) -> list[tuple[int, dict[str, Any]]]:
    seen: set[Id] = set()
    found = []
    for number, row in enumerate(read_rows(path)):
        identity = question_id(row, path, number)
        if identity in seen:
            raise OutputsError(f"{path}, row {number}: question {identity} is there twice; keep one")
        seen.add(identity)
        found.append((number, row))
    return found


def _list(value: Any, path: Path, number: int) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise OutputsError(f"{path}, row {number}: no `turns` or `choices`, a list with at least one of them")
    return value


def _text(turn: Any, path: Path, number: int, *, may_be_empty: bool = False) -> str:
    text = turn.get("content") if isinstance(turn, dict) else turn
    if not isinstance(text, str) or (not text.strip() and not may_be_empty):
        raise OutputsError(f"{path}, row {number}: a turn without a text")
    return whole_text(text, path, number)
