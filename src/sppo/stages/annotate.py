"""The annotate stage: P(y_i > y_j | x) for every pair of the K responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from sppo import randomness
from sppo.comparisons import Rounds, Wanted
from sppo.oracle import ComparesPairs, Comparison, Composite, parts_of
from sppo.oracle.function import Function
from sppo.progress import Advance
from sppo.rundir.records import append_line
from sppo.rundir.shards import read_shard
from sppo.rundir.tables import PreferencesRow, ResponsesRow, read_rows, to_table
from sppo.stages.jobs import Work
from sppo.stages.models import Models
from sppo.stages.run import Run
from sppo.stages.sample import Sample
from sppo.stages.stage import ShardedStage
from sppo.stages.usable import usable_responses
from sppo.winrates import Array

ORACLE_PROMPTS = 64
"""The number of prompts in one call of the oracle: the step of the progress bar, and what a time limit covers."""


@dataclass(frozen=True)
class CompareResponses(Work):
    """Asks the oracle about the responses of a shard.

    Attributes:
        metrics: the file to which a line with the oracle's counts is appended: truncated texts, requests, tokens.
        policy: the folder of pi_t, with which some oracles compute; None: the base.
    """

    metrics: Path
    policy: Path | None

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """Ask the oracle about the responses of the shard, and return its preferences."""
        rows = read_rows(sources[0], ResponsesRow)
        models.play(self.policy)
        before: Mapping[str, int] = models.oracle.counts
        if models.recipe.comparisons.in_rounds:
            compared = _compare_in_rounds(models, rows, advance)
        else:
            compared = _compare_at_once(models, rows, advance)
        counted = {name: count - before.get(name, 0) for name, count in models.oracle.counts.items()}
        if counted:
            append_line(self.metrics, {"stage": "annotate", "shard": sources[0].name, "oracle": counted})
        return to_table(compared, PreferencesRow)


def _compare_at_once(models: Models, rows: Sequence[ResponsesRow], advance: Advance) -> list[PreferencesRow]:
    """Compare pairs that do not depend on answers: all of them, or those that the seed draws."""
    choice = models.recipe.comparisons
    compares_all = choice.most_pairs == choice.every_pair
    compared: list[PreferencesRow] = []
    for start in range(0, len(rows), ORACLE_PROMPTS):
        part = rows[start : start + ORACLE_PROMPTS]
        wanted = None if compares_all else np.stack([next(_rounds(models, row)) for row in part])
        answer = models.compare_with_components(part, [row.texts for row in part], wanted)
        compared += preference_rows([row.prompt_id for row in part], answer)
        advance(len(part))
    return compared


def preference_rows(prompt_ids: Sequence[str], answer: Comparison) -> list[PreferencesRow]:
    """The oracle's answer about some prompts as rows."""
    return [
        PreferencesRow(
            prompt_id, matrix, {name: matrices[number] for name, matrices in answer.components.items()}
        )
        for number, (prompt_id, matrix) in enumerate(zip(prompt_ids, answer.matrix, strict=True))
    ]


def _compare_in_rounds(
    models: Models, rows: Sequence[ResponsesRow], advance: Advance
) -> list[PreferencesRow]:
    """Compare the pairs of each round of all prompts in one call of the oracle, and choose the next from the answers.

    An oracle that answers whole matrices is asked for them once, and its answers are then read round by round.
    """
    k = models.recipe.sampling.k
    rounds = [_rounds(models, row) for row in rows]
    matrices = np.where(np.eye(k, dtype=bool), 0.5, np.full((len(rows), k, k), np.nan))
    settled = np.zeros((len(rows), k), dtype=bool)
    wanted: dict[int, Wanted] = {}

    def go_on(number: int, answers: Array | None) -> None:
        try:
            wanted[number] = next(rounds[number]) if answers is None else rounds[number].send(answers)
        except StopIteration as end:
            wanted.pop(number, None)
            settled[number] = end.value
            advance(1)

    by_pairs = {
        isinstance(part, ComparesPairs) for part in parts_of(models.oracle) if not isinstance(part, Composite)
    }
    whole = None if True in by_pairs else _answers(models, rows, None)
    by_prompt = any(getattr(part, "leaves_out_prompts", False) for part in parts_of(models.oracle))
    for number in range(len(rows)):
        go_on(number, None)
    while wanted:
        asked = list(wanted)
        pairs = np.stack([wanted[number] for number in asked])
        answers = (
            _answers(models, [rows[number] for number in asked], pairs) if whole is None else whole[asked]
        )
        matrices[asked] = np.where(pairs, answers, matrices[asked])
        for number, of_prompt in zip(asked, pairs, strict=True):
            if by_prompt and np.isnan(matrices[number][of_prompt]).any():
                matrices[number][~np.eye(k, dtype=bool)] = np.nan
                del wanted[number]
                advance(1)
            else:
                go_on(number, matrices[number])
    return [
        PreferencesRow(row.prompt_id, matrix, {}, of_prompt.tolist())
        for row, matrix, of_prompt in zip(rows, matrices, settled, strict=True)
    ]


