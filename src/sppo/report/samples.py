"""A sample of a run's responses, for distributions, agreement, cycles, and the texts that the page shows in full.

Prompts are assigned to iterations and shards in random order, so whole shards chosen by a hash of their names are a
random sample of the prompts.
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
from jaxtyping import Bool, Float

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
        prompt_ids: N identifiers.
        prompts: N prompts as text.
        texts: [N][K] the responses as text.
        tokens: [N][K] the number of tokens of each response, the end of the turn included.
        truncated: [N][K] whether the response reached its length limit.
        total: how many prompts there are, read or not.
        win_rates: for some prompts, by identifier, the win rate of the responses against the base policy's.
    """

    prompt_ids: Sequence[str] = ()
    prompts: Sequence[str] = ()
    texts: Sequence[Sequence[str]] = ()
    tokens: Sequence[Sequence[int]] = ()
    truncated: Sequence[Sequence[bool]] = ()
    total: int = 0
    win_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparedResponses:
    """The responses of an iteration with the oracle's preferences among them.

    Attributes:
        responses: K responses to each of N prompts.
        matrix: [N, K, K] the oracle's preferences; NaN where a pair was not compared.
        components: the same for each component of the oracle, by its name.
        settled: [N, K] whether the win rate of each response counts; None: all count.
    """

    responses: Responses
    matrix: Float[Array, "N K K"]
    components: Mapping[str, Float[Array, "N K K"]] = field(default_factory=dict)
    settled: Bool[np.ndarray[Any, Any], "N K"] | None = None

    @cached_property
    def win_rates(self) -> Float[Array, "N K"]:
        """The win rate of each response among the K."""
        return winrates.win_rates(self.matrix, self.settled)

    @property
    def is_whole(self) -> bool:
        """Whether every pair was compared."""
        return not bool(np.isnan(self.matrix).any())

    @cached_property
    def cycles(self) -> Float[Array, " N"]:
        """The share of cyclic triples of each prompt; NaN where pairs were not compared."""
        return game.cyclic_triples(self.matrix) if self.is_whole else np.full(len(self.matrix), np.nan)

    @cached_property
    def disagreement(self) -> Float[Array, " N"]:
        """The share of pairs on which the oracle's components prefer different responses; NaN for fewer than two."""
        if len(self.components) < 2:
            return np.full(len(self.matrix), np.nan)
        sides = np.stack([np.sign(component - 0.5) for component in self.components.values()])
        split = np.where(np.isnan(sides).any(axis=0), np.nan, (sides != sides[0]).any(axis=0))
        return np.asarray(_over_pairs(split))

    def agreement(self) -> dict[str, float]:
        """For each component, the share of pairs on which it prefers what the whole oracle prefers; a tie counts half."""
        whole = np.sign(self.matrix - 0.5)
        shares = {
            name: _over_pairs(1 - np.abs(np.sign(component - 0.5) - whole) / 2)
            for name, component in self.components.items()
        }
        return {
            name: float(np.nanmean(agreed)) for name, agreed in shares.items() if not np.isnan(agreed).all()
        }

    def margins(self) -> Array:
        """|P - 1/2| of every pair that was compared."""
        upper = np.triu_indices(self.matrix.shape[-1], 1)
        values: Array = np.abs(self.matrix[:, *upper] - 0.5)
        return values[~np.isnan(values)]


def held_out(run: Path, iteration: int, notes: list[str]) -> Responses | None:
    """Reads a policy's responses to held-out prompts; None where there are none yet.

    Args:
        run: the run folder.
        iteration: the iteration that trained the policy; 0 for the base policy.
        notes: receives a note about each shard that cannot be read; the others are read.
    """
    reader = RunReader(run)
    responses = _responses(*_sampled_shards(reader.shards(iteration, "evaluation"), notes), notes)
    if responses is None:
        return None
    rates: dict[str, float] = {}
    for shard in reader.shards(iteration, "comparisons"):
        rates |= _read(shard, ["prompt_id", "win_rates"], _win_rates, notes) or {}
    return Responses(**{**vars(responses), "win_rates": rates})


def compared(run: Path, iteration: int, notes: list[str]) -> ComparedResponses | None:
    """Reads an iteration's responses with the oracle's preferences; None where there are none of equal K yet.

    Args:
        run: the run folder.
        iteration: t.
        notes: receives a note about each shard that cannot be read; the others are read.
    """
    reader = RunReader(run)
    shards, total = _sampled_shards(reader.shards(iteration, "preferences"), notes)
    preferences: dict[str, _Preferences] = {}
    columns = ["prompt_id", "matrix", "components", OLD_COMPONENTS, "settled"]
    for shard in shards:
        preferences |= _read(shard, columns, _preferences, notes) or {}
    by_name = {path.name: path for path in reader.shards(iteration, "responses")}
    answered = [by_name[shard.name] for shard in shards if shard.name in by_name]
    responses = _responses(answered, total, notes)
    if responses is None:
        return None
    kept = {
        index: preferences[name]
        for index, name in enumerate(responses.prompt_ids)
        if name in preferences
        and len(preferences[name].matrix) == len(responses.texts[index]) == len(responses.texts[0])
    }
    if not kept:
        return None
    in_all = set.intersection(*(set(prompt.components) for prompt in kept.values()))
    components = {
        name: np.array([prompt.components[name] for prompt in kept.values()])
        for name in next(iter(kept.values())).components
        if name in in_all
    }
    lists = ("prompt_ids", "prompts", "texts", "tokens", "truncated")
    chosen: dict[str, Any] = {name: [getattr(responses, name)[index] for index in kept] for name in lists}
    matrices = np.array([prompt.matrix for prompt in kept.values()])
    settled = np.array([prompt.settled for prompt in kept.values()])
    return ComparedResponses(Responses(**chosen, total=responses.total), matrices, components, settled)


