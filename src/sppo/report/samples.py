"""A sample of a run's responses: what distributions, agreement and cycles are read from, and what is shown in full.

Prompts are dealt to iterations and shards in a random order, so whole shards, drawn by name, are a random sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float

from sppo import game, randomness, winrates
from sppo.policy.chat_format import plain_text
from sppo.rundir.reader import RunReader
from sppo.rundir.shards import DamagedShard, read_shard

Array = winrates.Array
T = TypeVar("T")

PROMPTS = 2000
"""The number of prompts of each iteration that are read at most."""
OLD_COMPONENTS = "parts"
"""The name that version 0.1 gave to the column `components`."""


@dataclass(frozen=True)
class Responses:
    """K responses of one policy to each of N prompts.

    Attributes:
        prompt_ids: N.
        prompts: as text.
        texts: [N][K].
        tokens: [N][K] how many, the end of the turn included.
        cut: [N][K] whether it ended at the limit.
        total: prompts that there are, read or not.
    """

    prompt_ids: Sequence[str] = ()
    prompts: Sequence[str] = ()
    texts: Sequence[Sequence[str]] = ()
    tokens: Sequence[Sequence[int]] = ()
    cut: Sequence[Sequence[bool]] = ()
    total: int = 0


@dataclass(frozen=True)
class Compared:
    """Responses of an iteration with the oracle's preferences.

    Attributes:
        responses: to N prompts, K each.
        matrix: [N, K, K]; NaN where a pair was not compared.
        parts: the same of each part of the oracle, by name.
    """

    responses: Responses
    matrix: Float[Array, "N K K"]
    parts: Mapping[str, Float[Array, "N K K"]] = field(default_factory=dict)

    @cached_property
    def win_rates(self) -> Float[Array, "N K"]:
        """P^ of each response."""
        return winrates.win_rates(self.matrix)

    @property
    def is_whole(self) -> bool:
        """Whether every pair was compared."""
        return not bool(np.isnan(self.matrix).any())

    @cached_property
    def cycles(self) -> Float[Array, " N"]:
        """Share of triples that go round; NaN where pairs were not compared."""
        return game.cyclic_triples(self.matrix) if self.is_whole else np.full(len(self.matrix), np.nan)

    @cached_property
    def disagreement(self) -> Float[Array, " N"]:
        """Share of pairs about whose winner the oracle's parts are not of one mind; NaN with fewer than two."""
        if len(self.parts) < 2:
            return np.full(len(self.matrix), np.nan)
        sides = np.stack([np.sign(part - 0.5) for part in self.parts.values()])
        split = np.where(np.isnan(sides).any(axis=0), np.nan, (sides != sides[0]).any(axis=0))
        return np.asarray(_over_pairs(split))

    def agreement(self) -> dict[str, float]:
        """For each part, the share of pairs of which it prefers the one that the whole oracle prefers; a tie is half."""
        whole = np.sign(self.matrix - 0.5)
        found = {}
        for name, part in self.parts.items():
            agreed = _over_pairs(1 - np.abs(np.sign(part - 0.5) - whole) / 2)
            if not np.isnan(agreed).all():
                found[name] = float(np.nanmean(agreed))
        return found

    def margins(self) -> Array:
        """|P - 1/2| of every pair that was compared."""
        upper = np.triu_indices(self.matrix.shape[-1], 1)
        values: Array = np.abs(self.matrix[:, *upper] - 0.5)
        return values[~np.isnan(values)]


def held_out(run: Path, iteration: int, notes: list[str]) -> Responses | None:
    """A policy's responses to held-out prompts; None before they are there.

    Args:
        run: its folder.
        iteration: of the policy.
        notes: is told which shards cannot be read; the others are.
    """
    return _gathered(_drawn(RunReader(run).shards(iteration, "evaluation"), notes), notes)


def compared(run: Path, iteration: int, notes: list[str]) -> Compared | None:
    """An iteration's responses with their preferences; None before there are any, or where K is not the same for all.

    Args:
        run: its folder.
        iteration: t.
        notes: is told which shards cannot be read; the others are.
    """
    reader = RunReader(run)
    shards = _drawn(reader.shards(iteration, "preferences"), notes)
    if shards is None:
        return None
    preferences: dict[str, _Judged] = {}
    for shard in shards.files:
        preferences |= (
            _read(shard, ["prompt_id", "matrix", "components", OLD_COMPONENTS], _preferences, notes) or {}
        )
    compared_shards = {shard.name for shard in shards.files}
    answered = [path for path in reader.shards(iteration, "responses") if path.name in compared_shards]
    answered.sort(key=lambda path: randomness.digest("report", path.name))
    responses = _gathered(_Drawn(answered, shards.total), notes)
    if responses is None:
        return None
    judged = [preferences.get(name) for name in responses.prompt_ids]
    keep = [
        index
        for index, of in enumerate(judged)
        if of is not None and len(of.matrix) == len(responses.texts[index]) == len(responses.texts[0])
    ]
    if not keep:
        return None
    found = [of for of in (judged[index] for index in keep) if of is not None]
    names = list(dict.fromkeys(name for of in found for name in of.parts))
    parts = {
        name: np.array([of.parts[name] for of in found])
        for name in names
        if all(name in of.parts for of in found)
    }
    return Compared(_only(responses, keep), np.array([of.matrix for of in found]), parts)


