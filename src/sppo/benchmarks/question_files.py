"""The JSON-lines files of MT-Bench (FastChat) and Arena-Hard: questions, responses, and judgments by question id.

Arena-Hard's files have another layout since April 2025: `uid` in place of `question_id`, a question's `prompt` in place of
its `turns`, and `messages` in place of `choices`. Rows tell by themselves which layout they have.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.outputs import OutputsError, excerpt, read_rows, whole_text
from sppo.rundir.shards import replacing

Id = int | str


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        id: the question's identifier in the file.
        turns: the user's messages, one for each turn.
        category: the benchmark's category.
        temperature: at which the responses to it are sampled; None: as the settings say.
        id_key: the key under which files have the identifier: `question_id`, or `uid` in Arena-Hard's present layout.
    """

    id: Id
    turns: tuple[str, ...]
    category: str = ""
    temperature: float | None = None
    id_key: str = "question_id"

    @property
    def label(self) -> str:
        """The question's name in messages."""
        return f"question {self.id} ({excerpt(self.turns[0], 40)})"


@dataclass(frozen=True)
class ModelResponses:
    """A model's responses as a file has them.

    Attributes:
        model: the model's name.
        turns: one text for each turn, by question id.
        tokens: the number of tokens by question id, where the file counts them.
        metadata: what else the file counts in a response, by question id.
    """

    model: str
    turns: Mapping[Id, tuple[str, ...]]
    tokens: Mapping[Id, int]
    metadata: Mapping[Id, Mapping[str, Any]]

    def to(self, questions: Sequence[Question]) -> list[tuple[str, ...]]:
        """The responses to exactly these questions, in their order.

        Raises:
            OutputsError: a question has no response, a response has no question, or a turn is missing.
        """
        wanted = {question.id for question in questions}
        missing = [question.id for question in questions if question.id not in self.turns]
        extra = [identity for identity in self.turns if identity not in wanted]
        if missing:
            raise OutputsError(
                f"{self.model}: {len(missing)} of {len(questions)} questions have no response, the first: {missing[0]}"
            )
        if extra:
            raise OutputsError(
                f"{self.model}: {len(extra)} responses are to questions that the benchmark does not have, the first:"
                f" {extra[0]}; remove them"
            )
        for question in questions:
            if len(self.turns[question.id]) != len(question.turns):
                raise OutputsError(
                    f"{self.model}: question {question.id} has {len(question.turns)} turns and"
                    f" {len(self.turns[question.id])} responses"
                )
        return [self.turns[question.id] for question in questions]


def read_questions(path: Path) -> list[Question]:
    """Read a benchmark's `question.jsonl`.

    Raises:
        OutputsError: it cannot be read, a question has no id or text, or an id is there twice.
    """
    questions = []
    for number, row, identity in _by_question(path):
        turns = [row["prompt"]] if "prompt" in row else _list(row.get("turns"), path, number)
        texts = tuple(_text(turn, path, number) for turn in turns)
        category = str(row.get("category") or "")
        questions.append(Question(identity, texts, category, id_key=_id_key(row)))
    if not questions:
        raise OutputsError(f"{path}: there are no questions in it")
    return questions


def read_responses(path: Path, name: str | None = None) -> ModelResponses:
    """Read a model's responses in any of the layouts; of several choices the first is taken.

    Raises:
        OutputsError: the file cannot be read, a question has two rows, or there are responses of several models.
    """
    turns: dict[Id, tuple[str, ...]] = {}
    tokens: dict[Id, int] = {}
    metadata: dict[Id, Mapping[str, Any]] = {}
    models: dict[str, None] = {}
    for number, row, identity in _by_question(path):
        written = _written_turns(row, path, number)
        turns[identity] = tuple(_text(turn, path, number, may_be_empty=True) for turn in written)
        counts: list[Any] = [turn.get("token_len") for turn in written if isinstance(turn, dict)]
        whole = row.get("conv_metadata") or row.get("metadata")
        if counts and all(isinstance(count, int) for count in counts):
            tokens[identity] = sum(counts)
        if isinstance(whole, dict):
            metadata[identity] = whole
            if isinstance(whole.get("token_len"), int):
                tokens.setdefault(identity, whole["token_len"])
        models[str(row.get("model_id") or row.get("model") or path.stem)] = None
    if not turns:
        raise OutputsError(f"{path}: there are no responses in it")
    if len(models) > 1:
        raise OutputsError(
            f"{path}: responses of several models ({', '.join(models)}); give each its own file"
        )
    return ModelResponses(name or next(iter(models)), turns, tokens, metadata)


