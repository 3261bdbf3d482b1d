"""The shards of a stage as a job of plain values, which an executor can hand to another process or machine.

A process that makes shards has models of its own (:class:`sppo.stages.models.Models`). The executor chooses where and in
which order shards are made (:mod:`sppo.executors`); the rows do not depend on it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

from sppo.progress import Advance, unseen
from sppo.rundir.folder import Shard
from sppo.stages.models import Models

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

    def stream(
        self, models: Models, shards: Iterable[Sequence[Path]], advance: Advance
    ) -> Iterator[tuple[int, pa.Table]]:
        """Compute the rows of several shards.

        Args:
            models: the models of the process that does the work.
            shards: the sources of each shard; the next ones are taken when there is room for their work.
            advance: called with the number of units that have just been finished.

        Yields:
            The number of a shard, counted from 0 in the given order, and its rows, as soon as they are there.
        """
        for number, sources in enumerate(shards):
            yield number, self(models, sources, advance)


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

    def make(self, number: int, models: Models, advance: Advance = unseen) -> None:
        """Compute shard `number` and publish it."""
        for _ in self.make_each([number], models, advance):
            pass

    def make_each(self, numbers: Iterable[int], models: Models, advance: Advance = unseen) -> Iterator[int]:
        """Compute several shards, and yield the number of each as soon as it is published.

        Args:
            numbers: the numbers of the shards; the next one is taken when there is room for its work.
            models: the models of this process.
            advance: called with the number of units that have just been finished.
        """
        taken: list[int] = []

        def sources() -> Iterator[Sequence[Path]]:
            for number in numbers:
                taken.append(number)
                yield self.shards[number].sources

        for place, rows in self.work.stream(models, sources(), advance):
            self.shards[taken[place]].write(rows)
            yield taken[place]
