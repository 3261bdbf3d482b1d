"""Training examples: a prompt with its selected responses, and the prompts of each optimiser step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from sppo import randomness
from sppo.rundir.shards import read_shard
from sppo.rundir.tables import TrainingRow, from_table
from sppo.training.schedule import Steps


class TrainingError(ValueError):
    """Training cannot begin or go on; the message names the prompts."""


@dataclass(frozen=True)
class Example:
    """A prompt and the responses to it that are trained on.

    Attributes:
        prompt_id: the prompt's name in messages.
        prompt: token ids of the prompt.
        responses: token ids of each response.
        win_rates: P^(y > pi_t | x) of each response, over all K; NaN where the oracle was not asked.
        opponent_log_probs: log pi_t(y|x) of each response, in nats.
        log_partition: log Z of the prompt, in nats.
        demonstrations: whether each response came with the prompt instead of from pi_t; empty: none did.
        reference_log_probs: for each response, log pi(y|x) in nats under each of the algorithm's reference policies.
        rewards: what the algorithm made of each response's comparisons; NaN where it makes nothing of them.
    """

    prompt_id: str
    prompt: list[int]
    responses: list[list[int]]
    win_rates: list[float]
    opponent_log_probs: list[float]
    log_partition: float
    demonstrations: list[bool] = field(default_factory=list)
    reference_log_probs: list[list[float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: TrainingRow) -> "Example":
        """The example that a row of the training table holds."""
        responses = record.responses
        return cls(
            record.prompt_id,
            record.prompt_token_ids,
            [response.token_ids for response in responses],
            [math.nan if response.win_rate is None else response.win_rate for response in responses],
            [response.opponent_log_prob for response in responses],
            record.log_partition,
            [response.k is None for response in responses],
            [response.reference_log_probs or [] for response in responses],
            [math.nan if response.reward is None else response.reward for response in responses],
        )

    def best_and_worst(self) -> tuple[int, int]:
        """The numbers of the responses with the highest and the lowest win rate; a demonstration ranks above all."""
        demonstrations = self.demonstrations or [False] * len(self.responses)
        ranks = [
            (is_demonstration, 0.0 if math.isnan(rate) else rate)
            for is_demonstration, rate in zip(demonstrations, self.win_rates, strict=True)
        ]
        numbers = range(len(ranks))
        return max(numbers, key=ranks.__getitem__), min(numbers, key=ranks.__getitem__)


@dataclass(frozen=True)
class StepBatch:
    """One process's part of an optimiser step.

    Attributes:
        examples: the process's prompts; there can be none.
        step_prompts: the number of prompts of the whole step, over all processes.
    """

    examples: list[Example]
    step_prompts: int


class StepBatches(Dataset[StepBatch]):
    """Item s is this process's part of optimiser step s.

    A step's prompts depend on the seed and its number alone, never on the number of processes, which divide them: process
    r of n takes the prompts r, r + n, r + 2n, ... of the step. It gets none of a last, short step of r prompts or fewer.

    Args:
        table: all training examples, as :func:`read` returns them.
        batch_prompts: prompts per step.
        steps: the number of steps, and how many of them an epoch has.
        seed: decides the order of the prompts in each epoch.
        rank: the number of this process.
        processes: the number of all processes.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        batch_prompts: int,
        steps: Steps,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.table = table
        self.batch_prompts = batch_prompts
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.steps.kept

    def __getitem__(self, step: int) -> StepBatch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, within = divmod(step, self.steps.per_epoch)
        if epoch not in self._orders:
            order = randomness.generator("order", self.seed, epoch).permutation(self.table.num_rows)
            self._orders = {epoch: order.tolist()}
        rows = self._orders[epoch][within * self.batch_prompts : (within + 1) * self.batch_prompts]
        own = rows[self.rank :: self.processes]
        return StepBatch(_examples(self.table.take(own)) if own else [], len(rows))

    def any_example(self) -> Example:
        """An example, always the same."""
        return _examples(self.table.slice(0, 1))[0]


def read(shards: Sequence[Path]) -> pa.Table:
    """All training shards of an iteration as one table, without the prompts that have no responses."""
    table = pa.concat_tables([read_shard(shard).replace_schema_metadata(None) for shard in shards])
    counts = pa.compute.list_value_length(table["responses"])
    return table.filter(pa.compute.greater(counts, 0)).combine_chunks()


