"""Prompt sources and their split over the iterations.

Every prompt is read, checked, rendered and tokenised once, before anything is sampled; the split depends
on the seed and on the prompts' ids, never on their order.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo import randomness
from sppo.policy.chat_format import ChatError, ChatFormat
from sppo.progress import counted_text
from sppo.prompts import sources
from sppo.prompts.columns import COLUMNS, Prompt, columns_to_read, interpret
from sppo.prompts.conversations import PromptError
from sppo.prompts.sources import Row
from sppo.recipe import PromptSource
from sppo.rundir.tables import PROMPTS

__all__ = [
    "COLUMNS",
    "Counts",
    "Prompt",
    "PromptError",
    "Row",
    "Split",
    "Survey",
    "held_out_shares",
    "interpret",
    "is_local",
    "local_files",
    "names_a_file",
    "portions",
    "read",
    "read_source",
    "split",
    "survey",
]
_CHUNK = 1024


@dataclass
class Counts:
    """The counts of prompts that were kept, repeated, left out or truncated.

    Attributes:
        read: the number of rows.
        doubled_bos: the number of prompts in which the template wrote the BOS token twice.
        skipped: the number of prompts left out for each reason.
        first_skipped: the first prompt left out for each reason, in words.
        taken: the number of prompts taken from each column of each source, by the source and the columns in words.
    """

    read: int = 0
    doubled_bos: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)

    def skip(self, position: str, error: Exception) -> None:
        """Count a prompt that is left out, by the reason that the error gives."""
        reason = str(error).split(":")[0].split(" of ")[0].split(" '")[0]
        self.skipped[reason] += 1
        self.first_skipped.setdefault(reason, f"{position}: {error}")

    def notes(self) -> list[str]:
        """Lines for the user: which columns prompts were taken from, and which prompts were changed or left out."""
        notes = [
            f"{source}: {counted_text(count, 'prompt')} from {taken}"
            for (source, taken), count in self.taken.items()
        ]
        if self.doubled_bos:
            notes.append(f"{counted_text(self.doubled_bos, 'prompt')} had a doubled BOS; one was removed")
        for reason, count in self.skipped.items():
            notes.append(f"{counted_text(count, 'prompt')} cannot be used ({self.first_skipped[reason]})")
        return notes


@dataclass(frozen=True)
class Split:
    """The prompts of each iteration and the held-out ones, as tables of the schema `rundir.tables.PROMPTS`."""

    iterations: list[pa.Table]
    held_out: pa.Table
    counts: Counts


def is_local(source: PromptSource) -> bool:
    """Whether a source is on this disk, as a file, a folder or one of the package's own."""
    return bool(local_files(source)) or Path(source.source).expanduser().is_dir()


def local_files(source: PromptSource) -> list[Path]:
    """The files that a source names, one or all that match a pattern; none if it is a folder or a data set on the hub."""
    return sources.local_files(source.source)


def names_a_file(source: PromptSource) -> bool:
    """Whether a source is meant to be a file, judging by its ending."""
    return sources.names_a_file(source.source)


def read_source(source: PromptSource) -> Iterator[Row]:
    """Read the rows of a source one by one; :func:`interpret` reads the prompt of a row.

    Raises:
        PromptError: the source does not exist, or it has no column of prompts.
    """
    rows = sources.read_rows(
        source.source,
        columns=partial(columns_to_read, source),
        split=source.split,
        config=source.config,
        revision=source.revision,
    )
    return islice(rows, source.limit)


def survey(source: PromptSource) -> Counts:
    """Count what a source holds without a tokenizer: its prompts by column, and the rows that cannot be used.

    Raises:
        PromptError: as for :func:`read_source`.
    """
    counts = Counts()
    for position, value in read_source(source):
        counts.read += 1
        try:
            counts.taken[source.source, interpret(value, source).taken] += 1
        except PromptError as error:
            counts.skip(position, error)
    return counts


