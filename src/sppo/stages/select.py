"""The select stage: P^(y > pi_t | x), the responses that are trained on, and their log pi_t(y|x)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from sppo import randomness
from sppo.progress import Advance
from sppo.recipe import Algorithm
from sppo.rundir.folder import RunError
from sppo.rundir.guard import LOUD_SHARE, untrained, why_untrained
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
from sppo.stages.jobs import Work
from sppo.stages.models import Models, Scorer
from sppo.stages.prompts import Prompts
from sppo.stages.run import PolicyState, Run
from sppo.stages.sample import Sample
from sppo.stages.stage import ShardedStage, Stage
from sppo.stages.usable import fitting, usable_responses
from sppo.training import opponent
from sppo.winrates import Array


@dataclass(frozen=True)
class Candidate:
    """A response that is trained on, before its log-probabilities are known.

    Attributes:
        k: the response's number among the K; None for a demonstration.
        token_ids: the tokens of the response that are trained on.
        win_rate: P^(y > pi_t | x); None if the oracle was not asked about the response.
        sampler_log_prob: log pi_t(y|x) as the sampler computed it; None if `token_ids` are not all that it drew.
    """

    k: int | None
    token_ids: list[int]
    win_rate: float | None
    sampler_log_prob: float | None


@dataclass(frozen=True)
class Selection:
    """The responses to one prompt that are trained on.

    Attributes:
        prompt: the prompt.
        candidates: the responses in the order of their numbers, followed by the demonstration.
        matrix: P(y_i > y_j | x) between the selected ones of the K responses, [m, m], or [annotators, m, m] if the algorithm
            needs several annotators; None if the oracle was not asked.
        log_partition: log Z in nats.
    """

    prompt: PromptRow
    candidates: list[Candidate]
    matrix: Array | None
    log_partition: float


@dataclass(frozen=True)
class SelectResponses(Work):
    """Selects the responses of a shard to train on, and computes their log-probabilities.

    The log-probabilities are those under pi_t and under the reference policies.

    Attributes:
        policy: the folder of pi_t; None: the base.
        fingerprint: the fingerprint of pi_t.
        reference_policies: the folder and the fingerprint of each further policy in the algorithm's loss.
    """

    policy: Path | None
    fingerprint: str
    reference_policies: tuple[tuple[Path | None, str], ...] = ()

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """Make the training rows of the shard; `sources` are the files that :func:`selections` reads."""
        algorithm = models.recipe.algorithm
        selected = selections(models, algorithm, *sources)
        opponents, references = self._log_probs(models, selected)
        rows = [
            self._row(algorithm, selection, opponent_log_probs, reference_log_probs)
            for selection, opponent_log_probs, reference_log_probs in zip(
                selected, opponents, references, strict=True
            )
        ]
        advance(len(rows))
        return to_table(rows, TrainingRow)

    def _log_probs(
        self, models: Models, selected: Sequence[Selection]
    ) -> tuple[list[list[opponent.OpponentLogProb]], list[Array]]:
        """log pi(y|x) of each prompt's responses under pi_t, and under the reference policies: [policies, responses]."""

        def score(scorer: Scorer, numbers: Sequence[int]) -> list[list[float]]:
            prompts = [selected[number].prompt.prompt_token_ids for number in numbers]
            tokens = [
                [candidate.token_ids for candidate in selected[number].candidates] for number in numbers
            ]
            return scorer(prompts, tokens)

        everything = range(len(selected))
        by_policy: dict[Path | None, list[list[float]]] = {}
        # One policy is in memory at a time, beginning with the one that is loaded already.
        folders = [self.policy, *(folder for folder, _ in self.reference_policies)]
        for folder in models.in_loading_order(folders):
            scorer = models.scorer(folder)
            if folder == self.policy:
                opponents = opponent.log_probs(
                    [
                        [candidate.sampler_log_prob for candidate in selection.candidates]
                        for selection in selected
                    ],
                    lambda numbers, scorer=scorer: score(scorer, numbers),  # type: ignore[misc]
                    models.recipe.training.opponent_log_probs,
                )
                by_policy[folder] = [[log_prob.value for log_prob in prompt] for prompt in opponents]
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
                selection.matrix, references - np.array([log_prob.value for log_prob in opponents])
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
    """Select the responses to train on for each prompt of a shard.

    Args:
        models: the models of the process.
        algorithm: the update.
        prompts: a shard of responses; or a shard of prompts, if the algorithm learns from demonstrations alone.
        preferences: a shard of the preferences between the responses; None: the oracle was not asked, and all
            responses are taken.
    """
    rows, compared = _read_sources(models.recipe.algorithm, prompts, preferences)
    return [_selection(models, algorithm, row, compared.get(row.prompt_id)) for row in rows]


