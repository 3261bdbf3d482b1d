"""Values in memory, such as functions and rows, in the form in which recipes and commands name them.

Functions become their names, and rows (prompts, judged pairs) become a file whose name is the digest of their content.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sppo.recipe import OracleSection, RecipeError
from sppo.rundir.folder import write_text

Oracle = Callable[..., Any] | Mapping[str, Any] | OracleSection
Rows = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]


def oracle_values(oracle: Oracle) -> Any:
    """The `oracle:` section of a recipe for a function, a section, or a mapping.

    Raises:
        RecipeError: it is none of these.
        sppo.oracle.OracleError: a function does not stand at the top level of its module.
    """
    if isinstance(oracle, OracleSection):
        return oracle.model_dump(mode="json")
    if isinstance(oracle, Mapping):
        return oracle
    if not callable(oracle):
        found = repr(oracle) if isinstance(oracle, str) else f"an object of {type(oracle).__name__}"
        raise RecipeError(
            f"oracle: {found} is neither a function nor a mapping; hand over `def prefer(prompts, responses)`, or what a recipe"
            " has there, such as {'type': 'pairrm', 'model': 'llm-blender/PairRM'}"
        )
    from sppo.oracle.function import named

    return {"type": "function", "function": named(oracle), "own_process": False}


def source(rows: Rows, folder: Path, name: str) -> Any:
    """A recipe's source of rows; rows in memory are written into a folder under a name by their content.

    Args:
        rows: a source as in a recipe, or texts, conversations, mappings of columns, a `datasets.Dataset` (streaming or not).
        folder: the folder to write to.
        name: the first part of the file's name, which messages mention too.

    Raises:
        RecipeError: there are no rows, or a row cannot be written.
    """
    if isinstance(rows, os.PathLike):
        return os.fspath(rows)
    if isinstance(rows, str):
        return rows
    if isinstance(rows, Mapping):
        if any(hasattr(split, "features") for split in rows.values()):
            raise RecipeError(
                f"{name}: a data set with the splits {', '.join(map(str, rows))}; hand over one of them, e.g."
                f" data[{next(iter(rows))!r}]"
            )
        return rows
    if not isinstance(rows, Iterable):
        raise RecipeError(
            f"{name}: {rows!r} is neither a source nor a list of prompts; hand over a file, a list of texts or conversations, or"
            " a `datasets.Dataset`"
        )
    lines = [_row(number, row, name) for number, row in enumerate(rows)]
    if not lines:
        raise RecipeError(f"{name}: there are no rows in it")
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder.resolve() / f"{name}-{digest}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return {"source": str(path)}


def _row(number: int, row: Any, name: str) -> str:
    if isinstance(row, str):
        row = {"prompt": row}
    elif isinstance(row, list | tuple):
        row = {"messages": list(row)}
    if not isinstance(row, Mapping):
        raise RecipeError(
            f"{name}: row {number} is {type(row).__name__}; a row is a text, a list of messages, or a mapping of columns"
            " such as {'prompt': ...}"
        )
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=_plain)
    except TypeError as error:
        raise RecipeError(f"{name}: row {number} cannot be stored: {error}; remove that column") from error


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy as Python's, and times as text; data sets have columns of them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__} is neither text nor a number")
