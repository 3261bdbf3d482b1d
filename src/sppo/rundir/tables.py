"""The tables that pass between the stages: the schema of each, and its rows as typed records.

A row is a frozen dataclass whose fields are the columns of its schema. :meth:`Row.from_row` refuses a row with a column
too many or too few, so nothing is added to a table or lost from it silently; :meth:`Row.to_row` is its inverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa

from sppo import winrates
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
_WIN_RATE = pa.struct(
    [
        ("opponent", pa.string()),
        ("oracle", pa.string()),
        ("win_rate", pa.float64()),
        ("by_response", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Row:
    """One row of a table, or one struct inside a row.

    Attributes:
        structs: the fields that hold further records, or lists of them, with the class of each.
    """

    structs: ClassVar[Mapping[str, type["Row"]]] = {}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a row, given as pyarrow returns it.

        Raises:
            TypeError: the row has another set of columns than the record has fields.
        """
        values = dict(row)
        for name, kind in cls.structs.items():
            value = values[name]
            if isinstance(value, list):
                values[name] = [kind.from_row(item) for item in value]
            elif value is not None:
                values[name] = kind.from_row(value)
        return cls(**values)

    def to_row(self) -> dict[str, Any]:
        """The row as pyarrow accepts it."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in self.structs:
            value = row[name]
            if isinstance(value, list):
                row[name] = [item.to_row() for item in value]
            elif value is not None:
                row[name] = value.to_row()
        return row


@dataclass(frozen=True)
class Demonstration(Row):
    """A response that came with its prompt.

    Attributes:
        text: the text as it was given.
        token_ids: its tokens up to and including the end of the turn.
    """

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class PromptRow(Row):
    """One prompt.

    Attributes:
        prompt_id: the source's own identifier, or one that is derived from the prompt's content.
        messages: the conversation up to the user's last message.
        prompt_token_ids: the conversation as the chat template renders it, generation prompt included.
        demonstration: a response that came with the prompt; None if none was read.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("messages", MESSAGES),
            ("prompt_token_ids", TOKEN_IDS),
            ("demonstration", _DEMONSTRATION),
        ]
    )

    structs: ClassVar[Mapping[str, type[Row]]] = {"demonstration": Demonstration}

    prompt_id: str
    messages: list[Any]
    prompt_token_ids: list[int]
    demonstration: Demonstration | None


@dataclass(frozen=True)
class ResponseRecord(Row):
    """One response drawn from a policy.

    Attributes:
        token_ids: the tokens, with the end-of-turn token if `finish_reason` is `stop`; a truncated response has none.
        text: the text for the oracle and for people, which is never tokenised again. It ends before a stop string
            (`sampling.stop`), whose tokens stay in `token_ids`.
        finish_reason: `stop`, or `length` if the response was truncated.
        log_prob: log pi_t(y|x) in nats as the sampler computed it, at temperature 1 and over the whole vocabulary.
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

    structs: ClassVar[Mapping[str, type[Row]]] = {**PromptRow.structs, "responses": ResponseRecord}

    responses: list[ResponseRecord]

    @property
    def texts(self) -> list[str]:
        """The texts of the responses."""
        return [response.text for response in self.responses]


@dataclass(frozen=True)
class PreferencesRow(Row):
    """The oracle's preferences between the K responses to a prompt.

    Attributes:
        prompt_id: the prompt's identifier.
        matrix: [K, K]; entry [i, j] is P(y_i > y_j | x), or NaN if the pair was not compared (`oracle.comparisons`).
        components: the matrices that `matrix` was made from, by the name of the oracle: those of a panel's members,
            and that of the oracle inside a wrapper. Empty for a single oracle.
        settled: for each response, whether its P^ counts, where pairs were chosen to find the best and the worst; None: all
            count.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("matrix", MATRIX),
            ("components", pa.list_(_COMPONENT)),
            ("settled", pa.list_(pa.bool_())),
        ]
    )

    prompt_id: str
    matrix: Array
    components: dict[str, Array]
    settled: list[bool] | None = None

    @property
    def win_rates(self) -> Array:
        """P^ of each response; NaN where it was compared with none, or is not settled."""
        return winrates.win_rates(self.matrix, self.settled)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The preferences of a row, with matrices as arrays."""
        components = {item["oracle"]: np.array(item["matrix"]) for item in row["components"]}
        return cls(**{**row, "matrix": np.array(row["matrix"]), "components": components})

    def to_row(self) -> dict[str, Any]:
        """The row of the preferences, with matrices as nested lists."""
        components = [{"oracle": name, "matrix": matrix.tolist()} for name, matrix in self.components.items()]
        return {
            "prompt_id": self.prompt_id,
            "matrix": self.matrix.tolist(),
            "components": components,
            "settled": self.settled,
        }


@dataclass(frozen=True)
class SelectedResponse(Row):
    """A response that is trained on.

    Attributes:
        k: the response's number among the K of its prompt; None for a demonstration.
        token_ids: the tokens of the response that are trained on.
        win_rate: P^(y > pi_t | x) over all K responses of the prompt; None for a demonstration, and if no oracle was
            asked.
        opponent_log_prob: log pi_t(y|x) in nats.
        reference_log_probs: log pi(y|x) in nats under each reference policy of the row, in that order.
        reward: the value beside P^ that the algorithm computes from the comparisons; None for algorithms without one.
        sampler_deviation: the trainer's log pi_t(y|x) minus the sampler's, in nats; None if only one was computed.
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
        prompt_id: the prompt's identifier.
        prompt_token_ids: the tokens of the prompt, as in :class:`PromptRow`.
        opponent: the fingerprint of pi_t.
        reference_policies: the fingerprints of the further policies that stand in the algorithm's loss.
        log_partition: log Z in nats.
        responses: the selected responses; an empty list if none of the prompt's can be trained on.
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

    structs: ClassVar[Mapping[str, type[Row]]] = {"responses": SelectedResponse}

    prompt_id: str
    prompt_token_ids: list[int]
    opponent: str
    reference_policies: list[str]
    log_partition: float
    responses: list[SelectedResponse]


