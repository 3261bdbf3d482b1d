"""What is trained on: a prompt with its selected responses, and the optimiser step's share of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from sppo import randomness
from sppo.rundir.shards import read_shard
from sppo.training.schedule import Steps


class TrainingError(ValueError):
    """Training that cannot begin or go on; the message names the prompts."""


@dataclass(frozen=True)
class Example:
    """A prompt and the responses to it that are trained on.

    Attributes:
        prompt_id: for messages about it.
        prompt: token ids.
        responses: token ids of each.
        win_rates: P^(y > pi_t | x) of each, over all K; NaN where the oracle was not asked.
        opponent_log_probs: log pi_t(y|x) of each, nats.
        log_partition: log Z of the prompt, nats.
        demonstrations: whether each came with the prompt, instead of from pi_t; empty: none did.
        reference_log_probs: log pi(y|x) of each under each of the reference policies that the algorithm asks for, nats.
        rewards: what the algorithm made of the comparisons of each; NaN where it makes nothing of them.
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

    def best_and_worst(self) -> tuple[int, int]:
        """The responses of the highest and the lowest win rate; a demonstration stands above all."""
        given = self.demonstrations or [False] * len(self.responses)
        ranks = [
            (of_prompt, 0.0 if math.isnan(rate) else rate)
            for of_prompt, rate in zip(given, self.win_rates, strict=True)
        ]
        numbers = range(len(ranks))
        return max(numbers, key=ranks.__getitem__), min(numbers, key=ranks.__getitem__)


@dataclass(frozen=True)
class StepShare:
    """One process's prompts of one optimiser step, and how many prompts the whole step has."""

    examples: list[Example]
    step_prompts: int


class StepShares(Dataset[StepShare]):
    """Item s is this process's share of optimiser step s; the order of an epoch depends on the seed alone.

    The share is every so-many-th prompt of the step, so that the step holds the same prompts whatever
    the number of processes. A process can have none of a last, short step.
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

    def __getitem__(self, step: int) -> StepShare:
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, within = divmod(step, self.steps.per_epoch)
        if epoch not in self._orders:
            order = randomness.generator("order", self.seed, epoch).permutation(self.table.num_rows)
            self._orders = {epoch: order.tolist()}
        rows = self._orders[epoch][within * self.batch_prompts : (within + 1) * self.batch_prompts]
        share = rows[self.rank :: self.processes]
        return StepShare(_examples(self.table.take(share)) if share else [], len(rows))

    def any_example(self) -> Example:
        """One of the examples."""
        return _examples(self.table.slice(0, 1))[0]


def read(shards: Sequence[Path]) -> pa.Table:
    """All training shards of an iteration as one table, prompts without responses left out."""
    table = pa.concat_tables([read_shard(shard).replace_schema_metadata(None) for shard in shards])
    counts = pa.compute.list_value_length(table["responses"])
    return table.filter(pa.compute.greater(counts, 0)).combine_chunks()


def check(table: pa.Table, *, opponent: str, context: int, reference_policies: Sequence[str] = ()) -> None:
    """Refuse examples that cannot be trained on, before anything is computed.

    Args:
        table: as :func:`read` gives it.
        opponent: the fingerprint of the policy that training starts from.
        context: the most tokens that it takes.
        reference_policies: the fingerprints of the reference policies that the loss needs, in order.

    Raises:
        TrainingError: there are none; the opponent's log-probabilities are of another policy or not finite; a prompt
            or response has no tokens, or they are more than the context; a win rate is no probability.
    """
    if table.num_rows == 0:
        raise TrainingError("no prompt has a response to train on")
    others = {value for value in table["opponent"].unique().to_pylist() if value != opponent}
    if others:
        raise TrainingError(
            f"the opponent's log-probabilities are of the policy {sorted(map(str, others))[0][:12]}, but training starts"
            f" from {opponent[:12]}: every log-ratio would be wrong; run the select stage again with this policy"
        )
    recorded = table["reference_policies"].to_pylist()
    unexpected = next((given or [] for given in recorded if list(reference_policies) != (given or [])), None)
    if unexpected is not None:
        raise TrainingError(
            f"the log-probabilities of reference policies are those of {[one[:12] for one in unexpected]}, but the"
            f" algorithm needs those of {[one[:12] for one in reference_policies]}; run the select stage again"
        )
    rows = table["responses"].combine_chunks()
    each = rows.flatten()
    prompt = pa.compute.list_parent_indices(rows).to_numpy()
    prompt_tokens = pa.compute.list_value_length(table["prompt_token_ids"]).to_numpy()[prompt]
    tokens = pa.compute.list_value_length(each.field("token_ids")).to_numpy()
    rate = each.field("win_rate").to_numpy(zero_copy_only=False).astype(float)
    unrated = each.field("win_rate").is_null().to_numpy(zero_copy_only=False)
    log_prob = each.field("opponent_log_prob").to_numpy(zero_copy_only=False)
    partition = table["log_partition"].to_numpy()[prompt]
    for wrong, what in (
        (tokens == 0, "has no tokens"),
        (prompt_tokens == 0, "answers a prompt of no tokens"),
        (
            prompt_tokens + tokens > context,
            f"and its prompt have more tokens than the model's context of {context}; set training.max_tokens",
        ),
        (~(unrated | ((rate >= 0) & (rate <= 1))), "has a win rate outside [0, 1]"),
        (~np.isfinite(log_prob) | (log_prob > 1e-3), "has an opponent's log-probability that is none"),
        (
            _not_log_probs(each.field("reference_log_probs"), len(reference_policies)),
            "has a reference policy's log-probability that is none",
        ),
        (~np.isfinite(partition), "has a log-partition that is not finite"),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            row = table.slice(int(prompt[first]), 1).to_pylist()[0]
            response = row["responses"][first - int((prompt < prompt[first]).sum())]
            raise TrainingError(
                f"prompt {row['prompt_id']!r}: response {response['k']} {what} (win rate {response['win_rate']},"
                f" log-probability {response['opponent_log_prob']}, log-partition {row['log_partition']},"
                f" {len(row['prompt_token_ids'])} and {len(response['token_ids'])} tokens);"
                f" {int(wrong.sum())} of {len(wrong)} responses are like that"
            )


def _not_log_probs(values: pa.Array, count: int) -> np.ndarray:
    """Which responses lack a log-probability of one of so many policies."""
    return np.array(
        [
            count > 0
            and not (of is not None and len(of) == count and all(math.isfinite(v) and v <= 1e-3 for v in of))
            for of in values.to_pylist()
        ],
        dtype=bool,
    )


def _examples(table: pa.Table) -> list[Example]:
    return [
        Example(
            row["prompt_id"],
            row["prompt_token_ids"],
            [response["token_ids"] for response in row["responses"]],
            [
                math.nan if response["win_rate"] is None else response["win_rate"]
                for response in row["responses"]
            ],
            [response["opponent_log_prob"] for response in row["responses"]],
            row["log_partition"],
            [response["k"] is None for response in row["responses"]],
            [response["reference_log_probs"] or [] for response in row["responses"]],
            [math.nan if response["reward"] is None else response["reward"] for response in row["responses"]],
        )
        for row in table.to_pylist()
    ]