def check(table: pa.Table, *, opponent: str, context: int, reference_policies: Sequence[str] = ()) -> None:
    """Refuse examples that cannot be trained on, before anything is computed.

    Args:
        table: all training examples, as :func:`read` returns them.
        opponent: the fingerprint of the policy that training starts from.
        context: the most tokens that the policy takes.
        reference_policies: the fingerprints of the reference policies that the loss needs, in order.

    Raises:
        TrainingError: there are no examples; the opponent's log-probabilities are of another policy or are not finite; a
            prompt or response has no tokens, or together they exceed the context; a win rate is not in [0, 1].
    """
    if table.num_rows == 0:
        raise TrainingError("no prompt has a response to train on")
    others = {value for value in table["opponent"].unique().to_pylist() if value != opponent}
    if others:
        raise TrainingError(
            f"the opponent's log-probabilities are of the policy {sorted(map(str, others))[0][:12]}, but training starts"
            f" from {opponent[:12]}, so every log-ratio would be wrong; run the select stage again with this policy"
        )
    recorded = table["reference_policies"].to_pylist()
    unexpected = next((names or [] for names in recorded if list(reference_policies) != (names or [])), None)
    if unexpected is not None:
        raise TrainingError(
            f"the reference policies' log-probabilities are of {[name[:12] for name in unexpected]}, but the algorithm"
            f" needs those of {[name[:12] for name in reference_policies]}; run the select stage again"
        )
    # On columns, not row by row: a training table can hold hundreds of thousands of responses. `prompt` is, for each
    # response, the number of its prompt.
    rows = table["responses"].combine_chunks()
    responses = rows.flatten()
    prompt = pa.compute.list_parent_indices(rows).to_numpy()
    prompt_tokens = pa.compute.list_value_length(table["prompt_token_ids"]).to_numpy()[prompt]
    tokens = pa.compute.list_value_length(responses.field("token_ids")).to_numpy()
    rate = responses.field("win_rate").to_numpy(zero_copy_only=False).astype(float)
    unrated = responses.field("win_rate").is_null().to_numpy(zero_copy_only=False)
    log_prob = responses.field("opponent_log_prob").to_numpy(zero_copy_only=False)
    partition = table["log_partition"].to_numpy()[prompt]
    # A sum of rounded logarithms may be a little above 0.
    for wrong, what in (
        (tokens == 0, "has no tokens"),
        (prompt_tokens == 0, "belongs to a prompt without tokens"),
        (
            prompt_tokens + tokens > context,
            f"and its prompt have more tokens than the model's context of {context}; set training.max_tokens",
        ),
        (~(unrated | ((rate >= 0) & (rate <= 1))), "has a win rate outside [0, 1]"),
        (
            ~np.isfinite(log_prob) | (log_prob > 1e-3),
            "has an invalid opponent log-probability: it must be finite and at most 0",
        ),
        (
            _not_log_probs(responses.field("reference_log_probs"), len(reference_policies)),
            "has missing or invalid reference log-probabilities: each must be finite and at most 0",
        ),
        (~np.isfinite(partition), "has a log-partition that is not finite"),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            (row,) = from_table(table.slice(int(prompt[first]), 1), TrainingRow)
            response = row.responses[first - int((prompt < prompt[first]).sum())]
            raise TrainingError(
                f"prompt {row.prompt_id!r}: response {response.k} {what} (win rate {response.win_rate},"
                f" log-probability {response.opponent_log_prob}, log-partition {row.log_partition},"
                f" {len(row.prompt_token_ids)} prompt tokens and {len(response.token_ids)} response tokens);"
                f" {int(wrong.sum())} of {len(wrong)} responses have this fault"
            )


def _not_log_probs(values: pa.Array, count: int) -> np.ndarray:
    """Which responses do not have exactly `count` valid log-probabilities; none where `count` is 0."""
    return np.array(
        [
            count > 0
            and not (
                log_probs is not None
                and len(log_probs) == count
                and all(math.isfinite(value) and value <= 1e-3 for value in log_probs)
            )
            for log_probs in values.to_pylist()
        ],
        dtype=bool,
    )


def _examples(table: pa.Table) -> list[Example]:
    return [Example.from_record(record) for record in from_table(table, TrainingRow)]