@dataclass(frozen=True)
class _Drawn:
    files: Sequence[Path]
    total: int


def _drawn(shards: Sequence[Path], notes: list[str]) -> _Drawn | None:
    """Shards enough for the sample, whole ones; None where there are none."""
    files = sorted(shards, key=lambda path: randomness.digest("report", path.name))
    counts = [_rows(path, notes) for path in files]
    taken: list[Path] = []
    rows = 0
    for path, count in zip(files, counts, strict=True):
        if count and rows < PROMPTS:
            taken.append(path)
            rows += count
    return _Drawn(taken, sum(counts)) if taken else None


def _rows(path: Path, notes: list[str]) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:  # damaged, or taken away meanwhile
        notes.append(f"It is left out: {path}: not a whole shard: {error}")
        return 0


def _read(path: Path, columns: Sequence[str], parse: Callable[[pa.Table], T], notes: list[str]) -> T | None:
    """What a shard says; None, and a note, where it cannot be read or has not the form that this version writes."""
    try:
        return parse(read_shard(path, columns=list(columns)))
    except DamagedShard as error:
        notes.append(f"It is left out: {error}")
    except (TypeError, ValueError, LookupError, AttributeError, pa.ArrowException) as error:
        notes.append(f"It is left out, as of another version: {path}: {error}")
    return None


@dataclass(frozen=True)
class _Judged:
    matrix: Float[Array, "K K"]
    parts: Mapping[str, Float[Array, "K K"]]


def _preferences(table: pa.Table) -> dict[str, _Judged]:
    """By prompt; :class:`ValueError` or its like where an entry is none."""
    _needs(table, "prompt_id", "matrix")
    found = {}
    for row in table.to_pylist():
        matrix = _matrix(row["matrix"])
        parts = {
            _text(part["oracle"]): _matrix(part["matrix"])
            for part in row.get("components") or row.get(OLD_COMPONENTS) or []
        }
        if any(part.shape != matrix.shape for part in parts.values()):
            raise ValueError("a part of the oracle has compared other responses than the whole")
        found[_text(row["prompt_id"])] = _Judged(matrix, parts)
    return found


def _matrix(rows: Any) -> Float[Array, "K K"]:
    matrix = np.array(rows, dtype=np.float64)
    if matrix.shape != (1, 1):
        game.preference_game(np.where(np.isnan(matrix), 0.5, matrix))
    return matrix


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _needs(table: pa.Table, *columns: str) -> None:
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")


def _gathered(drawn: _Drawn | None, notes: list[str]) -> Responses | None:
    if drawn is None:
        return None
    columns: dict[str, list[Any]] = {name: [] for name in ("prompt_ids", "prompts", "texts", "tokens", "cut")}
    for path in drawn.files:
        part = _read(path, ["prompt_id", "messages", "responses"], _answers, notes)
        for name, values in (part or {}).items():
            columns[name] += values[: PROMPTS - len(columns[name])]
    if not columns["prompt_ids"]:
        return None
    return Responses(**columns, total=drawn.total)


def _answers(table: pa.Table) -> dict[str, list[Any]]:
    """Columns of :class:`Responses`; token ids are counted where they lie.

    :class:`ValueError` or its like where an entry is none.
    """
    _needs(table, "prompt_id", "messages", "responses")
    lists = table["responses"].combine_chunks()
    flat = lists.flatten()
    bounds = np.cumsum([0, *pc.list_value_length(lists).to_pylist()])
    if not np.diff(bounds).all():
        raise ValueError("a prompt has no responses")
    by_response = {
        "texts": pc.struct_field(flat, "text"),
        "tokens": pc.list_value_length(pc.struct_field(flat, "token_ids")),
        "cut": pc.equal(pc.struct_field(flat, "finish_reason"), "length"),
    }
    if any(values.null_count for values in by_response.values()):
        raise ValueError("a response has no text, tokens or finish_reason")
    listed = {name: values.to_pylist() for name, values in by_response.items()}
    return {
        "prompt_ids": [_text(name) for name in table["prompt_id"].to_pylist()],
        "prompts": [_text(plain_text(messages)) for messages in table["messages"].to_pylist()],
        **{
            name: [values[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
            for name, values in listed.items()
        },
    }


def _only(of: Responses, keep: Sequence[int]) -> Responses:
    columns = {
        name: [values[index] for index in keep] for name, values in vars(of).items() if name != "total"
    }
    return Responses(**columns, total=of.total)


def _over_pairs(values: Float[Array, "N K K"]) -> Float[Array, " N"]:
    """Mean over the unordered pairs; NaN with a single response."""
    k = values.shape[-1]
    if k < 2:
        return np.full(len(values), np.nan)
    upper = values[:, *np.triu_indices(k, 1)]
    counted = ~np.isnan(upper)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(counted, upper, 0).sum(-1) / counted.sum(-1)
    return mean
