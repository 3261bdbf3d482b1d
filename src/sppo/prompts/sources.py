"""Sources of rows: files of several formats, data sets on the hub or on disk, and tinyworld's own prompts."""

import csv
import glob
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.prompts.conversations import PromptError
from sppo.reading import parse
from sppo.tinyworld import HELD_OUT_PROMPTS, TRAIN_PROMPTS

TINYWORLD = {"tinyworld/train": TRAIN_PROMPTS, "tinyworld/held-out": HELD_OUT_PROMPTS}
_BATCH = 1024

Columns = Callable[[Collection[str]], Collection[str]]
"""Given the columns that a table has, returns those to read; it may refuse the table with a PromptError."""


class Row(NamedTuple):
    """A row of a source.

    Attributes:
        position: the file or data set and the row's number in it, for messages.
        value: the row; a :class:`PromptError` if it could not be read.
    """

    position: str
    value: Any


def local_files(source: str) -> list[Path]:
    """The files that a source names: one, or all that match a pattern such as ``data/*.jsonl``, in alphabetical order.

    A folder and a data set on the hub are no files: the list is empty.
    """
    path = TINYWORLD.get(source, Path(source).expanduser())
    if path.exists() or not glob.has_magic(source):
        return [path] if path.is_file() else []
    return [match for match in map(Path, sorted(glob.glob(str(path), recursive=True))) if match.is_file()]


def names_a_file(source: str) -> bool:
    """Whether a source is meant to be a file, judging by its ending."""
    return Path(source).suffix.lower() in _READERS


def read_rows(
    source: str, *, columns: Columns, split: str, config: str | None = None, revision: str | None = None
) -> Iterator[Row]:
    """Read the rows of a source one by one.

    Args:
        source: a file, a pattern of files, a folder or a data set on the hub, or one of :data:`TINYWORLD`.
        columns: chooses the columns that are read of a table.
        split: the split of a data set.
        config: the configuration of a data set; None if it has only one.
        revision: the revision of a data set on the hub.

    Raises:
        PromptError: the source does not exist or cannot be read.
    """
    files = local_files(source)
    for path in files:
        if path.suffix.lower() not in _READERS:
            known = ", ".join(sorted(_READERS))
            raise PromptError(f"prompts: {path} is not a {known} file; convert it to one of these")
    if files:
        return (row for path in files for row in _READERS[path.suffix.lower()](path, columns))
    if glob.has_magic(source):
        raise PromptError(f"prompts: no file here matches {source!r}")
    if source.split("/")[0] == "tinyworld":
        raise PromptError(f"prompts: {source!r} is unknown; there are {' and '.join(TINYWORLD)}")
    if names_a_file(source):
        raise PromptError(f"prompts: {source!r} is neither a file here nor a data set")
    return _data_set_rows(source, columns, split, config, revision)


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text: Any = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                text = PromptError(f"not UTF-8: {error.reason} at byte {error.start}")
            yield Row(f"{path}, line {number}", text)


def _text_rows(path: Path, columns: Columns) -> Iterator[Row]:
    return _lines(path)


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    for position, line in _lines(path):
        if isinstance(line, PromptError):
            yield Row(position, line)
        elif line.strip():
            try:
                yield Row(position, parse(line))
            except ValueError as error:
                yield Row(position, PromptError(f"malformed: not a line of JSON: {error}"))


def _json_rows(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        rows = parse(path.read_bytes())
    except ValueError as error:
        raise PromptError(
            f"{path}: not a JSON file: {error}; name it .jsonl if each line is an object"
        ) from error
    if not isinstance(rows, list):
        raise PromptError(f"{path}: holds a {type(rows).__name__}, not a list of prompts")
    for number, row in enumerate(rows, 1):
        yield Row(f"{path}, entry {number}", row)


def _csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    def text() -> Iterator[str]:
        for position, line in _lines(path):
            if isinstance(line, PromptError):
                raise PromptError(f"{position}: {line}")
            yield f"{line}\n"

    reader = csv.DictReader(text(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        wanted = _chosen(columns, reader.fieldnames or (), f"{path}")
        for row in reader:
            yield Row(f"{path}, line {reader.line_num}", {name: row[name] for name in wanted})
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: not a row of a CSV file: {error}") from error


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    number = 0
    try:
        file = pq.ParquetFile(path)
        wanted = _chosen(columns, file.schema_arrow.names, f"{path}")
        for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
            for row in _decoded(batch):
                number += 1
                yield Row(f"{path}, row {number}", row)
    except (OSError, pa.ArrowException) as error:
        raise PromptError(f"{path}: not a whole parquet file (behind row {number}): {error}") from error


def _chosen(columns: Columns, known: Collection[str], where: str) -> list[str]:
    try:
        return list(columns(known))
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error


def _decoded(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | PromptError]:
    """The rows of a batch; one that Python cannot hold is found by itself, so that the others can be used."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:  # texts that are not UTF-8, dates beyond the year 9999
        if batch.num_rows == 1:
            if isinstance(error, UnicodeDecodeError):
                yield PromptError(f"not UTF-8: {error.reason} at byte {error.start}")
            else:
                yield PromptError(f"malformed: {error}")
            return
        for index in range(batch.num_rows):
            yield from _decoded(batch.slice(index, 1))


def _data_set_rows(
    source: str, columns: Columns, split: str, config: str | None, revision: str | None
) -> Iterator[Row]:
    loaded = _load_data_set(source, split, config, revision)
    wanted = _chosen(columns, loaded.column_names, f"prompts: {source}")
    # As Arrow: the features of `datasets` would be decoded, and an image, say, opens the file that a row names.
    tables = loaded.select_columns(wanted).with_format("arrow").iter(batch_size=_BATCH)
    rows = (row for table in tables for batch in table.to_batches() for row in _decoded(batch))
    for number, row in enumerate(rows, 1):
        yield Row(f"{source}, {split} row {number}", row)


def _load_data_set(source: str, split: str, config: str | None, revision: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()  # the rows are counted by a bar of our own
    folder = Path(source).expanduser()
    try:
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(folder))
        else:
            where = str(folder) if folder.is_dir() else source
            return datasets.load_dataset(where, config, split=split, revision=revision)
    except Exception as error:  # datasets raises what the hub, the disk and the formats raise
        text = f"{type(error).__name__}: {error}"
        raise PromptError(
            f"prompts: {source!r} is neither a file here nor a data set that loads: {text}{_cure(text)}"
        ) from error
    if split not in splits:
        raise PromptError(
            f"prompts: {folder} has no split {split!r}; set `split` to one of {', '.join(splits)}"
        )
    return splits[split]


def _cure(message: str) -> str:
    """The key of the recipe that answers an error of `datasets`, which lists what there is to choose from."""
    if "Config name is missing" in message or "BuilderConfig" in message:
        return "; set `config` to the configuration to read"
    return "; set `split` to the split to read" if "Unknown split" in message else ""


_READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