def _answers(
    models: Models, rows: Sequence[ResponsesRow], pairs: Bool[np.ndarray[Any, Any], "prompts K K"] | None
) -> Array:
    """The oracle's answers about the wanted pairs; calls that a time limit covers are about few prompts."""
    has_limit = any(isinstance(part, Function) for part in parts_of(models.oracle))
    step = ORACLE_PROMPTS if has_limit or pairs is None else len(rows)
    return np.concatenate(
        [
            models.compare(
                part, [row.texts for row in part], None if pairs is None else pairs[start : start + step]
            )
            for start in range(0, len(rows), step)
            for part in (rows[start : start + step],)
        ]
    )


def _rounds(models: Models, row: ResponsesRow) -> Rounds:
    """The rounds of a prompt's comparisons, which depend on the seed, the prompt and the oracle's answers alone."""
    generator = randomness.generator("opponents", models.recipe.seed, row.prompt_id)
    choice = models.recipe.comparisons
    return choice.rounds(generator, list(usable_responses(models, row)) if choice.in_rounds else [])


class Annotate(ShardedStage):
    """The oracle's preferences between the responses.

    Args:
        run: the run.
        iteration: t.
        sample: the stage that draws the responses.
    """

    name = "annotate"
    folder_name = "preferences"
    kind = "annotate"
    unit = "prompts"

    def __init__(self, run: Run, iteration: int, sample: Sample) -> None:
        super().__init__(run, iteration)
        self.sample = sample

    def settings(self) -> Mapping[str, Any]:
        """The oracle, and the choice of the pairs that it is asked about."""
        oracle = self.run.recipe.needed_oracle("the annotate stage")
        settings: dict[str, Any] = {"oracle": self.run.oracle_identity}
        chosen, recipe = oracle.chosen_comparisons(), self.run.recipe
        if chosen is not None and chosen.opponents is not None:  # by the names that older runs recorded
            settings["opponents"] = [chosen.opponents, recipe.seed]
        elif chosen is not None and chosen.type != "all":
            settings |= {"comparisons": chosen.model_dump(), "seed": recipe.seed}
        if recipe.comparisons.in_rounds:
            # the best and the worst are sought among those that can be trained on
            settings |= {
                "truncated_responses": recipe.training.truncated_responses,
                "limits": self.run.length_limits,
                "max_tokens": recipe.training.max_tokens,
            }
        return settings

    def reads(self) -> Sequence[str]:
        """The responses, and the policies that the oracle computes with."""
        of_oracle = self.run.policies_of(self.run.recipe.oracle, self.sample.policy)
        return (self.sample.fingerprint, *of_oracle)

    def sources(self) -> list[list[Path]]:
        """The shard of responses that each shard compares."""
        return [[self.sample.files.shard(number)] for number in range(len(self.units()))]

    def units(self) -> list[int]:
        """The number of prompts in each shard."""
        return self.sample.prompts.counts()

    def work(self) -> CompareResponses:
        """Ask the oracle about one shard of responses."""
        metrics = self.run.folder.metrics(self.iteration).resolve()
        return CompareResponses(metrics, self.run.weights(self.sample.policy))

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """Cycles among the preferences, the mean number of pairs compared, and how far the oracle's components disagree."""
        from sppo.game import cyclic_triples

        columns = [read_shard(path, columns=["matrix", "components"]) for path in shards]
        matrices = np.array([matrix for column in columns for matrix in column["matrix"].to_pylist()])
        disagreement = firm_disagreement(
            [of for column in columns for of in column["components"].to_pylist()]
        )
        # A triple has three pairs: if some were not compared, the share of cycles is unknown.
        return {
            "cyclic_triples": None if np.isnan(matrices).any() else float(cyclic_triples(matrices).mean()),
            "pairs_per_prompt": float(np.triu(~np.isnan(matrices), 1).sum() / len(matrices)),
            **({} if disagreement is None else {"disagreement": disagreement}),
        }


FIRM = 0.25
"""A component disagrees firmly with another if one prefers a response by more than this beyond 1/2, and the other its rival."""


def firm_disagreement(components: Sequence[Sequence[Mapping[str, Any]]]) -> float | None:
    """The share of pairs on which two components of the oracle firmly prefer different responses; None for fewer than two.

    Args:
        components: for each prompt the `oracle` and the `matrix` of each component. Components of components, whose name is
            `member/component`, do not count.
    """
    shares = []
    for of_prompt in components:
        matrices = [np.array(item["matrix"]) - 0.5 for item in of_prompt if "/" not in item["oracle"]]
        if len(matrices) < 2:
            return None
        margins = np.stack(matrices)[:, *np.triu_indices(len(matrices[0]), 1)]
        shares.append(np.mean((margins.max(0) > FIRM) & (margins.min(0) < -FIRM)))
    return float(np.mean(shares)) if shares else None
