"""Benchmarks: policies respond, a judge or an oracle compares, and the results stand beside the published ones.

A benchmark is one class, :class:`Benchmark`, that `sppo evaluate NAME` finds by its name: the built-in ones below, and
those of installed packages, which name theirs as an entry point of the group `sppo.benchmarks`. Each built-in one is a
folder with `score.py` (arithmetic), `files.py` (the benchmark's own file formats), `judge.py` (what a judge is asked
and what its replies mean), `play.py` (policies respond and are compared) and `command.py` (the class).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Benchmark(Protocol):
    """The description of a benchmark that `sppo evaluate` and the report use.

    Attributes:
        name: the name on the command line; results are in OUTPUT/NAME.json, under `results`.
        help: one sentence for `sppo evaluate --help`.
        example: a call of the command, for its own help page.
        command: the command itself, a static method whose typer parameters are its options; those that benchmarks
            share are declared in :mod:`sppo.benchmarks.options`. Import models and oracles inside of it.
    """

    name: str
    help: str
    example: str
    command: Callable[..., None]

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The column heads and the rows of the benchmark's table, from the results that it has written."""
