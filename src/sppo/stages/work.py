"""How a shard of each stage is computed from the shards that it reads.

The work is plain values and can be handed to another process, which brings models of its own. Where it is
computed, and in which order, is the executor's affair (:mod:`sppo.executors.local`); the rows do not depend on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from sppo import randomness, winrates
from sppo.oracle import Comparison
from sppo.rundir.folder import Shard
from sppo.rundir.shards import append_line, read_shard, table
from sppo.rundir.tables import PREFERENCES, RESPONSES, TRAINING
from sppo.sampling.stop_strings import StopStrings
from sppo.selection import select
from sppo.stages.models import Models
from sppo.training import opponent

ORACLE_PROMPTS = 64
"""Prompts that the oracle is handed at once: what a progress bar moves by and a time limit covers."""
Advance = Callable[[int], None]
Kind = Literal["sample", "annotate", "select"]


class Work(Protocol):
    """Makes the rows of one shard of a stage."""

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """The rows.

        Args:
            models: of the process that does it.
            sources: the shards that it reads.
            advance: told how many units have just been finished.
        """
        ...


@dataclass(frozen=True)
class ShardJob:
    """The shards of one stage, to be made; plain values.

    Attributes:
        title: for messages.
        unit: what its progress counts.
        kind: which of the recipe's `workers` do it.
        work: makes the rows of one.
        shards: all that the stage is to have.
        units: how many units each shard is.
    """

    title: str
    unit: str
    kind: Kind
    work: Work
    shards: Sequence[Shard]
    units: Sequence[int]

    def make(self, number: int, models: Models, advance: Advance = lambda count: None) -> None:
        """Compute a shard and publish it."""
        shard = self.shards[number]
        shard.write(self.work(models, shard.sources, advance))


@dataclass(frozen=True)
class Draw:
    """K responses to every prompt of a shard.

    Attributes:
        policy: the folder of its weights; None: the base.
        k: responses per prompt.
        purpose: the stage and iteration that the random numbers are keyed by.
    """

    policy: Path | None
    k: int
    purpose: tuple[str, int]

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """As :class:`Work`."""
        rows = read_rows(sources[0])
        drawn = models.sampler(self.policy).sample(
            [row["prompt_token_ids"] for row in rows],
            [(*self.purpose, models.recipe.seed, row["prompt_id"]) for row in rows],
            self.k,
            advance,
        )
        stop_strings = StopStrings(tuple(models.recipe.sampling.stop), models.chat.decode)
        for row, responses in zip(rows, drawn, strict=True):
            row["responses"] = [
                {
                    "token_ids": response.token_ids,
                    "text": stop_strings.trim(models.chat.decode(response.token_ids)),
                    "finish_reason": response.finish_reason,
                    "log_prob": response.log_prob,
                    "token_log_probs": response.token_log_probs,
                }
                for response in responses
            ]
        return table(rows, RESPONSES)


@dataclass(frozen=True)
class Annotate:
    """P(y_i > y_j | x) for every pair of the responses of a shard.

    Attributes:
        metrics: a file that gets a line of what the oracle counted: texts cut, requests, tokens.
    """

    metrics: Path

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """As :class:`Work`."""
        rows = read_shard(sources[0], columns=["prompt_id", "messages", "responses"]).to_pylist()
        before, found = models.oracle.counts, []
        for start in range(0, len(rows), ORACLE_PROMPTS):
            part = rows[start : start + ORACLE_PROMPTS]
            found += preference_rows(part, models.explain(part, response_texts(part), models.opponents(part)))
            advance(len(part))
        counted = {name: count - before.get(name, 0) for name, count in models.oracle.counts.items()}
        if counted:
            append_line(self.metrics, {"stage": "annotate", "shard": sources[0].name, "oracle": counted})
        return table(found, PREFERENCES)


@dataclass(frozen=True)
class Select:
    """What is trained on of a shard, and its log-probabilities under pi_t and the reference_policies policies.

    Attributes:
        policy: the folder of pi_t; None: the base.
        fingerprint: of pi_t.
        reference_policies: folder and fingerprint of each further policy that the algorithm asks for.
    """

    policy: Path | None
    fingerprint: str
    reference_policies: tuple[tuple[Path | None, str], ...] = ()

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """As :class:`Work`."""
        from sppo import algorithms

        rows = selected(models, *sources)
        # one policy in memory at a time, and the one that is there already first
        found: dict[Path | None, list[list[float]]] = {}
        for policy in models.scorers_at_hand(
            [self.policy, *(folder for folder, _ in self.reference_policies)]
        ):
            if policy == self.policy:
                source = models.recipe.training.opponent_log_probs
                opponent.fill(rows, models.scorer(policy), source)
            else:
                found[policy] = models.scorer(policy)(rows)
        found[self.policy] = [
            [response["opponent_log_prob"] for response in row["responses"]] for row in rows
        ]
        algorithm = algorithms.load(models.recipe.algorithm)
        for number, row in enumerate(rows):
            row["opponent"], row["reference_policies"] = (
                self.fingerprint,
                [fingerprint for _, fingerprint in self.reference_policies],
            )
            values = [found[folder][number] for folder, _ in self.reference_policies]
            reference_policies = np.array(values, dtype=np.float64).reshape(
                len(self.reference_policies), len(row["responses"])
            )
            rewards = None
            if "matrix" in row and row["responses"]:
                rewards = algorithm.rewards(
                    row["matrix"], reference_policies - np.array(found[self.policy][number])
                )
            for k, response in enumerate(row["responses"]):
                response["reference_log_probs"] = reference_policies[:, k].tolist()
                response["reward"] = None if rewards is None else float(rewards[k])
        advance(len(rows))
        return table(rows, TRAINING)


def preference_rows(rows: Sequence[dict[str, Any]], answer: Comparison) -> list[dict[str, Any]]:
    """Rows of the preferences' table."""
    return [
        {
            "prompt_id": row["prompt_id"],
            "matrix": matrix.tolist(),
            "components": [
                {"oracle": name, "matrix": matrices[number].tolist()}
                for name, matrices in answer.parts.items()
            ],
        }
        for number, (row, matrix) in enumerate(zip(rows, answer.matrix, strict=True))
    ]


