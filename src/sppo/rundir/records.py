"""JSON that the program writes and reads back: records of stages, summary.json, and the lines of metrics.jsonl.

Each record holds a digest of its own content, so that a changed digit is noticed when the record is read. Records
without a digest, which earlier versions wrote, are accepted as they are.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.reading import parse
from sppo.rundir import storage
from sppo.rundir.shards import replacing

_DIGEST = "digest"


class DamagedRecord(ValueError):
    """A record that is not what was written; the message names the file and the reason."""


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its digest, so that the file is there whole or not at all."""
    with replacing(path) as file:
        text = json.dumps({**record, _DIGEST: _digest(record)}, indent=2, ensure_ascii=False)
        file.write(f"{text}\n".encode())


def load_record(path: Path) -> dict[str, Any] | None:
    """The content of a record without its digest; None if there is no such file.

    Raises:
        DamagedRecord: the file is not a JSON mapping, or its digest is not that of its content.
    """
    try:
        return _verified(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DamagedRecord(f"{path} is damaged: {error}") from error


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a record without its digest; None if the file is missing or damaged."""
    try:
        return load_record(path)
    except DamagedRecord:
        return None


def to_line(record: Mapping[str, Any]) -> str:
    """A record with its digest as a line of JSON."""
    return json.dumps({**record, _DIGEST: _digest(record)}) + "\n"


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record, with its digest, to a file of JSON lines.

    Remote storage cannot append to objects: there the whole file is replaced, and if two machines do so at the same
    moment, one of the two lines is lost.
    """
    line = to_line(record).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not storage.is_within_a_copy(path):
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill has interrupted the line before
                    line = b"\n" + line
            file.write(line)
        return
    storage.fetch(path)
    before = path.read_bytes() if path.is_file() else b""
    with replacing(path) as whole:
        whole.write(before + line)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole records in a file of JSON lines, and the number of lines that are damaged or were interrupted by a kill."""
    records: list[dict[str, Any]] = []
    damaged = 0
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            records.append(_verified(line))
        except ValueError:
            damaged += 1
    return records, damaged


def _verified(content: bytes) -> dict[str, Any]:
    record = parse(content)
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__} instead of a mapping")
    recorded = record.pop(_DIGEST, None)
    if recorded is not None and recorded != _digest(record):
        raise ValueError(
            "its digest is not that of its content, so something in it has changed since it was written"
        )
    return record


def _digest(record: Mapping[str, Any]) -> str:
    # The digest is of the values as they will be read back (keys as text), and not of the spelling of the file.
    content = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
