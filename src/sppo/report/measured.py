"""Benchmarks that the policies of a run were measured on: results that `sppo evaluate` wrote, found by their paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.benchmarks.results import cell_text
from sppo.progress import printable
from sppo.recipe import registry
from sppo.report.charts import Table
from sppo.report.matrix import HeadToHead
from sppo.rundir.reader import RunReader, read_mapping


def tables(run: Path, folders: Sequence[Path], notes: list[str]) -> list[tuple[str, Table]]:
    """A table for each benchmark that has rows of the run's policies."""
    found, reader = [], RunReader(run)
    for name in registry.names("benchmarks"):
        rows = []
        for path in _files(folders, f"{name}.json"):
            content = read_mapping(path) or {}
            of_run = [row for row in _rows(content.get("results")) if reader.owns(_path(row))]
            rows += of_run
        if not rows:
            continue
        try:
            heads, cells = registry.load("benchmarks", name).table(rows)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            notes.append(f"Results of {name} are of another form than this version's: {error!r}")
            continue
        found.append((name, Table(heads, [[cell_text(cell) for cell in row] for row in cells])))
    return found


def matrices(run: Path, folders: Sequence[Path], notes: list[str]) -> list[tuple[str, HeadToHead]]:
    """The matrices of `sppo evaluate head-to-head` in which a policy of the run takes part."""
    found, reader = [], RunReader(run)
    for path in _files(folders, "head-to-head.json"):
        content = read_mapping(path) or {}
        policies = _rows(content.get("policies"))
        if not any(reader.owns(one.get("path", "")) for one in policies):
            continue
        try:
            names = [printable(str(one["name"])) for one in policies]
            parts = [content[name] for name in ("win_rates", "low", "high")]
            entries = [
                [
                    None
                    if i == j
                    else dict(zip(("mean", "low", "high"), (part[i][j] for part in parts), strict=True))
                    for j in range(len(names))
                ]
                for i in range(len(names))
            ]
            judge = printable(str(content["oracle"].get("type", "an oracle")))
            title = (
                f"{printable(str(content['prompts']))} prompts, by {judge}, in {printable(str(path.parent))}"
            )
            found.append((title, HeadToHead(names, entries, content["von_neumann_winner"])))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            notes.append(f"{path} is of another form than this version's: {error!r}")
    return found


def _files(folders: Sequence[Path], name: str) -> list[Path]:
    return sorted(
        {
            path.resolve()
            for folder in folders
            for path in (folder / name, *folder.glob(f"*/{name}"))
            if path.is_file()
        }
    )


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _path(row: Mapping[str, Any]) -> str:
    policy = row.get("policy")
    return str(policy.get("path", "")) if isinstance(policy, Mapping) else ""