def write_responses(
    path: Path,
    model: str,
    questions: Sequence[Question],
    responses: Sequence[Sequence[str]],
    tokens: Sequence[int] | None = None,
) -> None:
    """Write a model's responses in the layout of the questions; `tokens` are counted in Arena-Hard's files only."""
    rows: list[dict[str, Any]] = []
    for number, (question, turns) in enumerate(zip(questions, responses, strict=True)):
        digest = hashlib.sha256(json.dumps([model, question.id, list(turns)]).encode()).hexdigest()[:22]
        if question.id_key == "uid":
            exchange = [
                {"role": role, "content": content}
                for asked, text in zip(question.turns, turns, strict=True)
                for role, content in (("user", asked), ("assistant", {"answer": text}))
            ]
            row: dict[str, Any] = {"uid": question.id, "ans_id": digest, "model": model, "messages": exchange}
            row |= {} if tokens is None else {"metadata": {"token_len": tokens[number]}}
        else:
            said: list[Any] = list(turns)
            if tokens is not None:
                said = [{"content": text, "token_len": tokens[number]} for text in turns]
            choices = [{"index": 0, "turns": said}]
            row = {
                "question_id": question.id,
                "answer_id": digest,
                "model_id": model,
                "choices": choices,
            }
        rows.append({**row, "tstamp": time.time()})
    write_lines(path, rows)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    with replacing(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def question_id(row: Mapping[str, Any], path: Path, number: int) -> Id:
    """The identifier of a row's question.

    Raises:
        OutputsError: there is none.
    """
    identity = row.get(_id_key(row))
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        raise OutputsError(f"{path}, row {number}: no `question_id` or `uid`")
    return identity


def shared_value(rows: Sequence[Mapping[str, Any]], key: str, path: Path) -> Any:
    """The value that all rows have under a key.

    Raises:
        OutputsError: they have several values: judgments of different judges or models are not mixed.
    """
    values = {json.dumps(row.get(key)): row.get(key) for row in rows}
    if len(values) > 1:
        shown = ", ".join(sorted(values)[:3])
        raise OutputsError(
            f"{path}: rows with several values of {key!r} ({shown}) are mixed; give each its own file"
        )
    return next(iter(values.values()), None)


def _id_key(row: Mapping[str, Any]) -> str:
    return "question_id" if "question_id" in row else "uid"


def _by_question(path: Path) -> Iterator[tuple[int, dict[str, Any], Id]]:
    seen: set[Id] = set()
    for number, row in enumerate(read_rows(path)):
        identity = question_id(row, path, number)
        if identity in seen:
            raise OutputsError(f"{path}, row {number}: question {identity} is there twice; keep one")
        seen.add(identity)
        yield number, row, identity


def _written_turns(row: Mapping[str, Any], path: Path, number: int) -> list[Any]:
    """The model's text of each turn, in the layout of the row."""
    if "messages" in row:
        messages = _list(row["messages"], path, number)
        return [message for message in messages if _is_of_assistant(message)]
    choices = _list(row.get("choices"), path, number)
    if not isinstance(choices[0], dict):
        raise OutputsError(f"{path}, row {number}: a choice is no mapping")
    return _list(choices[0].get("turns"), path, number)


def _is_of_assistant(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _list(value: Any, path: Path, number: int) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise OutputsError(
            f"{path}, row {number}: no `turns`, `choices` or `messages`, a list with at least one of them"
        )
    return value


def _text(turn: Any, path: Path, number: int, *, may_be_empty: bool = False) -> str:
    text = turn.get("content") if isinstance(turn, dict) else turn
    text = text.get("answer") if isinstance(text, dict) else text
    if not isinstance(text, str) or (not text.strip() and not may_be_empty):
        raise OutputsError(f"{path}, row {number}: a turn without a text")
    return whole_text(text, path, number)
