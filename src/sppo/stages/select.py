"""The select stage: P^(y > pi_t | x), the responses that are trained on, and log pi_t(y|x) of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sppo import randomness, winrates
from sppo.recipe import Algorithm
from sppo.rundir.folder import RunError
from sppo.rundir.tables import (
    PreferencesRow,
    PromptRow,
    ResponseRecord,
    ResponsesRow,
    SelectedResponse,
    TrainingRow,
    read_rows,
    to_table,
)
from sppo.selection import select
from sppo.stages.annotate import Annotate
from sppo.stages.jobs import Advance
from sppo.stages.models import Models, Scorer
from sppo.stages.prompts import Prompts
from sppo.stages.run import PolicyState, Run
from sppo.stages.sample import Sample
from sppo.stages.stage import ShardedStage, Stage
from sppo.training import opponent
from sppo.winrates import Array


@dataclass(frozen=True)
class Candidate:
    """A response that is trained on, before its log-probabilities are known.

    Attributes:
        k: its number among the K; None for a demonstration.
        token_ids: what of it is trained on.
        win_rate: P^(y > pi_t | x); None where the oracle was not asked about it.
        sampler_log_prob: log pi_t(y|x) as the sampler computed it; None where it does not hold for `token_ids`.
    """

    k: int | None
    token_ids: list[int]
    win_rate: float | None
    sampler_log_prob: float | None


@dataclass(frozen=True)
class Selection:
    """What is trained on of one prompt.

    Attributes:
        prompt: the prompt.
        candidates: the responses, in the order of their numbers, and the demonstration behind them.
        matrix: P(y_i > y_j | x) between those of the K that were selected; None where the oracle was not asked.
        log_partition: log Z in nats.
    """

    prompt: PromptRow
    candidates: list[Candidate]
    matrix: Array | None
    log_partition: float


@dataclass(frozen=True)
class SelectResponses:
    """Selects what is trained on of a shard, and computes log-probabilities under pi_t and the reference policies.

    Attributes:
        policy: the folder of pi_t; None: the base.
        fingerprint: the fingerprint of pi_t.
        reference_policies: folder and fingerprint of each further policy that stands in the algorithm's loss.
    """

    policy: Path | None
    fingerprint: str
    reference_policies: tuple[tuple[Path | None, str], ...] = ()

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """The training rows of the shard; sources as :func:`selections` takes them."""

        algorithm = models.recipe.algorithm
        selected = selections(models, algorithm, *sources)
        opponents, references = self._log_probs(models, selected)
        rows = [
            self._row(algorithm, selection, of_opponent, of_references)
            for selection, of_opponent, of_references in zip(selected, opponents, references, strict=True)
        ]
        advance(len(rows))
        return to_table(rows, TrainingRow)

    def _log_probs(
        self, models: Models, selected: Sequence[Selection]
    ) -> tuple[list[list[opponent.OpponentLogProb]], list[Array]]:
        """log pi(y|x) of each prompt's responses under pi_t, and under each reference policy: [policies, responses]."""

        def score(scorer: Scorer, numbers: Sequence[int]) -> list[list[float]]:
            prompts = [selected[number].prompt.prompt_token_ids for number in numbers]
            tokens = [[one.token_ids for one in selected[number].candidates] for number in numbers]
            return scorer(prompts, tokens)

        everything = range(len(selected))
        by_policy: dict[Path | None, list[list[float]]] = {}
        # One policy is in memory at a time, and the one that is loaded already comes first.
        folders = [self.policy, *(folder for folder, _ in self.reference_policies)]
        for folder in models.in_loading_order(folders):
            scorer = models.scorer(folder)
            if folder == self.policy:
                opponents = opponent.log_probs(
                    [[one.sampler_log_prob for one in selection.candidates] for selection in selected],
                    lambda numbers, scorer=scorer: score(scorer, numbers),  # type: ignore[misc]
                    models.recipe.training.opponent_log_probs,
                )
                by_policy[folder] = [[one.value for one in of_prompt] for of_prompt in opponents]
            else:
                by_policy[folder] = score(scorer, everything)
        references = [
            np.array(
                [by_policy[folder][number] for folder, _ in self.reference_policies], dtype=np.float64
            ).reshape(len(self.reference_policies), len(selected[number].candidates))
            for number in everything
        ]
        return opponents, references

    def _row(
        self,
        algorithm: Algorithm,
        selection: Selection,
        opponents: Sequence[opponent.OpponentLogProb],
        references: Array,
    ) -> TrainingRow:
        rewards = None
        if selection.matrix is not None and selection.candidates:
            rewards = algorithm.rewards(
                selection.matrix, references - np.array([one.value for one in opponents])
            )
        responses = [
            SelectedResponse(
                candidate.k,
                candidate.token_ids,
                candidate.win_rate,
                log_prob.value,
                references[:, number].tolist(),
                None if rewards is None else float(rewards[number]),
                log_prob.deviation,
            )
            for number, (candidate, log_prob) in enumerate(zip(selection.candidates, opponents, strict=True))
        ]
        return TrainingRow(
            selection.prompt.prompt_id,
            selection.prompt.prompt_token_ids,
            self.fingerprint,
            [fingerprint for _, fingerprint in self.reference_policies],
            selection.log_partition,
            responses,
        )


