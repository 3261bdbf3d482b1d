"""The tables that pass between the stages: the schema of each, and its rows as typed records.

A row is a frozen dataclass with the columns of its schema as fields. :meth:`Row.from_row` takes a row as parquet gives
it and refuses a column too many or too few, so nothing is added to a table or lost from it silently;
:meth:`Row.to_row` is its inverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa

from sppo.rundir.shards import read_shard
from sppo.winrates import Array

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TOKEN_IDS = pa.list_(pa.int32())
MATRIX = pa.list_(pa.list_(pa.float64()))
_DEMONSTRATION = pa.struct([("text", pa.string()), ("token_ids", TOKEN_IDS)])
_RESPONSE = pa.struct(
    [
        ("token_ids", TOKEN_IDS),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("log_prob", pa.float64()),
        ("token_log_probs", pa.list_(pa.float32())),
    ]
)
_COMPONENT = pa.struct([("oracle", pa.string()), ("matrix", MATRIX)])
_SELECTED = pa.struct(
    [
        ("k", pa.int32()),
        ("token_ids", TOKEN_IDS),
        ("win_rate", pa.float64()),
        ("opponent_log_prob", pa.float64()),
        ("reference_log_probs", pa.list_(pa.float64())),
        ("reward", pa.float64()),
        ("sampler_deviation", pa.float64()),
    ]
)
_WIN_RATE = pa.struct([("opponent", pa.string()), ("oracle", pa.string()), ("win_rate", pa.float64())])


@dataclass(frozen=True)
class Row:
    """One row of a table, or one struct inside a row."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a row as pyarrow gives it.

        Raises:
            TypeError: the row has another set of columns than the record has fields.
        """
        return cls(**row)

    def to_row(self) -> dict[str, Any]:
        """The row as pyarrow takes it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Demonstration(Row):
    """A response that came with its prompt.

    Attributes:
        text: as it was given.
        token_ids: up to and including the end of the turn.
    """

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class PromptRow(Row):
    """One prompt.

    Attributes:
        prompt_id: derived from the prompt's content.
        messages: the conversation up to the user's last message.
        prompt_token_ids: the chat template's rendering of it, generation prompt included.
        demonstration: a response that came with the prompt; None where none was read.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("messages", MESSAGES),
            ("prompt_token_ids", TOKEN_IDS),
            ("demonstration", _DEMONSTRATION),
        ]
    )

    prompt_id: str
    messages: list[Any]
    prompt_token_ids: list[int]
    demonstration: Demonstration | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The prompt of a row, its demonstration as a record."""
        given = row["demonstration"]
        return cls(**{**row, "demonstration": None if given is None else Demonstration.from_row(given)})

    def to_row(self) -> dict[str, Any]:
        """The row of the prompt, its demonstration as a mapping."""
        given = self.demonstration
        return {**super().to_row(), "demonstration": None if given is None else given.to_row()}


@dataclass(frozen=True)
class ResponseRecord(Row):
    """One response drawn from a policy.

    Attributes:
        token_ids: with the end-of-turn token where `finish_reason` is `stop`; a truncated response has none.
        text: for the oracle and for people, never tokenised again. It ends before a stop string (`sampling.stop`)
            whose tokens `token_ids` keeps.
        finish_reason: `stop`, or `length` where the response was truncated.
        log_prob: log pi_t(y|x) in nats, at temperature 1 and without truncation, as the sampler computed it.
        token_log_probs: the terms of `log_prob`, one for each token.
    """

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    log_prob: float
    token_log_probs: list[float]


