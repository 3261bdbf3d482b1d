"""Prompt sources and their split over the iterations.

Every prompt is read, checked, rendered and tokenised once, before anything is sampled; the split depends
on the seed and on the prompts' ids, never on their order.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sppo import randomness
from sppo.policy.chat_format import ChatError, ChatFormat, Message, as_messages
from sppo.recipe import PromptSource
from sppo.rundir.tables import PROMPTS
from sppo.tinyworld import HELD_OUT_PROMPTS, TRAIN_PROMPTS

COLUMNS = ("prompt", "messages", "instruction", "text")
ID_COLUMNS = ("prompt_id", "id")
TINYWORLD = {"tinyworld/train": TRAIN_PROMPTS, "tinyworld/held-out": HELD_OUT_PROMPTS}
_CHUNK = 1024


class PromptError(ValueError):
    """A prompt or a source of prompts that cannot be used; the message names the file and the line."""


class Entry(NamedTuple):
    """One prompt of a source, unchecked.

    Attributes:
        position: where it stands, for messages.
        value: what the source holds; a :class:`PromptError` where it could not even be read.
        own_id: the source's id of it, if it has one.
        demonstration: what the source holds in the column of demonstrations; None where none is read.
    """

    position: str
    value: Any
    own_id: str | None = None
    demonstration: Any = None


@dataclass
class Counts:
    """What was found among the prompts."""

    read: int = 0
    doubled_bos: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """The prompts of each iteration and the held-out ones: tables of the schema `records.PROMPTS`."""

    iterations: list[pa.Table]
    held_out: pa.Table
    counts: Counts


def local_file(source: PromptSource) -> Path | None:
    """The file that a source names, or None where it is a folder or a data set on the hub."""
    path = TINYWORLD.get(source.source, Path(source.source))
    return path if path.is_file() else None


def names_a_file(source: PromptSource) -> bool:
    """Whether a source is meant to be a file, by its ending."""
    return Path(source.source).suffix.lower() in _READERS


def read_source(source: PromptSource) -> Iterator[Entry]:
    """The prompts of a source, one by one.

    Raises:
        PromptError: there is no such source, or it has no column of prompts.
    """
    path = local_file(source)
    if path is None:
        if source.source.split("/")[0] == "tinyworld":
            raise PromptError(f"prompts: {source.source!r} is unknown; there are {' and '.join(TINYWORLD)}")
        if Path(source.source).suffix.lower() in _READERS:
            raise PromptError(f"prompts: {source.source!r} is neither a file here nor a data set")
        rows = _hub_rows(source)
    else:
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise PromptError(
                f"prompts: {path} is no {', '.join(sorted(_READERS))} file; convert it to one of these"
            )
        rows = reader(path, source)
    for count, row in enumerate(rows):
        if source.limit is not None and count >= source.limit:
            return
        yield row


def split(
    train: PromptSource | Sequence[PromptSource],
    held_out: PromptSource | int,
    *,
    iterations: int,
    per_iteration: int | None,
    chat: ChatFormat,
    max_tokens: int,
    skip_invalid: bool,
    seed: int,
    on_prompt: Callable[[int], None] = lambda count: None,
) -> Split:
    """Read all prompts, check and tokenise them, and split them over the iterations without overlap.

    Args:
        train: one source for all iterations, or one for each.
        held_out: a source, or how many prompts to set aside from `train`.
        iterations: T.
        per_iteration: prompts of one iteration; None: as many as there are, evenly.
        chat: renders and tokenises.
        max_tokens: the longest rendered prompt that is allowed.
        skip_invalid: leave out and count prompts that cannot be used, instead of raising.
        seed: of the order in which prompts are dealt.
        on_prompt: called with 1 for every prompt read.

    Raises:
        PromptError: a prompt cannot be used, or there are too few of them.
    """
    reading = _Reading(chat, max_tokens, skip_invalid, on_prompt)
    fixed_held_out = None if isinstance(held_out, int) else reading.table(held_out, " (held out)")
    sources = [train] if isinstance(train, PromptSource) else list(train)
    tables = [_dealt(reading.table(source), seed) for source in sources]
    if fixed_held_out is None:
        assert isinstance(held_out, int)
        tables, fixed_held_out = _set_aside(tables, held_out, reading)
    elif fixed_held_out.num_rows == 0:
        raise PromptError(f"prompts.held_out: it has no prompt that can be used{reading.skipped()}")
    parts = tables if len(tables) > 1 else _deal_out(tables[0], iterations, per_iteration)
    if per_iteration is not None:
        short = [number for number, part in enumerate(parts, 1) if part.num_rows < per_iteration]
        if short:
            raise PromptError(
                f"prompts.per_iteration: {per_iteration}, but iteration {short[0]} has only"
                f" {parts[short[0] - 1].num_rows} prompts; lower it, or give more prompts{reading.skipped()}"
            )
        parts = [part.slice(0, per_iteration) for part in parts]
    empty = [number for number, part in enumerate(parts, 1) if part.num_rows == 0]
    if empty:
        total = sum(part.num_rows for part in parts)
        raise PromptError(
            f"iterations: {iterations}, but there are only {total} prompts to train on: iteration"
            f" {empty[0]} would have none; lower iterations or give more prompts{reading.skipped()}"
        )
    return Split(parts, fixed_held_out, reading.counts)


def read(source: PromptSource, *, chat: ChatFormat, max_tokens: int, skip_invalid: bool) -> pa.Table:
    """The prompts of one source, checked and tokenised, in their order.

    Args:
        source: where they come from.
        chat: renders and tokenises.
        max_tokens: the longest rendered prompt that is allowed.
        skip_invalid: leave out prompts that cannot be used, instead of raising.

    Raises:
        PromptError: a prompt cannot be used, or there is none.
    """
    reading = _Reading(chat, max_tokens, skip_invalid, lambda count: None)
    found = reading.table(source)
    if found.num_rows == 0:
        raise PromptError(f"{source.source}: it has no prompt that can be used{reading.skipped()}")
    return found


@dataclass
class _Reading:
    """Reads sources one after another; a prompt seen in an earlier one is a duplicate in a later one."""

    chat: ChatFormat
    max_tokens: int
    skip_invalid: bool
    on_prompt: Callable[[int], None]
    counts: Counts = field(default_factory=Counts)
    seen: dict[bytes, str] = field(default_factory=dict)
    seen_ids: dict[str, str] = field(default_factory=dict)

    def table(self, source: PromptSource, label: str = "") -> pa.Table:
        chunks: list[pa.RecordBatch] = []
        rows: list[dict[str, Any]] = []
        for entry in read_source(source):
            self.counts.read += 1
            self.on_prompt(1)
            row = self._row(entry, source, label)
            if row is not None:
                rows.append(row)
            if len(rows) == _CHUNK:
                chunks.append(pa.RecordBatch.from_pylist(rows, schema=PROMPTS))
                rows = []
        chunks.append(pa.RecordBatch.from_pylist(rows, schema=PROMPTS))
        return pa.Table.from_batches(chunks, schema=PROMPTS).combine_chunks()

    def skipped(self) -> str:
        """What was left out, for the end of a message."""
        if not self.counts.skipped:
            return ""
        first = next(iter(self.counts.first_skipped.values()))
        return (
            f" ({self.counts.skipped.total()} of {self.counts.read} were skipped, the first of them {first})"
        )

    def _row(self, entry: Entry, source: PromptSource, label: str) -> dict[str, Any] | None:
        position, value, own_id, _ = entry
        try:
            if isinstance(value, PromptError):
                raise value
            messages, demonstrated = _with_demonstration(entry, source)
            key = randomness.digest(json.dumps(messages, sort_keys=True))
            if key in self.seen:
                raise PromptError(f"a duplicate of {self.seen[key]}")
            self.seen[key] = position + label
            prompt_id = own_id or key.hex()[:16]
            if prompt_id in self.seen_ids:
                raise PromptError(f"a duplicate id: {prompt_id!r} is also that of {self.seen_ids[prompt_id]}")
            self.seen_ids[prompt_id] = position + label
            rendered = self.chat.render(messages)
            if len(rendered.token_ids) > self.max_tokens:
                raise PromptError(
                    f"over-long: {len(rendered.token_ids)} tokens, {self.max_tokens} are allowed"
                )
            demonstration = None
            if demonstrated is not None:
                token_ids = self.chat.response(messages, demonstrated)
                demonstration = {"text": demonstrated, "token_ids": token_ids}
        except (PromptError, ChatError) as error:
            if not self.skip_invalid:
                raise PromptError(
                    f"{position}: {error}; mend it, or set prompts.invalid: skip to leave such prompts out"
                ) from error
            reason = str(error).split(":")[0].split(" of ")[0].split(" '")[0]
            self.counts.skipped[reason] += 1
            self.counts.first_skipped.setdefault(reason, f"{position}: {error}")
            return None
        self.counts.doubled_bos += rendered.doubled_bos
        return {
            "prompt_id": prompt_id,
            "messages": messages,
            "prompt_token_ids": rendered.token_ids,
            "demonstration": demonstration,
        }


def _with_demonstration(entry: Entry, source: PromptSource) -> tuple[list[Message], str | None]:
    """The prompt's messages, and the demonstration where the source is to have one.

    A demonstration is a text, or messages that end with the assistant's. Where there are others before that one they
    are the prompt: either the row has no other, or it has to be the same.

    Raises:
        PromptError: there is no demonstration, or it answers another prompt.
        ChatError: a prompt that is none.
    """
    found, column = entry.demonstration, source.demonstration
    if column is None:
        return as_messages(entry.value), None
    if isinstance(found, str):
        return as_messages(entry.value), found
    last = found[-1] if isinstance(found, list) and found else None
    if (
        not isinstance(last, dict)
        or last.get("role") != "assistant"
        or not isinstance(last.get("content"), str)
    ):
        held = "nothing" if found is None else f"a {type(found).__name__}"
        raise PromptError(
            f"no demonstration in the column {column!r}: it holds {held}; a demonstration is a text, or a list of"
            " messages that ends with the assistant's"
        )
    if not found[:-1]:
        return as_messages(entry.value), last["content"]
    before = as_messages(found[:-1])
    if entry.value is not None and entry.value is not found and as_messages(entry.value) != before:
        raise PromptError(
            f"its demonstration answers another prompt: the messages in the column {column!r} before the last one are"
            f" not this row's prompt; set `column: {column}` to take them as the prompt"
        )
    return before, last["content"]


def _dealt(table: pa.Table, seed: int) -> pa.Table:
    """The rows in an order that depends on the seed and their ids alone."""
    keys = [randomness.digest("deal", seed, prompt_id) for prompt_id in table["prompt_id"].to_pylist()]
    return table.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64()))


def held_out_shares(sizes: Sequence[int], count: int, note: str = "") -> list[int]:
    """How many of `count` held-out prompts come from each source, in proportion to the sources' sizes.

    Raises:
        PromptError: no prompt would be left to train on; `note` ends the message.
    """
    if count >= sum(sizes):
        raise PromptError(
            f"prompts.held_out: {count} to set aside of {sum(sizes)} prompts leaves none to train on;"
            f" lower it{note}"
        )
    shares = [count * size // sum(sizes) for size in sizes]
    # the prompts that rounding leaves over come from the sources that have most left
    for _ in range(count - sum(shares)):
        shares[max(range(len(sizes)), key=lambda index: sizes[index] - shares[index])] += 1
    return shares


def _set_aside(tables: list[pa.Table], count: int, reading: _Reading) -> tuple[list[pa.Table], pa.Table]:
    total = sum(table.num_rows for table in tables)
    if total == 0:
        raise PromptError(f"prompts.train: it has no prompt that can be used{reading.skipped()}")
    shares = held_out_shares([table.num_rows for table in tables], count, reading.skipped())
    held_out = pa.concat_tables([table.slice(0, share) for table, share in zip(tables, shares, strict=True)])
    rest = [table.slice(share) for table, share in zip(tables, shares, strict=True)]
    return rest, held_out.combine_chunks()


def _deal_out(table: pa.Table, iterations: int, per_iteration: int | None) -> list[pa.Table]:
    if per_iteration is not None:
        return [table.slice(index * per_iteration, per_iteration) for index in range(iterations)]
    bounds = [table.num_rows * index // iterations for index in range(iterations + 1)]
    return [table.slice(start, stop - start) for start, stop in pairwise(bounds)]


def _value(row: Any, source: PromptSource, position: str) -> Entry:
    if isinstance(row, str):
        return Entry(position, row)
    if not isinstance(row, dict):
        return Entry(position, PromptError(f"malformed: a {type(row).__name__}, not an object with a prompt"))
    names = _columns(source)
    present = [name for name in names if name in row]
    if not present:
        return Entry(position, PromptError(f"malformed: {_no_column(source, row)}"))
    column = next((name for name in present if row[name] is not None), present[0])
    own_id = next((str(row[name]) for name in ID_COLUMNS if row.get(name) not in (None, "")), None)
    if own_id is not None and not own_id.isprintable():
        return Entry(position, PromptError(f"malformed: its id {own_id!r} is not a printable text"))
    demonstration = None if source.demonstration is None else row.get(source.demonstration)
    return Entry(position, row[column], own_id, demonstration)


def _columns(source: PromptSource) -> tuple[str, ...]:
    """Where a prompt is looked for: in the named column, or in the usual ones and before its demonstration."""
    if source.column:
        return (source.column,)
    if source.demonstration is None or source.demonstration in COLUMNS:
        return COLUMNS
    return (*COLUMNS, source.demonstration)


def _no_column(source: PromptSource, known: Iterable[str]) -> str:
    wanted = f"no column {source.column!r}" if source.column else f"none of the columns {', '.join(COLUMNS)}"
    there = ", ".join(known)
    return f"{wanted}; set `column` to one of {there}" if there else f"{wanted}, nor any other"


def _lines(path: Path) -> Iterator[tuple[str, str | PromptError]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield (
                    f"{path}, line {number}",
                    raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"),
                )
            except UnicodeDecodeError as error:
                yield (
                    f"{path}, line {number}",
                    PromptError(f"not UTF-8: {error.reason} at byte {error.start}"),
                )


def _text_rows(path: Path, source: PromptSource) -> Iterator[Entry]:
    for position, line in _lines(path):
        yield Entry(position, line)


def _jsonl_rows(path: Path, source: PromptSource) -> Iterator[Entry]:
    for position, line in _lines(path):
        if isinstance(line, PromptError):
            yield Entry(position, line)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            yield Entry(position, PromptError(f"malformed: not a line of JSON: {error}"))
        else:
            yield _value(row, source, position)


def _json_rows(path: Path, source: PromptSource) -> Iterator[Entry]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{path}: not a JSON file: {error}; name it .jsonl if it has an object a line"
        ) from error
    if not isinstance(rows, list):
        raise PromptError(f"{path}: holds a {type(rows).__name__}, not a list of prompts")
    for number, row in enumerate(rows, 1):
        yield _value(row, source, f"{path}, entry {number}")


def _parquet_rows(path: Path, source: PromptSource) -> Iterator[Entry]:
    number = 0
    try:
        file = pq.ParquetFile(path)
        known = file.schema_arrow.names
        if not set(_columns(source)) & set(known):
            raise PromptError(f"{path}: {_no_column(source, known)}")
        wanted = [name for name in known if name in (*_columns(source), *ID_COLUMNS, source.demonstration)]
        for batch in file.iter_batches(batch_size=_CHUNK, columns=wanted):
            for row in _decoded(batch):
                number += 1
                position = f"{path}, row {number}"
                yield Entry(position, row) if isinstance(row, PromptError) else _value(row, source, position)
    except (OSError, pa.ArrowException) as error:
        raise PromptError(f"{path}: not a whole parquet file (behind row {number}): {error}") from error


def _decoded(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | PromptError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield PromptError(f"not UTF-8: {error.reason} at byte {error.start}")
            return
        for index in range(batch.num_rows):
            yield from _decoded(batch.slice(index, 1))


def _hub_rows(source: PromptSource) -> Iterator[Entry]:
    import datasets

    folder = Path(source.source)
    try:
        if (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(source.source)
        elif (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(source.source)
            if source.split not in splits:
                raise PromptError(
                    f"prompts: {folder} has no split {source.split!r}; it has {', '.join(splits)}"
                )
            loaded = splits[source.split]
        else:
            loaded = datasets.load_dataset(source.source, split=source.split, revision=source.revision)
    except PromptError:
        raise
    except Exception as error:  # datasets raises what the hub, the disk and the formats raise
        raise PromptError(
            f"prompts: {source.source!r} is neither a file here nor a data set that loads:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not set(_columns(source)) & set(loaded.column_names):
        raise PromptError(f"prompts: {source.source}: {_no_column(source, loaded.column_names)}")
    for number, row in enumerate(loaded, 1):
        yield _value(row, source, f"{source.source}, {source.split} row {number}")


_READERS: dict[str, Callable[[Path, PromptSource], Iterator[Entry]]] = {
    ".txt": _text_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}