def _sampled_shards(shards: Sequence[Path], notes: list[str]) -> tuple[list[Path], int]:
    """Enough whole shards for the sample, and the number of prompts that all shards have together."""
    files = sorted(shards, key=lambda path: randomness.digest("report", path.name))
    counts = [_prompt_count(path, notes) for path in files]
    taken: list[Path] = []
    rows = 0
    for path, count in zip(files, counts, strict=True):
        if count and rows < PROMPTS:
            taken.append(path)
            rows += count
    return taken, sum(counts)


def _prompt_count(path: Path, notes: list[str]) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:  # the file is damaged, or a running process has replaced it
        notes.append(f"This file is left out: {path}: not a whole shard: {error}")
        return 0


def _read(path: Path, columns: Sequence[str], parse: Callable[[pa.Table], T], notes: list[str]) -> T | None:
    """The parsed rows of a shard; None, with a note, if the shard is damaged or of another format."""
    try:
        return parse(read_shard(path, columns=list(columns)))
    except DamagedShard as error:
        notes.append(f"This file is left out: {error}")
    except (TypeError, ValueError, LookupError, AttributeError, pa.ArrowException) as error:
        notes.append(f"This file is left out, because another version wrote it: {path}: {error}")
    return None


@dataclass(frozen=True)
class _Preferences:
    matrix: Float[Array, "K K"]
    components: Mapping[str, Float[Array, "K K"]]
    settled: Bool[np.ndarray[Any, Any], " K"]


def _preferences(table: pa.Table) -> dict[str, _Preferences]:
    """The preferences of a shard by prompt; raises ValueError or a similar error for an invalid entry."""
    _require_columns(table, "prompt_id", "matrix")
    by_prompt = {}
    for row in table.to_pylist():
        matrix = _matrix(row["matrix"])
        listed = row.get("components") or row.get(OLD_COMPONENTS) or []
        components = {_text(component["oracle"]): _matrix(component["matrix"]) for component in listed}
        if any(component.shape != matrix.shape for component in components.values()):
            raise ValueError("a component of the oracle has compared other responses than the whole oracle")
        settled = np.array(row.get("settled") or [True] * len(matrix), dtype=bool)
        if len(settled) != len(matrix):
            raise ValueError("not every response is said to be settled or not")
        by_prompt[_text(row["prompt_id"])] = _Preferences(matrix, components, settled)
    return by_prompt


def _matrix(rows: Any) -> Float[Array, "K K"]:
    matrix = np.array(rows, dtype=np.float64)
    if matrix.shape != (1, 1):
        game.preference_game(np.where(np.isnan(matrix), 0.5, matrix))
    return matrix


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _require_columns(table: pa.Table, *columns: str) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")


def _win_rates(table: pa.Table) -> dict[str, float]:
    """The win rates against the base by prompt: the held-out oracle's where there are any, otherwise the oracle's."""
    by_prompt = {}
    for row in table.to_pylist():
        rates = {
            rate["oracle"]: float(rate["win_rate"]) for rate in row["win_rates"] if rate["opponent"] == "base"
        }
        if rates:
            by_prompt[_text(row["prompt_id"])] = rates.get("held_out", rates.get("oracle", float("nan")))
    return by_prompt


def _responses(shards: Sequence[Path], total: int, notes: list[str]) -> Responses | None:
    columns: dict[str, Any] = {}
    for path in shards:
        read = _read(path, ["prompt_id", "messages", "responses"], _response_columns, notes)
        for name, values in (read or {}).items():
            column = columns.setdefault(name, [])
            column += values[: PROMPTS - len(column)]
    return Responses(**columns, total=total) if columns else None


def _response_columns(table: pa.Table) -> dict[str, list[Any]]:
    """The columns of :class:`Responses`; raises ValueError or a similar error for an invalid entry.

    Token ids are counted inside Arrow's arrays, since they are most of a shard and only their number is needed.
    """
    _require_columns(table, "prompt_id", "messages", "responses")
    lists = table["responses"].combine_chunks()
    responses = lists.flatten()
    bounds = np.cumsum([0, *pc.list_value_length(lists).to_pylist()])
    if not np.diff(bounds).all():
        raise ValueError("a prompt has no responses")
    arrays = {
        "texts": pc.struct_field(responses, "text"),
        "tokens": pc.list_value_length(pc.struct_field(responses, "token_ids")),
        "truncated": pc.equal(pc.struct_field(responses, "finish_reason"), "length"),
    }
    if any(values.null_count for values in arrays.values()):
        raise ValueError("a response has no text, tokens or finish_reason")
    flat = {name: values.to_pylist() for name, values in arrays.items()}
    return {
        "prompt_ids": [_text(name) for name in table["prompt_id"].to_pylist()],
        "prompts": [_text(plain_text(messages)) for messages in table["messages"].to_pylist()],
        **{
            name: [values[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
            for name, values in flat.items()
        },
    }


def _over_pairs(values: Float[Array, "N K K"]) -> Float[Array, " N"]:
    """The mean over the unordered pairs of each prompt that have a value; NaN with a single response."""
    upper = values[:, *np.triu_indices(values.shape[-1], 1)]
    counted = ~np.isnan(upper)
    with np.errstate(invalid="ignore"):  # no pair to count gives 0 / 0, which is the NaN that is wanted
        mean: Array = np.where(counted, upper, 0).sum(-1) / counted.sum(-1)
    return mean