@dataclass(frozen=True)
class ResponsesRow(PromptRow):
    """A prompt with its K responses.

    Attributes:
        responses: in the order k = 0, 1, ..., K - 1.
    """

    schema: ClassVar[pa.Schema] = pa.schema([*PromptRow.schema, ("responses", pa.list_(_RESPONSE))])

    responses: list[ResponseRecord]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The prompt and its responses as records."""
        responses = [ResponseRecord.from_row(response) for response in row["responses"]]
        return super().from_row({**row, "responses": responses})

    def to_row(self) -> dict[str, Any]:
        """The row of the prompt, its responses as mappings."""
        return {**super().to_row(), "responses": [response.to_row() for response in self.responses]}

    @property
    def texts(self) -> list[str]:
        """The texts of the responses."""
        return [response.text for response in self.responses]


@dataclass(frozen=True)
class PreferencesRow(Row):
    """What the oracle says of the K responses to a prompt.

    Attributes:
        prompt_id: of the prompt.
        matrix: [K, K], entry [i, j] is P(y_i > y_j | x); NaN where the pair was not compared (`oracle.opponents`).
        components: the matrices that `matrix` was made from, by the name of the oracle: those of a panel's members,
            and that of the oracle inside a wrapper. Empty where the oracle is a single one.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [("prompt_id", pa.string()), ("matrix", MATRIX), ("components", pa.list_(_COMPONENT))]
    )

    prompt_id: str
    matrix: Array
    components: dict[str, Array]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The preferences of a row as arrays."""
        components = {part["oracle"]: np.array(part["matrix"]) for part in row["components"]}
        return cls(**{**row, "matrix": np.array(row["matrix"]), "components": components})

    def to_row(self) -> dict[str, Any]:
        """The row of the preferences, matrices as nested lists."""
        components = [{"oracle": name, "matrix": matrix.tolist()} for name, matrix in self.components.items()]
        return {"prompt_id": self.prompt_id, "matrix": self.matrix.tolist(), "components": components}


@dataclass(frozen=True)
class SelectedResponse(Row):
    """A response that is trained on.

    Attributes:
        k: its number among the K responses of the prompt; None for a demonstration.
        token_ids: what of the response is trained on.
        win_rate: P^(y > pi_t | x) over all K responses of the prompt; None for a demonstration, and where no oracle
            was asked.
        opponent_log_prob: log pi_t(y|x) in nats.
        reference_log_probs: log pi(y|x) in nats under each reference policy of the row, in that order.
        reward: what the algorithm makes of the comparisons beside P^; None where it has no use for it.
        sampler_deviation: the trainer's log pi_t(y|x) minus the sampler's, in nats; None where only one was computed.
    """

    k: int | None
    token_ids: list[int]
    win_rate: float | None
    opponent_log_prob: float
    reference_log_probs: list[float]
    reward: float | None
    sampler_deviation: float | None


@dataclass(frozen=True)
class TrainingRow(Row):
    """A prompt with the responses that are trained on.

    Attributes:
        prompt_id: of the prompt.
        prompt_token_ids: as in :class:`PromptRow`.
        opponent: the fingerprint of pi_t.
        reference_policies: the fingerprints of the further policies that stand in the algorithm's loss.
        log_partition: log Z in nats.
        responses: the selected ones; none where nothing of the prompt can be trained on.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("prompt_token_ids", TOKEN_IDS),
            ("opponent", pa.string()),
            ("reference_policies", pa.list_(pa.string())),
            ("log_partition", pa.float64()),
            ("responses", pa.list_(_SELECTED)),
        ]
    )

    prompt_id: str
    prompt_token_ids: list[int]
    opponent: str
    reference_policies: list[str]
    log_partition: float
    responses: list[SelectedResponse]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The row with its responses as records."""
        responses = [SelectedResponse.from_row(response) for response in row["responses"]]
        return cls(**{**row, "responses": responses})

    def to_row(self) -> dict[str, Any]:
        """The row with its responses as mappings."""
        return {**super().to_row(), "responses": [response.to_row() for response in self.responses]}


@dataclass(frozen=True)
class WinRate(Row):
    """The win rate of a policy's responses to one prompt.

    Attributes:
        opponent: `base` or `previous`.
        oracle: `oracle`, or `held_out` for `evaluation.oracle`.
        win_rate: the mean of P(y > y' | x) over the policy's responses y and the opponent's y'.
    """

    opponent: Literal["base", "previous"]
    oracle: Literal["oracle", "held_out"]
    win_rate: float


@dataclass(frozen=True)
class EvaluationRow(Row):
    """What is measured of a policy's responses to a held-out prompt.

    Attributes:
        prompt_id: of the prompt.
        base_log_probs: log pi_1(y|x) of each response, in nats.
        win_rates: one for each opponent and oracle.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("base_log_probs", pa.list_(pa.float64())),
            ("win_rates", pa.list_(_WIN_RATE)),
        ]
    )

    prompt_id: str
    base_log_probs: list[float]
    win_rates: list[WinRate]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The row with its win rates as records."""
        return cls(**{**row, "win_rates": [WinRate.from_row(rate) for rate in row["win_rates"]]})

    def to_row(self) -> dict[str, Any]:
        """The row with its win rates as mappings."""
        return {**super().to_row(), "win_rates": [rate.to_row() for rate in self.win_rates]}


TableRow = TypeVar("TableRow", PromptRow, ResponsesRow, PreferencesRow, TrainingRow, EvaluationRow)


def to_table(rows: Sequence[TableRow], kind: type[TableRow]) -> pa.Table:
    """The rows as a table of their schema; an empty table where there are none."""
    return pa.Table.from_pylist([row.to_row() for row in rows], schema=kind.schema)


def from_table(table: pa.Table, kind: type[TableRow]) -> list[TableRow]:
    """The rows of a table as records.

    Raises:
        TypeError: the table has other columns.
    """
    return [kind.from_row(row) for row in table.to_pylist()]


def read_rows(path: Path, kind: type[TableRow]) -> list[TableRow]:
    """The rows of a shard as records.

    Raises:
        DamagedShard: the file is missing, truncated or altered.
        TypeError: it is a shard of another table.
    """
    return from_table(read_shard(path), kind)


# The schemas by name, for rows that are still mappings.
PROMPTS, RESPONSES = PromptRow.schema, ResponsesRow.schema
PREFERENCES, TRAINING = PreferencesRow.schema, TrainingRow.schema
