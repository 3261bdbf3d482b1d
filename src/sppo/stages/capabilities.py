"""The watched tasks of a run: their items are drawn once, and every policy is measured on the same ones."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.progress import Advance
from sppo.rundir.folder import StageFolder
from sppo.rundir.tables import ItemRow, ItemScoreRow, read_rows, to_table
from sppo.stages import watched_tasks
from sppo.stages.jobs import Work
from sppo.stages.models import Models
from sppo.stages.run import HELD_OUT, PolicyState, Run
from sppo.stages.stage import ShardedStage, Stage
from sppo.stages.watched_tasks import LoadedTask


class Items(Stage):
    """The items of the watched tasks, drawn by the seed; a shard holds items of one task."""

    name = "items"
    folder_name = "items"

    def __init__(self, run: Run) -> None:
        super().__init__(run, HELD_OUT)

    def settings(self) -> Mapping[str, Any]:
        """The tasks with the digests of their files, and the seed."""
        recipe = self.run.recipe
        tasks = [watched_tasks.identity(task) for task in recipe.evaluation.tasks]
        return {"tasks": tasks, "seed": recipe.seed, "shard_prompts": recipe.shard_prompts}

    def reads(self) -> Sequence[str]:
        """No input, since tasks come from outside the run."""
        return ()

    def make(self) -> StageFolder:
        """Draw the items and publish them, unless they are published already."""
        if self.is_done():
            return self.files
        size = self.run.recipe.shard_prompts
        parts = [
            rows[start : start + size]
            for rows in self.run.watched_items
            for start in range(0, len(rows), size)
        ]
        shards = self.files.run_shards([() for _ in parts], lambda number: to_table(parts[number], ItemRow))
        self.files.publish([{**shard, "items": len(rows)} for shard, rows in zip(shards, parts, strict=True)])
        return self.files

    def counts(self) -> list[int]:
        """The number of items in each shard."""
        return [shard["items"] for shard in self.record()["shards"]]


@dataclass(frozen=True)
class MeasureItems(Work):
    """Measures a policy on the items of a shard.

    Attributes:
        policy: the folder of the policy's weights; None: the base.
    """

    policy: Path | None

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """The items of the shard with their scores."""
        ((_, table),) = self.stream(models, [sources], advance)
        return table

    def stream(
        self, models: Models, shards: Iterable[Sequence[Path]], advance: Advance
    ) -> Iterator[tuple[int, pa.Table]]:
        """The items of each shard with their scores; a task is read once for all shards in a row that hold its items."""
        configs = {config.name: config for config in models.recipe.evaluation.tasks}
        task: LoadedTask | None = None
        with contextlib.ExitStack() as opened:
            for number, sources in enumerate(shards):
                rows = read_rows(sources[0], ItemRow)
                if task is None or task.config.name != rows[0].task:
                    opened.close()
                    task = opened.enter_context(watched_tasks.opened(configs[rows[0].task]))
                scored = self._table(models, task, rows)
                advance(len(rows))
                yield number, scored

    def _table(self, models: Models, task: LoadedTask, rows: Sequence[ItemRow]) -> pa.Table:
        scores = task.measure(models.examinee(self.policy), [(row.member, row.number) for row in rows])
        scored = [
            ItemScoreRow(row.task, row.member, row.number, score)
            for row, score in zip(rows, scores, strict=True)
        ]
        return to_table(scored, ItemScoreRow)


class Capabilities(ShardedStage):
    """The scores of a policy on the items of the watched tasks.

    Args:
        run: the run.
        iteration: t; 0 for the base policy.
        policy: pi_{t+1}.
    """

    name = "capabilities"
    folder_name = "capabilities"
    kind = "evaluate"
    unit = "items"

    def __init__(self, run: Run, iteration: int, policy: PolicyState) -> None:
        super().__init__(run, iteration)
        self.policy = policy
        self.items = Items(run)

    @property
    def timed_as(self) -> str:
        """The evaluate stage, to which the time belongs."""
        return "evaluate"

    def settings(self) -> Mapping[str, Any]:
        """The settings that a policy's answers depend on."""
        return {"policy": self.run.policy_settings}

    def reads(self) -> Sequence[str]:
        """The items and pi_{t+1}."""
        return (self.items.fingerprint, self.policy.fingerprint)

    def all_files(self) -> list[StageFolder]:
        """The folder of the scores, and for the base that of the items as well."""
        return [*([self.items.files] if self.iteration == HELD_OUT else []), self.files]

    def is_done(self) -> bool:
        """Whether the items and the scores are there and whole."""
        return self.items.is_done() and super().is_done()

    def make(self) -> StageFolder:
        """Make the items and the scores that are missing, and publish the stage."""
        self.items.make()
        return super().make()

    def sources(self) -> list[list[Path]]:
        """The shard of items that each shard of scores is computed for."""
        return [[path] for path in self.items.files.shards()]

    def units(self) -> list[int]:
        """The number of items in each shard."""
        return self.items.counts()

    def work(self) -> Work:
        """Measure the policy on the items of one shard."""
        return MeasureItems(self.run.weights(self.policy))

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """No figures: the evaluate stage states them beside those of the base."""
        return {}

    def scores(self) -> dict[str, dict[tuple[str, int], float]]:
        """The score of each item of each task."""
        found: dict[str, dict[tuple[str, int], float]] = {}
        for path in self.files.shards():
            for row in read_rows(path, ItemScoreRow):
                found.setdefault(row.task, {})[row.member, row.number] = row.score
        return found
