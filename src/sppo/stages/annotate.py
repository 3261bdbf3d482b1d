"""The annotate stage: P(y_i > y_j | x) for every pair of the K responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from sppo import randomness
from sppo.oracle import Comparison
from sppo.oracle.opponents import opponents
from sppo.progress import Advance
from sppo.rundir.records import append_line
from sppo.rundir.shards import read_shard
from sppo.rundir.tables import PreferencesRow, ResponsesRow, read_rows, to_table
from sppo.stages.jobs import Work
from sppo.stages.models import Models
from sppo.stages.run import Run
from sppo.stages.sample import Sample
from sppo.stages.stage import ShardedStage

ORACLE_PROMPTS = 64
"""The number of prompts in one call of the oracle: the step of the progress bar, and what a time limit covers."""


@dataclass(frozen=True)
class CompareResponses(Work):
    """Asks the oracle about the responses of a shard.

    Attributes:
        metrics: the file to which a line with the oracle's counts is appended: truncated texts, requests, tokens.
    """

    metrics: Path

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """Ask the oracle about the responses of the shard, and return its preferences."""
        rows = read_rows(sources[0], ResponsesRow)
        before: Mapping[str, int] = models.oracle.counts
        compared: list[PreferencesRow] = []
        for start in range(0, len(rows), ORACLE_PROMPTS):
            part = rows[start : start + ORACLE_PROMPTS]
            wanted = wanted_pairs(models, part)
            answer = models.compare_with_components(part, [row.texts for row in part], wanted)
            compared += preference_rows([row.prompt_id for row in part], answer)
            advance(len(part))
        counted = {name: count - before.get(name, 0) for name, count in models.oracle.counts.items()}
        if counted:
            append_line(self.metrics, {"stage": "annotate", "shard": sources[0].name, "oracle": counted})
        return to_table(compared, PreferencesRow)


def wanted_pairs(
    models: Models, rows: Sequence[ResponsesRow]
) -> Bool[np.ndarray[Any, Any], "prompts K K"] | None:
    """Choose the pairs of each prompt's K responses that are compared; None: all pairs."""
    m, k = models.recipe.needed_oracle("the annotate stage").compared_opponents(), models.recipe.sampling.k
    if m is None or m >= k - 1:
        return None
    keys = (("opponents", models.recipe.seed, row.prompt_id) for row in rows)
    return np.stack([opponents(k, m, randomness.generator(*key)) for key in keys])


def preference_rows(prompt_ids: Sequence[str], answer: Comparison) -> list[PreferencesRow]:
    """The oracle's answer about some prompts as rows."""
    return [
        PreferencesRow(
            prompt_id, matrix, {name: matrices[number] for name, matrices in answer.components.items()}
        )
        for number, (prompt_id, matrix) in enumerate(zip(prompt_ids, answer.matrix, strict=True))
    ]


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
        m = oracle.compared_opponents()
        if m is not None:
            settings["opponents"] = [m, self.run.recipe.seed]
        return settings

    def reads(self) -> Sequence[str]:
        """The responses."""
        return (self.sample.fingerprint,)

    def sources(self) -> list[list[Path]]:
        """The shard of responses that each shard compares."""
        return [[self.sample.files.shard(number)] for number in range(len(self.units()))]

    def units(self) -> list[int]:
        """The number of prompts in each shard."""
        return self.sample.prompts.counts()

    def work(self) -> CompareResponses:
        """Ask the oracle about one shard of responses."""
        return CompareResponses(self.run.folder.metrics(self.iteration).resolve())

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """The share of triples of responses whose preferences form a cycle."""
        from sppo.game import cyclic_triples

        columns = [read_shard(path, columns=["matrix"]) for path in shards]
        matrices = np.array([matrix for column in columns for matrix in column["matrix"].to_pylist()])
        # A triple has three pairs: if some were not compared, the share of cycles is unknown.
        return {
            "cyclic_triples": None if np.isnan(matrices).any() else float(cyclic_triples(matrices).mean())
        }