def _read_sources(
    algorithm: Algorithm, prompts: Path, preferences: Path | None = None
) -> tuple[Sequence[PromptRow], dict[str, PreferencesRow]]:
    """The rows of a shard, and the preferences by the prompt's identifier."""
    rows: Sequence[PromptRow] = read_rows(prompts, ResponsesRow if algorithm.samples else PromptRow)
    if preferences is None:
        return rows, {}
    return rows, {row.prompt_id: row for row in read_rows(preferences, PreferencesRow)}


def _cause(models: Models, row: PromptRow, preferences: PreferencesRow | None) -> str:
    """Why a prompt is not trained on, as :func:`sppo.rundir.guard.why_untrained` takes it."""
    responses = row.responses if isinstance(row, ResponsesRow) else []
    usable = usable_responses(models, row) if isinstance(row, ResponsesRow) else {}
    compared = (
        usable
        if preferences is None
        else set(np.flatnonzero(_are_compared(models.recipe.algorithm, preferences)))
    )
    if usable and not compared:
        return "left_out"
    if responses and not usable:
        # pairs that are chosen by the answers are those of responses that can be trained on
        was_asked = preferences is not None and preferences.settled is None
        return "truncated_or_left_out" if was_asked and not compared else "truncated"
    return "demonstration" if set(usable) & set(compared) or not responses else "truncated_or_left_out"


def _are_compared(algorithm: Algorithm, preferences: PreferencesRow) -> Bool[np.ndarray[Any, Any], " K"]:
    """Which responses have the comparisons that an algorithm needs: some of them, or all. Pairs may be left out."""
    if algorithm.all_responses:
        return np.asarray(~np.isnan(preferences.matrix).any(axis=-1))
    return np.asarray(~np.isnan(preferences.win_rates))


def _selection(
    models: Models, algorithm: Algorithm, row: PromptRow, compared: PreferencesRow | None
) -> Selection:
    recipe = models.recipe
    responses = row.responses if isinstance(row, ResponsesRow) else []
    usable = usable_responses(models, row) if isinstance(row, ResponsesRow) else {}
    rates: Sequence[float | None] = [None] * len(responses)
    log_partition, matrix = 0.0, None
    if compared is not None:
        oracle = recipe.needed_oracle("selecting responses")
        win_rates = oracle.win_rates(compared.matrix, compared.components, compared.settled)
        is_compared = _are_compared(algorithm, compared)
        usable = {k: token_ids for k, token_ids in usable.items() if is_compared[k]}
        rates = win_rates.tolist()
        if is_compared.any():
            log_partition = algorithm.compute_log_partition(win_rates[is_compared])
        generator = randomness.generator("select", recipe.seed, row.prompt_id)
        chosen = select(recipe.selection, [float(win_rates[k]) for k in usable], generator)
        usable = {k: usable[k] for k in sorted(list(usable)[index] for index in chosen)}
        matrix = _between(
            compared,
            list(usable),
            oracle.annotators if algorithm.annotators else None,
        )
    candidates = [
        Candidate(k, token_ids, rates[k], _sampler_log_prob(responses[k], token_ids))
        for k, token_ids in usable.items()
    ]
    if recipe.algorithm.demonstrations:
        demonstrations = _demonstrations(models, row)
        is_complete = demonstrations and (candidates or not recipe.algorithm.samples)
        candidates = [*candidates, *demonstrations] if is_complete else []
    return Selection(row, candidates, matrix, log_partition)


