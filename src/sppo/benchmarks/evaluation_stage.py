"""Cached stages of an evaluation: like a stage of a run, each has shards, a record and a fingerprint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.progress import Advance, Terminal
from sppo.rundir.folder import StageFolder, fingerprint
from sppo.rundir.shards import read_shard, table

SHARD = 64
"""The number of rows in one shard: at most this much work is lost when an evaluation is interrupted."""


class EvaluationStage(StageFolder):
    """A stage that belongs to an evaluation instead of a run."""

    @property
    def title(self) -> str:
        """The stage's name for progress bars and messages."""
        return self.name

    def compute(
        self,
        count: int,
        work: Callable[[range, Advance], list[dict[str, Any]]],
        schema: pa.Schema,
        terminal: Terminal,
        unit: str,
    ) -> list[dict[str, Any]]:
        """Compute the missing shards of this stage, then read all of its rows.

        Args:
            count: number of rows.
            work: computes the rows of a range and advances the progress bar by as many.
            schema: schema of a row.
            terminal: where progress is shown.
            unit: what a row is called on the progress bar, in the plural.
        """
        if not self.is_done():
            shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
            with terminal.bar(self.title, count, unit) as advance:
                self._run(
                    [len(shard) for shard in shards],
                    lambda number: table(work(shards[number], advance), schema),
                    advance,
                )
        return [row for path in self.shards() for row in read_shard(path).to_pylist()]

    def publish_shards(
        self, sizes: Sequence[int], make: Callable[[int], pa.Table], terminal: Terminal, unit: str
    ) -> None:
        """Compute the missing shards of this stage, where shards have sizes of their own.

        Args:
            sizes: number of rows of each shard.
            make: computes the shard of a number.
            terminal: where progress is shown.
            unit: what a row is called on the progress bar, in the plural.
        """
        with terminal.bar(self.title, sum(sizes), unit) as advance:

            def make_and_advance(number: int) -> pa.Table:
                shard = make(number)
                advance(sizes[number])
                return shard

            self._run(sizes, make_and_advance, advance)

    def _run(self, sizes: Sequence[int], make: Callable[[int], pa.Table], advance: Advance) -> None:
        def advance_if_there(number: int, exists: bool) -> None:
            if exists:
                advance(sizes[number])

        self.publish(self.run_shards([() for _ in sizes], make, advance_if_there))


def evaluation_stage(
    home: Path, title: str, kind: str, settings: Mapping[str, Any], upstream: Sequence[str]
) -> EvaluationStage:
    """The stage with these settings; its folder is named by its fingerprint, so different settings never mix.

    Args:
        home: the folder in which the stage gets its own folder.
        title: the stage's name in messages.
        kind: what the stage holds, e.g. `responses`; the folder's name starts with it.
        settings: everything that the result depends on.
        upstream: fingerprints of the stages and files that the stage reads.
    """
    folder = home / f"{kind}-{fingerprint(title, settings, upstream)[:12]}"
    return EvaluationStage(title, 0, folder, folder / "record.json", settings, tuple(upstream))