@dataclass(frozen=True)
class WinRate(Row):
    """The win rate of a policy's responses to one prompt.

    Attributes:
        opponent: the policy that the responses are compared with, `base` or `previous`.
        oracle: the oracle that compares, `oracle` or `held_out` (`evaluation.oracle`).
        win_rate: the mean of P(y > y' | x) over the policy's responses y and the opponent's y'.
        by_response: the mean over the opponent's responses alone, for each of the policy's; NaN where no pair was compared;
            None if an earlier version wrote the row.
    """

    opponent: Literal["base", "previous"]
    oracle: Literal["oracle", "held_out"]
    win_rate: float
    by_response: list[float] | None = None


@dataclass(frozen=True)
class EvaluationRow(Row):
    """The measures of a policy's responses to a held-out prompt.

    Attributes:
        prompt_id: the prompt's identifier.
        base_log_probs: log pi_1(y|x) of each response, in nats.
        win_rates: one win rate for each opponent and oracle.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("base_log_probs", pa.list_(pa.float64())),
            ("win_rates", pa.list_(_WIN_RATE)),
        ]
    )

    structs: ClassVar[Mapping[str, type[Row]]] = {"win_rates": WinRate}

    prompt_id: str
    base_log_probs: list[float]
    win_rates: list[WinRate]


@dataclass(frozen=True)
class ItemRow(Row):
    """An item of a watched task.

    Attributes:
        task: the name of the watched task.
        member: the name of lm-eval's task, which differs from `task` if that is a group.
        number: the item's position among the member's items.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [("task", pa.string()), ("member", pa.string()), ("number", pa.int32())]
    )

    task: str
    member: str
    number: int


@dataclass(frozen=True)
class ItemScoreRow(ItemRow):
    """An item with a policy's score.

    Attributes:
        score: the task's figure for this item, such as 1 for a right answer.
    """

    schema: ClassVar[pa.Schema] = pa.schema([*ItemRow.schema, ("score", pa.float64())])

    score: float


TableRow = TypeVar(
    "TableRow",
    PromptRow,
    ResponsesRow,
    PreferencesRow,
    TrainingRow,
    EvaluationRow,
    ItemRow,
    ItemScoreRow,
)


def to_table(rows: Sequence[TableRow], kind: type[TableRow]) -> pa.Table:
    """The rows as a table of their schema; an empty table for no rows."""
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
        TypeError: the file is a shard of another table.
    """
    return from_table(read_shard(path), kind)


# The schemas by name, for rows that are still mappings.
PROMPTS, RESPONSES = PromptRow.schema, ResponsesRow.schema
PREFERENCES, TRAINING = PreferencesRow.schema, TrainingRow.schema
