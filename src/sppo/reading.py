"""Files and JSON that come from outside, read by functions whose only errors are OSError and ValueError."""

import errno
import json
import stat
from pathlib import Path
from typing import Any

_LONGEST_INTEGER = 300
"""Digits; a float holds no larger number."""


def regular(path: Path) -> Path:
    """The path itself, to be read. A pipe could keep the program waiting for ever, and a device never ends.

    Raises:
        OSError: there is nothing at the path, or it is a pipe, a socket or a device.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "this is a pipe, a socket or a device; save it as a file", str(path))
    return path


def parse(text: str | bytes) -> Any:
    """The value that JSON text holds.

    Raises:
        ValueError: the text is not JSON in UTF-8, is nested too deeply to be read, or has an integer that no float holds.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is not a mapping in JSON.
    """
    content = parse(regular(path).read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of a mapping")
    return content


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"{digits[:20]}... is too large a number")
    return int(digits)
