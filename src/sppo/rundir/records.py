"""JSON that the program writes and reads back: records of stages, summary.json, and the lines of metrics.jsonl.

Each record holds a digest of its own content, so that a changed digit is noticed when the record is read. Records
without a digest, which earlier versions wrote, are accepted as they are.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
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


def to_line(record: Mapping[str, Any], path: Path) -> str:
    """A record as a line of JSON for a file, with a digest that is valid in files of this folder's name only."""
    return json.dumps({**record, _DIGEST: _digest(record, path.parent.name)}) + "\n"


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record, with its digest, to a file of JSON lines.

    Remote storage cannot append to objects: there the whole file is replaced, and if two machines do so at the same
    moment, one of the two lines is lost.
    """
    line = to_line(record, path).encode()
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


def with_digest(text: str, comment: str = "# {}") -> str:
    """The text with its digest in a comment behind it, so that a later change is noticed by :func:`holds_digest`."""
    return f"{text}{comment.format(f'digest {_digest({}, text)}')}\n"


def holds_digest(text: str) -> bool:
    """Whether a text ends with its own digest; not so if it was changed, truncated, or written without one."""
    content, _, last = text.removesuffix("\n").rpartition("\n")
    return f"digest {_digest({}, content + chr(10))}" in last


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole records in a file of JSON lines, and the number of lines that are left out.

    A line is left out if it is damaged, was interrupted by a kill, belongs to a folder of another name, or stands there twice.
    """
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in dict.fromkeys(lines):
        with contextlib.suppress(ValueError):
            records.append(_verified(line, path.parent.name))
    return records, len(lines) - len(records)


def digest_of_lines(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The number of records and a digest of all of them, by which the loss of a record is noticed."""
    content = "".join(_digest(record) for record in records)
    return [len(records), hashlib.sha256(content.encode()).hexdigest()[:16]]


def _verified(content: bytes, place: str = "") -> dict[str, Any]:
    record = parse(content)
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__} instead of a mapping")
    recorded = record.pop(_DIGEST, None)
    if recorded is not None and recorded != _digest(record, place):
        raise ValueError(
            "its digest is not that of its content, so something in it has changed since it was written"
        )
    return record


def _digest(record: Mapping[str, Any], place: str = "") -> str:
    # The digest is of the values as they will be read back (keys as text), and not of the spelling of the file.
    content = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return hashlib.sha256(f"{place}{content}".encode()).hexdigest()[:16]
