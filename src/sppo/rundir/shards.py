"""Shards on disk: parquet files that are there whole or not at all, and whose later damage is noticed.

The schema metadata of a shard says what it was computed from. A shard is written to a temporary name, synced and
renamed, so that a file with a shard's name is a whole shard. Page checksums reveal later damage to the rows; a digest of
the schema and the number of rows, kept in the metadata, reveal damage to the footer; the shard's place in the run, kept
there as well, reveals that it has been swapped with another shard.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.reading import regular
from sppo.rundir import storage

_ROWS, _SCHEMA, _PLACE = "sppo.rows", "sppo.schema", "sppo.place"


class DamagedShard(ValueError):
    """A shard that cannot be read back whole."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file to write to, which replaces `path` once it is whole and on the disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        storage.publish(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_shard(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> str:
    """Write one shard so that it is there whole or not at all.

    Args:
        path: the shard's file.
        table: the shard's rows.
        metadata: what the shard was computed from; kept in the file.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        OSError: the shard could not be written; nothing of it is left.
    """
    checks = {_ROWS: str(table.num_rows), _SCHEMA: _schema_digest(table.schema), _PLACE: _place(path)}
    table = table.replace_schema_metadata(
        {key: value.encode() for key, value in {**metadata, **checks}.items()}
    )
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file_digest(path)


def read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one shard and verify its checksums.

    Raises:
        DamagedShard: the file is missing, truncated, altered, or another shard that has been put in its place.
    """
    try:
        with regular(path).open("rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            checks = parquet.schema_arrow.metadata or {}
            rows = parquet.read(columns=columns)
            # Parquet's checksums do not cover the footer, which says how the pages are read.
            for key, value in ((_ROWS, str(rows.num_rows)), (_SCHEMA, _schema_digest(parquet.schema_arrow))):
                if checks.get(key.encode(), value.encode()) != value.encode():
                    raise DamagedShard(f"{path}: not a whole shard: its footer has been altered")
            _check_place(path, checks)
            return rows
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedShard(f"{path}: not a whole shard: {error}") from error


def shard_metadata(path: Path) -> dict[str, str]:
    """The shard's own account of what it was computed from.

    Raises:
        DamagedShard: the file is missing, truncated, altered, or another shard that has been put in its place.
    """
    try:
        raw: Mapping[bytes, bytes] = pq.read_schema(regular(path)).metadata or {}
        _check_place(path, raw)
        metadata = {key.decode(): value.decode() for key, value in raw.items()}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedShard(f"{path}: not a whole shard: {error}") from error
    return {key: value for key, value in metadata.items() if key not in (_ROWS, _SCHEMA, _PLACE)}


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of the schema from rows that are given as mappings."""
    return pa.Table.from_pylist(rows, schema=schema)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; a file that has not changed is read once per process."""
    state = regular(path).stat()
    return _file_digest(path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=65536)
def _file_digest(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames inside the folder survive a power failure, on systems that allow it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_place(path: Path, metadata: Mapping[bytes, bytes]) -> None:
    written_as = metadata.get(_PLACE.encode(), b"").decode()
    if written_as and written_as != _place(path):
        raise DamagedShard(f"{path}: this shard was written as {written_as}, so it belongs elsewhere")


def _place(path: Path) -> str:
    """Where a shard stands in its run; empty for shards outside of iterations, whose folders people may rename."""
    parts = path.parts[-3:]
    return "/".join(parts) if re.fullmatch(r"iter-\d+", parts[0]) else ""


def _schema_digest(schema: pa.Schema) -> str:
    columns = [[field.name, _names_and_types(field.type)] for field in schema]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def _names_and_types(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):  # parquet renames the items of a list, so their name does not count
        return [_names_and_types(kind.value_type)]
    if pa.types.is_struct(kind):
        return {
            kind.field(index).name: _names_and_types(kind.field(index).type)
            for index in range(kind.num_fields)
        }
    return str(kind)
