"""The shards of a stage as a job of plain values, which an executor can hand to another process or machine.

A process that makes shards has models of its own (:class:`sppo.stages.models.Models`). The executor chooses where and in
which order shards are made (:mod:`sppo.executors`); the rows do not depend on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

from sppo.rundir.folder import Shard
from sppo.stages.models import Models

Advance = Callable[[int], None]
Kind = Literal["sample", "annotate", "select", "evaluate"]


class Work(Protocol):
    """Makes the rows of one shard of a stage."""

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """Compute the rows.

        Args:
            models: the models of the process that does the work.
            sources: the shards that this shard is computed from.
            advance: called with the number of units that have just been finished.
        """
        ...


@dataclass(frozen=True)
class ShardJob:
    """The shards that a stage is to have.

    Attributes:
        title: the name of the job in messages.
        unit: what the progress bar counts.
        kind: the key of the recipe's `workers` that says how many processes make the shards.
        work: what makes the rows of one shard.
        shards: all shards of the stage.
        units: the number of units in each shard.
    """

    title: str
    unit: str
    kind: Kind
    work: Work
    shards: Sequence[Shard]
    units: Sequence[int]

    def make(self, number: int, models: Models, advance: Advance = lambda count: None) -> None:
        """Compute shard `number` and publish it."""
        shard = self.shards[number]
        shard.write(self.work(models, shard.sources, advance))
