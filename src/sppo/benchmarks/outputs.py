"""Files of outputs: a model's responses to the instructions of a benchmark, in AlpacaEval's format.

A file is a JSON list of ``{"instruction", "output", "generator"}``, as the leaderboard keeps it; JSON lines and parquet
with these columns are read as well. Outputs belong to instructions by the instruction's text, never by position.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.reading import parse, regular
from sppo.rundir.shards import replacing

ENDINGS = (".json", ".jsonl", ".parquet")


class OutputsError(ValueError):
    """A file of outputs or judgments that cannot be used; the message names the file and the row."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs.

    Attributes:
        name: the model's name.
        texts: the output to each instruction, in the file's order; an empty output is an output.
    """

    name: str
    texts: Mapping[str, str]

    def to(self, instructions: Sequence[str]) -> list[str]:
        """The outputs to exactly these instructions, in their order.

        Raises:
            OutputsError: some are missing, or there are outputs to others.
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
    """Read a file of outputs.

    Args:
        path: a .json, .jsonl or .parquet file.
        name: the model's name; None: the file's `generator`, or the file's own name.

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
    except (OSError, UnicodeDecodeError) as error:
        raise OutputsError(f"{path}: cannot be read: {error}") from error
    except OutputsError:
        raise
    except (
        ValueError,
        OverflowError,
        NotImplementedError,
    ) as error:  # such as dates that Python does not know
        raise OutputsError(f"{path}: not a whole {path.suffix} file: {error}") from error


def whole_text(text: str, path: Path, number: int) -> str:
    """A row's text, if files and servers can hold it.

    Raises:
        OutputsError: it holds half of a surrogate pair, which is no character.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OutputsError(
            f"{path}, row {number}: {excerpt(text)} holds half of a surrogate pair, which is no character; correct the text"
        )
    return text


def excerpt(text: str, length: int = 80) -> str:
    """The beginning of a text in quotes, with control characters escaped."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    rows: Any
    regular(path)
    match path.suffix.lower():
        case ".json":
            rows = parse(path.read_bytes())
        case ".jsonl":
            rows = [parse(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            # No reader asks for times, and Python does not know those beyond the year 9999.
            times = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
            rows = table.drop_columns(times).to_pylist()
        case ".csv":
            import pyarrow.csv as csv

            options = csv.ParseOptions(newlines_in_values=True)
            rows = csv.read_csv(path, parse_options=options).to_pylist()
        case ending:
            raise OutputsError(
                f"{path}: tables are read from {', '.join(ENDINGS)} and .csv, not from {ending or 'no ending'}"
            )
    if not isinstance(rows, list):
        raise OutputsError(f"{path}: a list of rows is expected, not {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise OutputsError(f"{path}, row {number}: a mapping is expected, not {type(row).__name__}")
        yield row


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        content = (
            f"it is {value!r}"
            if key in row
            else f"the row has {', '.join(sorted(map(str, row))) or 'nothing'}"
        )
        raise OutputsError(f"{path}, row {number}: no text under {key!r}; {content}"[:500])
    return whole_text(value, path, number)