def selected(models: Models, prompts: Path, matrices: Path | None = None) -> list[dict[str, Any]]:
    """Training rows of a shard, without log-probabilities; `matrix` is that of the responses taken.

    Args:
        models: of the process.
        prompts: a shard of responses, or of prompts where the algorithm learns from demonstrations alone.
        matrices: what the oracle said of the responses; None: it was not asked, and all of them are taken.
    """
    from sppo import algorithms

    recipe = models.recipe
    algorithm = algorithms.load(recipe.algorithm)
    found = []
    preferences = {} if matrices is None else {row["prompt_id"]: row["matrix"] for row in read_rows(matrices)}
    for row in read_rows(prompts):
        usable, log_partition = _usable(models, row), 0.0
        rates: Sequence[float | None] = [None] * len(row.get("responses", []))
        if matrices is not None:
            against_all = winrates.win_rates(np.array(preferences[row["prompt_id"]]))
            rates, log_partition = against_all.tolist(), algorithm.log_partition(against_all)
            generator = randomness.generator("select", recipe.seed, row["prompt_id"])
            chosen = select(recipe.selection, [float(against_all[k]) for k in usable], generator)
            usable = {k: usable[k] for k in sorted(list(usable)[index] for index in chosen)}
        responses = [
            {
                "k": k,
                "token_ids": ids,
                "win_rate": rates[k],
                "sampler_log_prob": _sampler_log_prob(row["responses"][k], ids),
            }
            for k, ids in usable.items()
        ]
        if recipe.algorithm.demonstrations:
            demonstrated = _demonstrated(models, row)
            whole = demonstrated and (responses or not recipe.algorithm.samples)
            responses = [*responses, *demonstrated] if whole else []
        found.append(
            {
                "prompt_id": row["prompt_id"],
                "prompt_token_ids": row["prompt_token_ids"],
                "log_partition": log_partition,
                "responses": responses,
            }
        )
        if matrices is not None:
            taken = list(usable)
            found[-1]["matrix"] = np.array(preferences[row["prompt_id"]])[np.ix_(taken, taken)]
    return found


def _usable(models: Models, row: dict[str, Any]) -> dict[int, list[int]]:
    """The token ids of the responses that may be trained on, by their number among the K."""
    usable = {}
    for number, response in enumerate(row.get("responses", [])):
        ids = _fitting(models, row, response["token_ids"], cut=response["finish_reason"] == "length")
        if ids:
            usable[number] = ids
    return usable


def _demonstrated(models: Models, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompt's demonstration as a training row's response; none where it is too long to be trained on."""
    ids = _fitting(models, row, row["demonstration"]["token_ids"], cut=False)
    return [{"k": None, "token_ids": ids, "win_rate": None, "sampler_log_prob": None}] if ids else []


def _fitting(models: Models, row: dict[str, Any], token_ids: list[int], *, cut: bool) -> list[int]:
    """What of a response is trained on: it ends at the limit of tokens, or is left out where it is cut."""
    room = max(0, models.training_limit - len(row["prompt_token_ids"]))
    if (cut or len(token_ids) > room) and models.recipe.training.truncated_responses == "score_only":
        return []
    return token_ids[:room]


def _sampler_log_prob(response: Mapping[str, Any], token_ids: Sequence[int]) -> float | None:
    """log pi_t(y|x) as the sampler counted it; None if less of the response is used than was drawn."""
    return response["log_prob"] if len(token_ids) == len(response["token_ids"]) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a shard."""
    rows: list[dict[str, Any]] = read_shard(path).to_pylist()
    return rows


def response_texts(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The texts of the responses of each row."""
    return [[response["text"] for response in row["responses"]] for row in rows]