def selections(
    models: Models, algorithm: Algorithm, prompts: Path, preferences: Path | None = None
) -> list[Selection]:
    """What is trained on of each prompt of a shard.

    Args:
        models: the models of the process.
        algorithm: the update.
        prompts: a shard of responses; or of prompts, where the algorithm learns from demonstrations alone.
        preferences: the preferences between the responses; None: the oracle was not asked, and all are taken.
    """
    recipe = models.recipe
    rows: Sequence[PromptRow] = read_rows(prompts, ResponsesRow if recipe.algorithm.samples else PromptRow)
    matrices = (
        {}
        if preferences is None
        else {row.prompt_id: row.matrix for row in read_rows(preferences, PreferencesRow)}
    )
    return [_selection(models, algorithm, row, matrices.get(row.prompt_id)) for row in rows]


def _selection(models: Models, algorithm: Algorithm, row: PromptRow, matrix: Array | None) -> Selection:
    recipe = models.recipe
    drawn = row.responses if isinstance(row, ResponsesRow) else []
    usable = _usable(models, row, drawn)
    rates: Sequence[float | None] = [None] * len(drawn)
    log_partition = 0.0
    if matrix is not None:
        win_rates = winrates.win_rates(matrix)
        rates, log_partition = win_rates.tolist(), algorithm.compute_log_partition(win_rates)
        generator = randomness.generator("select", recipe.seed, row.prompt_id)
        chosen = select(recipe.selection, [float(win_rates[k]) for k in usable], generator)
        usable = {k: usable[k] for k in sorted(list(usable)[index] for index in chosen)}
        matrix = matrix[np.ix_(list(usable), list(usable))]
    candidates = [
        Candidate(k, token_ids, rates[k], _sampler_log_prob(drawn[k], token_ids))
        for k, token_ids in usable.items()
    ]
    if recipe.algorithm.demonstrations:
        demonstrated = _demonstrated(models, row)
        whole = demonstrated and (candidates or not recipe.algorithm.samples)
        candidates = [*candidates, *demonstrated] if whole else []
    return Selection(row, candidates, matrix, log_partition)


def _usable(models: Models, row: PromptRow, drawn: Sequence[ResponseRecord]) -> dict[int, list[int]]:
    """The token ids of the responses that may be trained on, by the number of the response among the K."""
    usable = {}
    for k, response in enumerate(drawn):
        truncated = response.finish_reason == "length"
        token_ids = _fitting(models, row, response.token_ids, truncated=truncated)
        if token_ids:
            usable[k] = token_ids
    return usable


def _demonstrated(models: Models, row: PromptRow) -> list[Candidate]:
    """The prompt's demonstration, unless it is too long to be trained on."""
    assert row.demonstration is not None, "the recipe names a column of demonstrations"
    token_ids = _fitting(models, row, row.demonstration.token_ids, truncated=False)
    return [Candidate(None, token_ids, None, None)] if token_ids else []


