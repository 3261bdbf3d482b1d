"""Training examples (a prompt with its selected responses), and the assignment of prompts to optimiser steps."""

import math
from collections.abc import Iterator, Sequence
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
    """Training cannot start or continue; the message names the prompts."""


@dataclass(frozen=True)
class Example:
    """A prompt and the responses to it that are trained on.

    Attributes:
        prompt_id: the name by which error messages refer to the prompt.
        prompt: the prompt's token ids.
        responses: the token ids of each response.
        win_rates: P^(y > pi_t | x) of each response, over all K responses; NaN if the oracle was not asked.
        opponent_log_probs: log pi_t(y|x) of each response, in nats.
        log_partition: log Z of the prompt, in nats.
        demonstrations: whether each response is a demonstration that came with the prompt; empty: none is.
        reference_log_probs: for each response, log pi(y|x) in nats under each of the algorithm's reference policies.
        rewards: the value that the algorithm's `rewards` computed for each response; NaN if it computes none.
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
        """Make an example from a row of the training table."""
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
        """The indices of the responses with the highest and the lowest win rate; demonstrations rank highest."""
        demonstrations = self.demonstrations or [False] * len(self.responses)
        ranks = [
            (is_demonstration, 0.0 if math.isnan(rate) else rate)
            for is_demonstration, rate in zip(demonstrations, self.win_rates, strict=True)
        ]
        indices = range(len(ranks))
        return max(indices, key=ranks.__getitem__), min(indices, key=ranks.__getitem__)


@dataclass(frozen=True)
class StepBatch:
    """The share of an optimiser step that one process computes.

    Attributes:
        examples: the process's prompts; possibly none.
        step_prompts: the number of prompts in the step, over all processes.
    """

    examples: list[Example]
    step_prompts: int


class StepBatches(Dataset[StepBatch]):
    """The data set of one training process; item s is the process's share of optimiser step s.

    The prompts of a step depend only on the seed and the step's number, never on the number of processes. Process r of n
    takes the prompts r, r + n, r + 2n, ... of the step; in a short last step of r prompts or fewer it gets none.

    Args:
        table: all training examples, as :func:`read` returns them.
        batch_prompts: the number of prompts in a step.
        steps: the number of steps, in all and in an epoch.
        seed: decides the order of the prompts in each epoch.
        rank: the number of this process, from 0.
        processes: the number of processes.
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
        """The first example, for passes whose result does not count."""
        return _examples(self.table.slice(0, 1))[0]


def read(shards: Sequence[Path]) -> pa.Table:
    """Read all training shards of an iteration into one table, leaving out prompts without responses."""
    table = pa.concat_tables([read_shard(shard).replace_schema_metadata(None) for shard in shards])
    counts = pa.compute.list_value_length(table["responses"])
    return table.filter(pa.compute.greater(counts, 0)).combine_chunks()


def check(table: pa.Table, *, opponent: str, context: int, reference_policies: Sequence[str] = ()) -> None:
    """Refuse examples that cannot be trained on, before anything is computed.

    Args:
        table: all training examples, as :func:`read` returns them.
        opponent: the fingerprint of the policy that training starts from.
        context: the largest number of tokens that the policy can process.
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
    # A response is counted over all prompts; `prompt` is the number of the prompt that each belongs to.
    prompt = pa.compute.list_parent_indices(table["responses"].combine_chunks()).to_numpy()
    for invalid, description in _invalid_responses(table, prompt, context, len(reference_policies)):
        if invalid.any():
            first = int(invalid.argmax())
            (row,) = from_table(table.slice(int(prompt[first]), 1), TrainingRow)
            response = row.responses[first - int((prompt < prompt[first]).sum())]
            raise TrainingError(
                f"prompt {row.prompt_id!r}: response {response.k} {description} (win rate {response.win_rate},"
                f" log-probability {response.opponent_log_prob}, log-partition {row.log_partition},"
                f" {len(row.prompt_token_ids)} prompt tokens and {len(response.token_ids)} response tokens);"
                f" {int(invalid.sum())} of {len(invalid)} responses have this fault"
            )


def _invalid_responses(
    table: pa.Table, prompt: np.ndarray, context: int, reference_policies: int
) -> Iterator[tuple[np.ndarray, str]]:
    """For each kind of fault, which responses have it, and its description."""
    # The checks work on columns, because a training table can hold hundreds of thousands of responses.
    responses = table["responses"].combine_chunks().flatten()
    prompt_tokens = pa.compute.list_value_length(table["prompt_token_ids"]).to_numpy()[prompt]
    tokens = pa.compute.list_value_length(responses.field("token_ids")).to_numpy()
    rate = responses.field("win_rate").to_numpy(zero_copy_only=False).astype(float)
    unrated = responses.field("win_rate").is_null().to_numpy(zero_copy_only=False)
    yield tokens == 0, "has no tokens"
    yield prompt_tokens == 0, "belongs to a prompt without tokens"
    yield (
        prompt_tokens + tokens > context,
        f"and its prompt have more tokens than the model's context of {context}; set training.max_tokens",
    )
    yield ~(unrated | ((rate >= 0) & (rate <= 1))), "has a win rate outside [0, 1]"
    yield (
        ~_are_log_probs(responses.field("opponent_log_prob").to_numpy(zero_copy_only=False)),
        "has an invalid opponent log-probability: it must be finite and at most 0",
    )
    if reference_policies:
        yield (
            np.array(
                [
                    len(values or []) != reference_policies
                    or not _are_log_probs(np.array(values, float)).all()
                    for values in responses.field("reference_log_probs").to_pylist()
                ]
            ),
            "has missing or invalid reference log-probabilities: each must be finite and at most 0",
        )
    yield ~np.isfinite(table["log_partition"].to_numpy()[prompt]), "has a log-partition that is not finite"


def _are_log_probs(values: np.ndarray) -> np.ndarray:
    # Each is a sum of rounded logarithms over a response's tokens, which can come out slightly above 0 for a response of
    # probability 1.
    valid: np.ndarray = np.isfinite(values) & (values <= 1e-3)
    return valid


def _examples(table: pa.Table) -> list[Example]:
    return [Example.from_record(record) for record in from_table(table, TrainingRow)]