def split(
    train: PromptSource | Sequence[PromptSource],
    held_out: PromptSource | int,
    *,
    iterations: int,
    per_iteration: int | None,
    parts: int | None = None,
    chat: ChatFormat,
    max_tokens: int,
    skip_invalid: bool,
    seed: int,
    on_prompt: Callable[[int], None] = lambda count: None,
) -> Split:
    """Read all prompts, check and tokenise them, and split them over the iterations without overlap.

    Args:
        train: one source for all iterations, or one for each.
        held_out: a source, or the number of prompts to set aside from `train`.
        iterations: T.
        per_iteration: the number of prompts in one iteration; None divides all prompts evenly.
        parts: the number of parts that one source is divided into, if `per_iteration` is None; iterations beyond them
            begin with the first part again. None: one part for each iteration.
        chat: renders and tokenises prompts.
        max_tokens: the longest rendered prompt that is allowed.
        skip_invalid: leave out and count prompts that cannot be used, instead of raising.
        seed: the seed of the order in which prompts are dealt out.
        on_prompt: called with 1 for each row read.

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
    by_iteration = (
        tables
        if len(tables) > 1
        else [
            tables[0].slice(positions.start, len(positions))
            for positions in portions(tables[0].num_rows, iterations, per_iteration, parts)
        ]
    )
    if per_iteration is not None:
        by_iteration = _shortened(by_iteration, per_iteration, reading)
    empty = [number for number, table in enumerate(by_iteration, 1) if table.num_rows == 0]
    if empty:
        total = sum(table.num_rows for table in by_iteration)
        raise PromptError(
            f"iterations: {iterations}, but only {counted_text(total, 'prompt')} to train on: iteration"
            f" {empty[0]} would have none; lower iterations or give more prompts{reading.skipped()}"
        )
    return Split(by_iteration, fixed_held_out, reading.counts)


def _shortened(tables: Sequence[pa.Table], count: int, reading: "_Reading") -> list[pa.Table]:
    """The first prompts of each iteration."""
    short = [number for number, table in enumerate(tables, 1) if table.num_rows < count]
    if short:
        raise PromptError(
            f"prompts.per_iteration: {count}, but iteration {short[0]} has only"
            f" {tables[short[0] - 1].num_rows} prompts; lower it, or give more prompts{reading.skipped()}"
        )
    return [table.slice(0, count) for table in tables]


def read(source: PromptSource, *, chat: ChatFormat, max_tokens: int, skip_invalid: bool) -> pa.Table:
    """Read, check and tokenise the prompts of one source, in their order.

    Args:
        source: where the prompts come from.
        chat: renders and tokenises prompts.
        max_tokens: the longest rendered prompt that is allowed.
        skip_invalid: leave out prompts that cannot be used, instead of raising.

    Raises:
        PromptError: a prompt cannot be used, or the source has none.
    """
    reading = _Reading(chat, max_tokens, skip_invalid, lambda count: None)
    table = reading.table(source)
    if table.num_rows == 0:
        raise PromptError(f"{source.source}: it has no prompt that can be used{reading.skipped()}")
    return table


@dataclass
class _Reading:
    """Reads sources one after another; a prompt of an earlier source is a duplicate in a later one."""

    chat: ChatFormat
    max_tokens: int
    skip_invalid: bool
    on_prompt: Callable[[int], None]
    counts: Counts = field(default_factory=Counts)
    seen: dict[bytes, str] = field(default_factory=dict)
    seen_ids: dict[str, tuple[PromptSource, str]] = field(default_factory=dict)

    def table(self, source: PromptSource, label: str = "") -> pa.Table:
        chunks: list[pa.RecordBatch] = []
        rows: list[dict[str, Any]] = []
        for position, value in read_source(source):
            self.counts.read += 1
            self.on_prompt(1)
            try:
                rows.append(self._row(position + label, value, source))
            except (PromptError, ChatError) as error:
                if not self.skip_invalid:
                    raise PromptError(
                        f"{position}: {error}; mend it, or set prompts.invalid: skip to leave such prompts out"
                    ) from error
                self.counts.skip(position, error)
            if len(rows) == _CHUNK:
                chunks.append(pa.RecordBatch.from_pylist(rows, schema=PROMPTS))
                rows = []
        chunks.append(pa.RecordBatch.from_pylist(rows, schema=PROMPTS))
        return pa.Table.from_batches(chunks, schema=PROMPTS).combine_chunks()

    def skipped(self) -> str:
        """The prompts left out so far, in words that end a message."""
        if not self.counts.skipped:
            return ""
        first = next(iter(self.counts.first_skipped.values()))
        return (
            f" ({self.counts.skipped.total()} of {self.counts.read} were skipped, the first of them {first})"
        )

    def _row(self, position: str, value: Any, source: PromptSource) -> dict[str, Any]:
        messages, demonstrated, own_id, taken = interpret(value, source)
        key = randomness.digest(json.dumps(messages, sort_keys=True))
        if key in self.seen:
            raise PromptError(f"a duplicate of {self.seen[key]}")
        self.seen[key] = position
        prompt_id = self._new_id(own_id, key.hex()[:16], source, position)
        self.seen_ids[prompt_id] = (source, position)
        rendered = self.chat.render(messages)
        if len(rendered.token_ids) > self.max_tokens:
            raise PromptError(f"over-long: {len(rendered.token_ids)} tokens, {self.max_tokens} are allowed")
        demonstration = None
        if demonstrated is not None:
            token_ids = self.chat.response(messages, demonstrated)
            demonstration = {"text": demonstrated, "token_ids": token_ids}
        self.counts.doubled_bos += rendered.doubled_bos
        self.counts.taken[source.source, taken] += 1
        return {
            "prompt_id": prompt_id,
            "messages": messages,
            "prompt_token_ids": rendered.token_ids,
            "demonstration": demonstration,
        }

    def _new_id(self, own_id: str | None, content_id: str, source: PromptSource, position: str) -> str:
        """The row's own id. Files that count from 0 share ids, so a later file's prompt is named by its content."""
        if own_id is None or own_id not in self.seen_ids:
            return own_id or content_id
        other, earlier = self.seen_ids[own_id]
        if other == source and _file_of(earlier) == _file_of(position):
            raise PromptError(f"a duplicate id: {own_id!r} is also that of {earlier}")
        return content_id


def _file_of(position: str) -> str:
    """The file or data set of a row's position, which ends with the row's number behind a comma."""
    return position.rpartition(", ")[0]


def _dealt(table: pa.Table, seed: int) -> pa.Table:
    """The rows in an order that depends only on the seed and their ids."""
    keys = [randomness.digest("deal", seed, prompt_id) for prompt_id in table["prompt_id"].to_pylist()]
    return table.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64()))


def held_out_shares(sizes: Sequence[int], count: int, note: str = "") -> list[int]:
    """The number of held-out prompts from each source, `count` in all, in proportion to the sources' sizes.

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


def portions(count: int, iterations: int, per_iteration: int | None, parts: int | None) -> list[range]:
    """The prompts of each iteration, as positions among the `count` prompts of a source that all iterations share.

    Args:
        count: the number of prompts.
        iterations: T.
        per_iteration: the number of prompts in one iteration; None divides all of them evenly.
        parts: the number of parts that they are divided into evenly; iterations beyond it begin with the first part
            again. None: one for each iteration.
    """
    everything, parts = range(count), parts or iterations
    if per_iteration is not None:
        return [everything[index * per_iteration :][:per_iteration] for index in range(iterations)]
    bounds = [count * index // parts for index in range(parts + 1)]
    divided = [everything[start:stop] for start, stop in pairwise(bounds)]
    return [divided[index % parts] for index in range(iterations)]
