"""Parts of an evaluation: each has shards and a record like a run's stages, and a folder named by its fingerprint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.progress import Advance, Terminal
from sppo.rundir.folder import StageFolder, fingerprint
from sppo.rundir.shards import read_shard, table

SHARD = 64
"""Questions in one shard: what an interruption can lose."""


class Part(StageFolder):
    """A stage of an evaluation instead of a run."""

    @property
    def title(self) -> str:
        """For messages."""
        return self.name


def part(home: Path, title: str, kind: str, settings: Mapping[str, Any], upstream: Sequence[str]) -> Part:
    """A part of an evaluation.

    Args:
        home: the folder that it gets a folder in.
        title: for messages.
        kind: what it is, e.g. `answers`; with the fingerprint its folder's name, so that other settings have
            another folder and nothing is mixed.
        settings: what its result depends on.
        upstream: fingerprints of what it reads.
    """
    folder = home / f"{kind}-{fingerprint(title, settings, upstream)[:12]}"
    return Part(title, 0, folder, folder / "record.json", settings, tuple(upstream))


def ranges(count: int, size: int = SHARD) -> list[range]:
    """0..count-1 in ranges of one shard each."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def run(
    of: Part,
    count: int,
    work: Callable[[range, Advance], list[dict[str, Any]]],
    schema: pa.Schema,
    terminal: Terminal,
    unit: str,
) -> list[dict[str, Any]]:
    """Make the shards of a part that are missing, and read all of its rows.

    Args:
        of: the part.
        count: of its rows.
        work: makes the rows of a range and advances the bar by as many.
        schema: of a row.
        terminal: where progress is shown.
        unit: what a row is, in the plural.
    """
    if not of.is_done():
        shards = ranges(count)
        with terminal.bar(of.title, count, unit) as advance:

            def kept(number: int, there: bool) -> None:
                if there:
                    advance(len(shards[number]))

            def make(number: int) -> pa.Table:
                return table(work(shards[number], advance), schema)

            of.publish(of.run_shards([() for _ in shards], make, kept))
    return [row for path in of.shards() for row in read_shard(path).to_pylist()]
