"""The folder of a run: stages, shards, fingerprints, atomic publication and resume.

A stage is done when its record names every shard and the fingerprint of what it was computed from. A fingerprint
covers the stage's settings and the fingerprints of the stages that it reads, so a changed recipe shows which stages
become stale, down the chain, before anything is computed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from sppo.rundir import storage
from sppo.rundir.environment import environment
from sppo.rundir.records import (
    DamagedRecord,
    append_line,
    digest_of_lines,
    load_record,
    read_lines,
    read_record,
    to_line,
    write_record,
)
from sppo.rundir.shards import (
    DamagedShard,
    file_digest,
    read_shard,
    replacing,
    shard_metadata,
    sync_folder,
    write_shard,
)

FORMAT = 2
"""Raised whenever the meaning of what is stored changes, so that older runs are told apart and not misread."""
_TIMED = ("sample", "annotate", "select", "train")
"""The stages of an iteration that state their seconds in its metrics under their own names."""


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says what to do."""


class StaleRun(RunError):
    """A run folder whose stages were computed from a different recipe or from different inputs."""


def fingerprint(stage: str, settings: Mapping[str, Any], upstream: Sequence[str]) -> str:
    """SHA-256 of a stage's name, its settings and the fingerprints of what it reads, in hexadecimal."""
    content = json.dumps([FORMAT, stage, settings, list(upstream)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """A shard as it must be, in plain values, so that another process can make it.

    Attributes:
        path: the shard's file.
        sources: the files that the shard is computed from.
        fingerprint: the fingerprint of its stage.
        recorded: what the stage's record says of the shard; None if the stage has not been done before.
    """

    path: Path
    sources: tuple[Path, ...]
    fingerprint: str
    recorded: Mapping[str, Any] | None = None

    def is_whole(self) -> bool:
        """Whether the shard is there, undamaged, and computed from its present sources.

        On remote storage, the shard and its sources are fetched first.
        """
        for path in (self.path, *self.sources):
            storage.fetch(path)
        if self.recorded is not None and self.path.is_file() and not _is_whole(self.path, self.recorded):
            return False
        if not all(source.is_file() for source in self.sources):
            return False
        try:
            if shard_metadata(self.path) != self._metadata():
                return False
            read_shard(self.path)
        except DamagedShard:
            return False
        return True

    def write(self, table: pa.Table) -> None:
        """Publish the rows of the shard."""
        write_shard(self.path, table, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "sources": ",".join(map(file_digest, self.sources))}


@dataclass(frozen=True)
class StageFolder:
    """A stage of an iteration on disk: where its result lies, and what it must have been computed from.

    Attributes:
        name: `prompts`, `sample`, `annotate`, `select`, `train` or `evaluate`.
        iteration: 1..T; 0 for what belongs to the base policy.
        folder: the folder of the stage's shards, or of the policy.
        record: the file that says that the stage is done.
        settings: the recipe's values that the result depends on.
        upstream: the fingerprints of the stages and policies that the stage reads.
    """

    name: str
    iteration: int
    folder: Path
    record: Path
    settings: Mapping[str, Any]
    upstream: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name of the stage in messages."""
        return f"iteration {self.iteration}: {self.name}"

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of what the stage must have been computed from."""
        return fingerprint(self.name, self.settings, self.upstream)

    def shard(self, number: int) -> Path:
        """The file of shard `number`, counted from 0."""
        return self.folder / f"part-{number:05d}.parquet"

    def shards(self) -> list[Path]:
        """The files of the finished stage, in order."""
        return [self.folder / shard["name"] for shard in self.read_record()["shards"]]

    def read_record(self) -> dict[str, Any]:
        """The record of the finished stage.

        Raises:
            RunError: the stage is not done.
        """
        record = self._own_record()
        if record is None:
            raise RunError(f"{self.title} is not done; run it first")
        return record

    def _own_record(self) -> dict[str, Any] | None:
        """The record, if it is whole and of this fingerprint."""
        record = read_stage_record(self.record)
        return None if record is None or record.get("fingerprint") != self.fingerprint else record

    def damage(self) -> str | None:
        """Why the stage's record cannot be believed; None if the record is whole or missing."""
        try:
            _load_stage_record(self.record)
        except DamagedRecord as error:
            return str(error)
        return None

    def is_of_another_format(self) -> bool:
        """Whether an earlier or a later version of this program has made what lies there."""
        record = read_stage_record(self.record)
        return record is not None and record.get("format", 1) != FORMAT

    def is_stale(self) -> bool:
        """Whether what lies there was computed from a different recipe or from different inputs."""
        record = read_stage_record(self.record)
        if record is not None:
            return bool(record.get("fingerprint") != self.fingerprint)
        for path in sorted(self.folder.glob("part-*.parquet")):
            with contextlib.suppress(DamagedShard):
                return shard_metadata(path).get("fingerprint") != self.fingerprint
        return False

    def is_done(self) -> bool:
        """Whether the stage was published and each of its files is still as it was."""
        record = self._own_record()
        return record is not None and all(
            _is_whole(self.folder / file["name"], file) for file in _files(record)
        )

    def adopt(self, run: "RunFolder", donor: "RunFolder") -> bool:
        """Take the files of the stage from another run in which the same stage is done.

        A fingerprint says what a stage must have been computed from, so the donor's files are those that this stage
        would make. They are linked if the file system can, else copied; nothing of a run is ever written in place.

        Args:
            run: the run that this stage belongs to.
            donor: the other run.

        Returns:
            Whether the files were taken. They are not if the stage is done already, or if something else lies there.
        """
        if self.is_done() or self.is_stale():
            return False
        theirs = replace(
            self,
            folder=donor.path / self.folder.relative_to(run.path),
            record=donor.path / self.record.relative_to(run.path),
        )
        if not theirs.is_done():
            return False
        record = theirs.read_record()
        self.clear()
        self.folder.mkdir(parents=True)
        for file in _files(record):
            _link(theirs.folder / file["name"], self.folder / file["name"])
        storage.publish(self.folder)
        write_record(self.record, record)
        return True

    def clear(self) -> None:
        """Remove the stage's record and files."""
        storage.remove(self.record)
        storage.remove(self.folder)

    def run_shards(
        self,
        sources: Sequence[Sequence[Path]],
        work: Callable[[int], pa.Table],
        on_shard: Callable[[int, bool], None] = lambda number, kept: None,
    ) -> list[dict[str, Any]]:
        """Make every shard that is missing, damaged or computed from other sources.

        Args:
            sources: the files that each shard is computed from.
            work: makes the table of a shard, given its number.
            on_shard: called for every shard with its number and whether it was there already.

        Returns:
            A description of each shard for the record.
        """
        planned = self.plan_shards(sources)
        for number, shard in enumerate(planned):
            kept = shard.is_whole()
            if not kept:
                shard.write(work(number))
            on_shard(number, kept)
        return self.describe_shards(planned)

    def plan_shards(self, sources: Sequence[Sequence[Path]]) -> list[Shard]:
        """The shards that the stage is to have, given the files that each is computed from."""
        record = read_stage_record(self.record) or {}
        known = {shard["name"]: shard for shard in record.get("shards", [])}
        return [
            Shard(path, tuple(files), self.fingerprint, known.get(path.name))
            for path, files in ((self.shard(number), files) for number, files in enumerate(sources))
        ]

    def describe_shards(self, planned: Sequence[Shard]) -> list[dict[str, Any]]:
        """A description of each shard for the record, once all are there; shards that are not planned are removed."""
        storage.fetch(self.folder)
        for extra in set(self.folder.glob("part-*.parquet")) - {shard.path for shard in planned}:
            storage.remove(extra)
        return [describe(shard.path) for shard in planned]

    def publish(self, shards: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write the record that says that the stage is done."""
        write_record(
            self.record,
            {
                "format": FORMAT,
                "stage": self.name,
                "iteration": self.iteration,
                "fingerprint": self.fingerprint,
                "settings": dict(self.settings),
                "environment": environment(),
                "shards": list(shards),
                **more,
            },
        )


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def iteration(self, number: int) -> Path:
        """The folder of an iteration's stages; 0 belongs to the base policy."""
        return self.path / f"iter-{number}"

    def stage(
        self,
        name: str,
        iteration: int,
        settings: Mapping[str, Any],
        upstream: Sequence[str],
        *,
        folder: str,
        record: str | None = None,
    ) -> StageFolder:
        """A stage of this run; `folder` and `record` are names within its iteration's folder."""
        home = self.iteration(iteration)
        return StageFolder(
            name, iteration, home / folder, home / (record or f"{name}.json"), settings, tuple(upstream)
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            RunError: another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(f"{self.path}: a file is in the way of this folder; name another one") from error
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{storage.shown(self.path)}: another sppo is at work in this run; wait for it, or stop it"
            ) from None
        try:
            for pattern in (".*.tmp", "iter-*/.*.tmp", "iter-*/*/.*.tmp"):
                for leftover in self.path.glob(pattern):  # of a process that was killed while writing
                    if leftover.is_file() and re.fullmatch(r"\..+\.\d+\.tmp", leftover.name):
                        leftover.unlink()
            with storage.locked(self.path):
                yield
        finally:
            lock.release()

    def log(self, iteration: int, record: Mapping[str, Any]) -> None:
        """Append a line to the iteration's metrics.jsonl."""
        append_line(self.metrics(iteration), record)

    def metrics(self, iteration: int) -> Path:
        """The iteration's metrics.jsonl."""
        return self.iteration(iteration) / "metrics.jsonl"

    def read_metrics(self, iteration: int) -> list[dict[str, Any]]:
        """The lines of the iteration's metrics; lines that are damaged or were interrupted by a kill are left out."""
        return read_lines(self.metrics(iteration))[0]

    def lost_metrics(self, iteration: int) -> int:
        """The number of lines of the iteration's metrics that are damaged, or missing since summary.json was written.

        Before that, the line in which each finished stage states its seconds must be there.
        """
        records, damaged = read_lines(self.metrics(iteration))
        summary = read_record(self.path / "summary.json") or {}
        counted, digest = summary.get("metrics", {}).get(str(iteration), (0, None))
        if digest is None:
            timed = {line.get("stage") for line in records if line.keys() & {"seconds", "adopted_from"}}
            done = [name for name in _TIMED if read_stage_record(self.iteration(iteration) / f"{name}.json")]
            return max(damaged, len(set(done) - timed))
        if damaged or digest == digest_of_lines(records[:counted])[1]:
            return damaged
        return max(1, int(counted) - len(records))

    def forget_metrics(self, iteration: int, stage: str, after: int = 0) -> None:
        """Remove the lines of a stage that starts again, or those after the step that it continues from."""

        def is_kept(record: Mapping[str, Any]) -> bool:
            step = record.get("step")
            return record.get("stage") != stage or (isinstance(step, int) and step <= after)

        path = self.metrics(iteration)
        if path.is_file():
            kept = [record for record in self.read_metrics(iteration) if is_kept(record)]
            write_text(path, "".join(to_line(record, path) for record in kept))


def describe(path: Path) -> dict[str, Any]:
    """Name, size and digest of a file for a stage's record."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def publish_folder(temporary: Path, final: Path) -> None:
    """Sync a folder's files and give it its final name."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    storage.remove(final)
    os.replace(temporary, final)
    storage.publish(final)
    storage.remove(temporary)  # from the storage, where a worker on another machine has put it
    sync_folder(final.parent)


def _load_stage_record(path: Path) -> dict[str, Any] | None:
    record = load_record(path)
    if record is not None and "stage" in record and path.parent.name.startswith("iter-"):
        place = ("evaluate" if path.stem == "evaluation" else path.stem, path.parent.name)
        if place != (record["stage"], f"iter-{record.get('iteration')}"):
            raise DamagedRecord(f"{path} holds the record of another stage or of another iteration")
    return record


def read_stage_record(path: Path) -> dict[str, Any] | None:
    """A stage's record; None if there is none or if it is damaged or another stage's, since the stage is then not done."""
    try:
        record = _load_stage_record(path)
    except DamagedRecord:
        return None
    if record is None or "shards" not in record:
        return None
    parts = [record.get(part, []) for part in ("shards", "files")]
    whole = all(
        isinstance(part, list)
        and all(isinstance(file, dict) and {"name", "bytes", "sha256"} <= file.keys() for file in part)
        for part in parts
    )
    return record if whole else None


def _files(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The descriptions of all files of a stage, given its record."""
    return [*record["shards"], *record.get("files", [])]


def _link(existing: Path, new: Path) -> None:
    try:
        os.link(existing, new)
    except OSError:  # another disk, or one without links
        shutil.copyfile(existing, new)


def _is_whole(path: Path, described: Mapping[str, Any]) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == described["bytes"]
        and file_digest(path) == described["sha256"]
    )