def _fitting(models: Models, row: PromptRow, token_ids: list[int], *, truncated: bool) -> list[int]:
    """What of a response is trained on: what fits the limit of tokens, or nothing where it would be truncated."""
    room = max(0, models.training_limit - len(row.prompt_token_ids))
    score_only = models.recipe.training.truncated_responses == "score_only"
    if (truncated or len(token_ids) > room) and score_only:
        return []
    return token_ids[:room]


def _sampler_log_prob(response: ResponseRecord, token_ids: Sequence[int]) -> float | None:
    """log pi_t(y|x) as the sampler computed it; None where less of the response is used than was drawn."""
    return response.log_prob if len(token_ids) == len(response.token_ids) else None


class Select(ShardedStage):
    """What pi_{t+1} is trained on.

    Args:
        run: the run.
        iteration: t.
        prompts: the iteration's prompts.
        policy: pi_t.
        sample: the responses; None where the algorithm needs none.
        annotate: the preferences; None where the algorithm needs none.
        reference_policies: the further policies that stand in the algorithm's loss.
    """

    name = "select"
    folder_name = "training"
    kind = "select"
    unit = "prompts"

    def __init__(
        self,
        run: Run,
        iteration: int,
        prompts: Prompts,
        policy: PolicyState,
        sample: Sample | None,
        annotate: Annotate | None,
        reference_policies: Sequence[PolicyState] = (),
    ) -> None:
        super().__init__(run, iteration)
        self.prompts = prompts
        self.policy = policy
        self.reads_from: list[Stage] = [stage for stage in (sample, annotate) if stage is not None] or [
            prompts
        ]
        self.reference_policies = reference_policies

    def settings(self) -> Mapping[str, Any]:
        """The selection, the algorithm, and how log-probabilities are computed."""
        recipe, training = self.run.recipe, self.run.recipe.training
        return {
            "selection": recipe.selection,
            "algorithm": recipe.algorithm.model_dump(exclude={"reduction"}),
            "truncated_responses": training.truncated_responses,
            "limits": self.run.length_limits,
            "max_tokens": training.max_tokens,
            "opponent_log_probs": training.opponent_log_probs,
            "mixed_precision": training.mixed_precision,
            "pack_tokens": training.pack_tokens,
            "policy": recipe.policy.model_dump(include={"dtype", "attn_implementation", "quantization"}),
            "seed": recipe.seed,
        }

    def reads(self) -> Sequence[str]:
        """The stages that responses are selected from, and every policy whose log-probabilities are computed."""
        policies = (self.policy, *self.reference_policies)
        return [stage.fingerprint for stage in self.reads_from] + [policy.fingerprint for policy in policies]

    def sources(self) -> list[list[Path]]:
        """A shard of responses and one of preferences for each shard; or one of prompts."""
        return [
            [stage.files.shard(number) for stage in self.reads_from] for number in range(len(self.units()))
        ]

    def units(self) -> list[int]:
        """Prompts of each shard."""
        return self.prompts.counts()

    def work(self) -> SelectResponses:
        """Select from one shard."""
        further = tuple((self.run.weights(policy), policy.fingerprint) for policy in self.reference_policies)
        return SelectResponses(self.run.weights(self.policy), self.policy.fingerprint, further)

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """How many prompts and responses are trained on, and how far sampler and trainer lie apart.

        Raises:
            RunError: there are none.
        """
        counts = [len(row.responses) for row in _rows(shards)]
        prompts = sum(count > 0 for count in counts)
        if prompts == 0:
            limit = self.run.recipe.sampling.max_new_tokens
            raise RunError(
                f"{self.files.title}: no prompt has a response to train on: all responses were truncated at"
                f" sampling.max_new_tokens = {limit} or at the {self.run.models.training_limit} tokens of prompt and"
                " response that are trained on; raise sampling.max_new_tokens or training.max_tokens, or set"
                " training.truncated_responses: train"
            )
        return {
            "trained_prompts": prompts,
            "trained_responses": sum(counts),
            "sampler_deviation": opponent.deviation(_rows(shards)),
        }


def _rows(shards: Sequence[Path]) -> Iterator[TrainingRow]:
    for path in shards:
        yield from read_rows(path, TrainingRow)