def _between(preferences: PreferencesRow, numbers: Sequence[int], annotators: Sequence[str] | None) -> Array:
    """The preferences between some of the responses, [m, m], or those of each annotator, [annotators, m, m]."""
    parts = None if annotators is None else [preferences.components[name] for name in annotators]
    matrix: Array = preferences.matrix if parts is None else np.stack(parts)
    return matrix[..., numbers, :][..., numbers]


def _demonstrations(models: Models, row: PromptRow) -> list[Candidate]:
    """The prompt's demonstration, unless it is too long to be trained on."""
    assert row.demonstration is not None, "the recipe names a column of demonstrations"
    token_ids = fitting(models, row, row.demonstration.token_ids, truncated=False)
    return [Candidate(None, token_ids, None, None)] if token_ids else []


def _sampler_log_prob(response: ResponseRecord, token_ids: Sequence[int]) -> float | None:
    """log pi_t(y|x) as the sampler computed it; None if fewer tokens are used than were drawn."""
    return response.log_prob if len(token_ids) == len(response.token_ids) else None


class Select(ShardedStage):
    """The responses that pi_{t+1} is trained on.

    Args:
        run: the run.
        iteration: t.
        prompts: the iteration's prompts.
        policy: pi_t.
        sample: the stage that draws the responses; None for algorithms that need none.
        annotate: the stage that compares them; None for algorithms that need no preferences.
        reference_policies: the further policies in the algorithm's loss.
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
            "policy": self.run.policy_settings,
            "seed": recipe.seed,
            **({} if recipe.oracle is None else recipe.oracle.win_rate_settings),
        }

    def reads(self) -> Sequence[str]:
        """The stages that responses are selected from, and every policy whose log-probabilities are computed."""
        policies = (self.policy, *self.reference_policies)
        return [stage.fingerprint for stage in self.reads_from] + [policy.fingerprint for policy in policies]

    def sources(self) -> list[list[Path]]:
        """A shard of responses and a shard of preferences for each shard; or a shard of prompts."""
        return [
            [stage.files.shard(number) for stage in self.reads_from] for number in range(len(self.units()))
        ]

    def units(self) -> list[int]:
        """The number of prompts in each shard."""
        return self.prompts.counts()

    def work(self) -> SelectResponses:
        """Select from one shard."""
        references = tuple(
            (self.run.weights(policy), policy.fingerprint) for policy in self.reference_policies
        )
        return SelectResponses(self.run.weights(self.policy), self.policy.fingerprint, references)

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """The numbers of prompts and responses that are trained on, and how far sampler and trainer lie apart.

        Raises:
            RunError: nothing can be trained on.
        """
        counts = [len(row.responses) for row in _rows(shards)]
        prompts = sum(count > 0 for count in counts)
        causes = self._causes(shards) if prompts < len(counts) else {}
        if prompts == 0:
            raise RunError(
                f"{self.files.title}: no prompt has a response to train on: {why_untrained(causes)}"
            )
        trained = {"prompts": len(counts), "trained_prompts": prompts, "untrained": causes}
        missing = untrained(trained, LOUD_SHARE)
        if missing is not None:
            self.run.terminal.warn(f"WARNING: iteration {self.iteration}: {missing}")
        return {
            "trained_prompts": prompts,
            "trained_responses": sum(counts),
            **({"untrained": causes} if causes else {}),
            "sampler_deviation": opponent.deviation(_rows(shards)),
        }

    def _causes(self, shards: Sequence[Path]) -> dict[str, int]:
        """The number of prompts that are not trained on, by the cause."""
        causes: Counter[str] = Counter()
        for shard, sources in zip(shards, self.sources(), strict=True):
            untrained_ids = {row.prompt_id for row in read_rows(shard, TrainingRow) if not row.responses}
            if untrained_ids:
                rows, matrices = _read_sources(self.run.recipe.algorithm, *sources)
                causes.update(
                    _cause(self.run.models, row, matrices.get(row.prompt_id))
                    for row in rows
                    if row.prompt_id in untrained_ids
                )
        return dict(causes)


def _rows(shards: Sequence[Path]) -> Iterator[TrainingRow]:
    for path in shards:
        yield from read_rows(path, TrainingRow)
