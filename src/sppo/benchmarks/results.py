"""Results: a file with every figure and what it depends on, and tables of text in the terminal."""

import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sppo.endpoint.exchange import Usage
from sppo.progress import Terminal, counted_text, printable
from sppo.rundir.folder import write_json


def save(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result with the versions of the packages that computed it."""
    versions = {
        name: metadata.version(name) for name in ("sppo", "torch", "transformers", "numpy", "scikit-learn")
    }
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(path, {"benchmark": benchmark, "made": made, "versions": versions, **content})


def save_all(
    output: Path,
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    terminal: Terminal,
    usage: Usage | None = None,
) -> None:
    """Write the results of all participants to one file, and say what the judge has cost where there was one."""
    save(output / f"{benchmark}.json", benchmark, {"results": rows})
    if usage is not None:
        terminal.show(
            f"judge: {counted_text(usage.requests, 'request')}, {usage.prompt_tokens:,} prompt and {usage.completion_tokens:,}"
            f" completion tokens, {usage.cached} answers known already, {usage.retries} repeated",
            "bright_black",
        )
        if usage.refusals:
            terminal.warn(
                f"the judge refused {counted_text(usage.refusals, 'request')}: without a verdict, in no figure"
            )
    terminal.show(f"all of it is in {output / benchmark}.json")


def show_table(
    terminal: Terminal, heads: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None
) -> None:
    """Print a table in plain text, with aligned columns."""
    cells = [[cell_text(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(heads), *cells]) for column in range(len(heads))]
    if title is not None:
        terminal.show(title, "bold")
    for row in [list(heads), *cells]:
        line = "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        terminal.show(line.rstrip())


def cell_text(value: Any) -> str:
    """The text of a cell: numbers with two decimals, and nothing that controls a terminal."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:z.2f}"
    return printable(str(value)).replace("\n", " ")
