"""Files of outputs: what a model answered to a benchmark's instructions, in AlpacaEval's format.

A JSON list of ``{"instruction", "output", "generator"}``, as the leaderboard keeps them; JSON lines and parquet with
these columns are read as well. Outputs belong to instructions by their text, never by their position.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.rundir.shards import replacing

ENDINGS = (".json", ".jsonl", ".parquet")


class OutputsError(ValueError):
    """A file of outputs or judgments that cannot be used; the message names the file and the row."""


@dataclass(frozen=True)
class Outputs:
    """A model's answers.

    Attributes:
        name: of the model.
        texts: answer by instruction, in the file's order; an empty answer is an answer.
    """

    name: str
    texts: Mapping[str, str]

    def to(self, instructions: Sequence[str]) -> list[str]:
        """The answers to exactly these instructions, in their order.

        Raises:
            OutputsError: some are missing, or there are answers to others.
        """
        missing = [text for text in instructions if text not in self.texts]
        extra = self.texts.keys() - set(instructions)
        if missing:
            raise OutputsError(
                f"{self.name}: {len(missing)} of {len(instructions)} instructions have no output, the first:"
                f" {excerpt(missing[0])}"
            )
        if extra:
            first = next(text for text in self.texts if text in extra)
            raise OutputsError(
                f"{self.name}: {len(extra)} outputs answer instructions that the benchmark does not have, the first:"
                f" {excerpt(first)}; remove them"
            )
        return [self.texts[text] for text in instructions]


def read_outputs(path: Path, name: str | None = None) -> Outputs:
    """A file of outputs.

    Args:
        path: .json, .jsonl or .parquet.
        name: of the model; None: the file's `generator`, or the file's own name.

    Raises:
        OutputsError: no such file or format, a row without a text, a duplicate, or outputs of several models.
    """
    texts: dict[str, str] = {}
    generators: dict[str, None] = {}
    for number, row in enumerate(read_rows(path)):
        instruction, output = (_text(row, key, path, number) for key in ("instruction", "output"))
        if instruction in texts:
            raise OutputsError(
                f"{path}, row {number}: a second output to {excerpt(instruction)}; keep one for each instruction"
            )
        texts[instruction] = output
        generators[str(row.get("generator") or "")] = None
    if len(generators) > 1:
        raise OutputsError(
            f"{path}: outputs of several models ({', '.join(generators)}); give each its own file"
        )
    if not texts:
        raise OutputsError(f"{path}: there are no outputs in it")
    return Outputs(name or next(iter(generators)) or path.stem, texts)


def write_outputs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as the leaderboard's JSON list, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n").encode())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table in JSON, JSON lines, parquet or CSV.

    Raises:
        OutputsError: it cannot be read; the message says why.
    """
    try:
        yield from _rows(path)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise OutputsError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        if isinstance(error, OutputsError):
            raise
        raise OutputsError(f"{path}: not a whole {path.suffix} file: {error}") from error


def whole_text(text: str, path: Path, number: int) -> str:
    """The text of a row, if no file and no server would refuse it.

    Raises:
        OutputsError: it holds half of a surrogate pair, which is no character.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OutputsError(
            f"{path}, row {number}: {excerpt(text)} holds half of a surrogate pair, which is no character; mend the text"
        )
    return text


def excerpt(text: str, length: int = 80) -> str:
    """The head of a text in quotes, control characters escaped."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    found: Any
    match path.suffix.lower():
        case ".json":
            found = _parsed(path.read_text(encoding="utf-8"))
        case ".jsonl":
            found = [_parsed(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        case ".parquet":
            import pyarrow.parquet as pq

            found = pq.read_table(path).to_pylist()
        case ".csv":
            import pyarrow.csv as csv

            options = csv.ParseOptions(newlines_in_values=True)
            found = csv.read_csv(path, parse_options=options).to_pylist()
        case ending:
            raise OutputsError(
                f"{path}: tables are read from {', '.join(ENDINGS)} and .csv, not from {ending or 'no ending'}"
            )
    if not isinstance(found, list):
        raise OutputsError(f"{path}: a list of rows is expected, not {type(found).__name__}")
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise OutputsError(f"{path}, row {number}: a mapping is expected, not {type(row).__name__}")
        yield row


def _parsed(text: str) -> Any:
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    """An integer that a float has room for."""
    if len(digits) > 300:
        raise ValueError(f"{excerpt(digits, 24)} is too large a number")
    return int(digits)


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        had = f"it is {value!r}" if key in row else f"it has {', '.join(sorted(map(str, row))) or 'nothing'}"
        raise OutputsError(f"{path}, row {number}: no text under {key!r}; {had}"[:500])
    return whole_text(value, path, number)
