"""The results that `sppo evaluate` wrote about policies of a run, found by the policies' paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.benchmarks.results import cell_text
from sppo.progress import printable
from sppo.recipe import registry
from sppo.report.charts import Table
from sppo.report.head_to_head import HeadToHead
from sppo.rundir.reader import RunReader
from sppo.rundir.records import DamagedRecord, load_record

_INVALID = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What reading a result raises that another version has written."""


def tables(run: Path, folders: Sequence[Path], notes: list[str]) -> list[tuple[str, Table]]:
    """A table for each benchmark with results of the run's policies.

    Args:
        run: the run folder.
        folders: the folders in which results are looked for.
        notes: receives a note about results that this version cannot read.
    """
    shown, reader = [], RunReader(run)
    for name in registry.names("benchmarks"):
        contents = _contents(folders, f"{name}.json", notes)
        results = [row for _, content in contents for row in _mappings(content.get("results"))]
        own = [row for row in results if reader.owns(_policy_path(row))]
        if not own:
            continue
        try:
            heads, cells = registry.load("benchmarks", name).table(own)
        except _INVALID as error:
            notes.append(f"The results of {name} are left out, because another version wrote them: {error!r}")
            continue
        shown.append((name, Table(heads, [[cell_text(cell) for cell in row] for row in cells])))
    return shown


def matrices(run: Path, folders: Sequence[Path], notes: list[str]) -> list[tuple[str, HeadToHead]]:
    """The matrices of `sppo evaluate head-to-head` with a policy of the run; arguments as for :func:`tables`."""
    shown, reader = [], RunReader(run)
    for path, content in _contents(folders, "head-to-head.json", notes):
        policies = _mappings(content.get("policies"))
        if not any(reader.owns(policy.get("path", "")) for policy in policies):
            continue
        try:
            names = [printable(str(policy["name"])) for policy in policies]
            rates = [content[name] for name in ("win_rates", "low", "high")]
            oracle = content["oracle"].get("type", "an oracle")
            title = printable(f"{content['prompts']} prompts, by {oracle}, in {path.parent}")
            shown.append((title, HeadToHead.from_matrices(names, rates, content["von_neumann_winner"])))
        except _INVALID as error:
            notes.append(f"{path} is left out, because another version wrote it: {error!r}")
    return shown


def _contents(folders: Sequence[Path], name: str, notes: list[str]) -> list[tuple[Path, Mapping[str, Any]]]:
    """The files of a name in the folders and one level below, with their contents; damaged files are noted."""
    paths = {path.resolve() for folder in folders for path in (folder / name, *folder.glob(f"*/{name}"))}
    contents: list[tuple[Path, Mapping[str, Any]]] = []
    for path in sorted(paths):
        try:
            content = load_record(path)
        except DamagedRecord as error:
            notes.append(f"{path} is left out: {error}")
            continue
        if content is not None:
            contents.append((path, content))
    return contents


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _policy_path(result: Mapping[str, Any]) -> str:
    policy = result.get("policy")
    return str(policy.get("path", "")) if isinstance(policy, Mapping) else ""
