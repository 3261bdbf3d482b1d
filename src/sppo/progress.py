"""The output of commands: progress and warnings on the standard error, results on the standard output."""

import contextlib
import json
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class Advance(Protocol):
    """Advances a progress bar by a number of units; a note, such as the loss, replaces the one behind the bar."""

    def __call__(self, count: int, note: str = "") -> None:
        """Advance the bar."""


def unseen(count: int, note: str = "") -> None:
    """Take the progress of work that shows no bar."""


class _Rate(ProgressColumn):
    """A column that shows units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s", style="cyan")


class _NotebookProgress(Progress):
    """Bars in the output of a notebook's cell, which they replace as they move; no widgets are needed, and they are saved."""

    def start(self) -> None:
        from IPython.display import display

        self._output = display(self, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        self._updated = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        if time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._update_output()

    def stop(self) -> None:
        self._update_output()

    def _update_output(self) -> None:
        self._output.update(self)
        self._updated = time.monotonic()


_SECONDS_BETWEEN_UPDATES = 0.2


class Terminal:
    """Prints progress and warnings to one console, and results to another.

    Args:
        console: the console for everything; None: the standard error for progress, the standard output for results. A
            notebook shows both as the text of its cell.
        quiet: print only warnings and results.
        as_json: print results as JSON.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False, as_json: bool = False) -> None:
        if console is None and _in_notebook():
            # as rich's own output each line would be a block by itself, and tables would fall apart
            console = Console(force_jupyter=False, force_terminal=True, color_system="standard")
            warnings.filterwarnings(
                "ignore", message="IProgress not found"
            )  # tqdm misses widgets; its bars are not shown
        self.console = console or Console(stderr=True)
        self.results = console or Console()
        self.quiet = quiet
        self.as_json = as_json
        self.is_part = False
        self.has_bars = not quiet

    def for_part(self) -> "Terminal":
        """A terminal for one of several runs: it prints warnings, and bars that vanish when they end unless it is quiet."""
        part = Terminal(self.console, quiet=True)
        part.is_part, part.has_bars = True, self.has_bars
        return part

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a bar of `total` units and yield the function that advances it."""
        with self.bars([(title, total, unit)]) as (advance,):
            yield advance

    @contextlib.contextmanager
    def bars(self, bars: Sequence[tuple[str, int | None, str]]) -> Iterator[list[Advance]]:
        """Show bars, each with a title, a total and a unit, and yield the functions that advance them.

        Where bars cannot be shown, a line for each is printed when the work has ended.
        """
        in_notebook = _in_notebook()
        is_shown = self.has_bars and not self.console.quiet and (in_notebook or self.console.is_terminal)
        progress = (_NotebookProgress if is_shown and in_notebook else Progress)(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not is_shown,
            transient=self.is_part,
        )
        begin = time.perf_counter()
        with progress:
            tasks = [
                progress.add_task(escape(title), total=total, unit=unit, note="")
                for title, total, unit in bars
            ]
            yield [partial(_advance, progress, task) for task in tasks]
            for task in progress.tasks:
                if task.total is None:
                    progress.update(task.id, total=task.completed)
        if not is_shown:
            seconds = time.perf_counter() - begin
            for (title, _, unit), task in zip(bars, progress.tasks, strict=True):
                note = f", {task.fields['note']}" if task.fields["note"] else ""
                done = counted_text(int(task.completed), unit.removesuffix("s"))
                self.say(f"{title}: {done} in {seconds:.1f} s{note}", "bright_black")

    def say(self, text: str, style: str = "") -> None:
        """Print a line about the progress, unless the terminal is quiet; nothing in it is read as markup."""
        if not self.quiet:
            _print(self.console, text, style)

    def note(self, text: str) -> None:
        """Print something that the user should know, though nothing is wrong."""
        self.say(f"note: {text}", "yellow")

    def warn(self, text: str, style: str = "bold yellow") -> None:
        """Print a warning, also if the terminal is quiet."""
        _print(self.console, text, style)

    def show(self, text: str, style: str = "") -> None:
        """Print a result for people, unless results are printed as JSON."""
        if not (self.as_json or self.is_part):
            _print(self.results, text, style)

    def show_table(self, title: str, table: Table) -> None:
        """Print a table with its title and an empty line, unless results are printed as JSON."""
        if not (self.as_json or self.is_part):
            if not self.results.is_terminal:
                # a pipe has no width; rich assumes 80 columns and would truncate numbers
                self.results.width = max(self.results.width, 200)
            self.results.print(Text(title), table, "", sep="\n")

    def show_json(self, value: Any) -> None:
        """Print a result as JSON if results are printed so; arrays become lists, NaN and infinity null."""
        if self.as_json and not self.is_part:
            text = json.dumps(value, default=lambda array: array.tolist())
            plain = json.loads(text, parse_constant=lambda name: None)  # JSON has no NaN and no infinity
            self.results.file.write(f"{json.dumps(plain, indent=2)}\n")
            self.results.file.flush()  # whoever reads a pipe acts on the line, such as the arena's address


def counted_text(count: int, noun: str) -> str:
    """A number with its noun in the singular or the plural."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _advance(progress: Progress, task: TaskID, count: int, note: str = "") -> None:
    progress.advance(task, count)
    if note:
        progress.update(task, note=note)


def _print(console: Console, text: str, style: str) -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)


def _in_notebook() -> bool:
    """Whether the program runs in a notebook, whose cells show its output."""
    return Console().is_jupyter


_LONGEST_MESSAGE = 2000
"""Characters; a text that comes from elsewhere may hold megabytes."""


def shortened(text: str, length: int = _LONGEST_MESSAGE) -> str:
    """A text without its middle if it is longer than `length`."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} [...] {text[-half:]}"


_KEPT = "\n\t\u200c\u200d"
"""Whitespace, and the joiners that Persian, Hindi and many emoji are spelt with."""


def printable(text: str) -> str:
    """Make the control characters of text from models and files visible, so that it cannot control the terminal.

    Newlines, tabs, spaces of every width and the joiners stay. Escape codes, other control characters and bidirectional
    overrides become text like ``\\x1b``.
    """
    return "".join(
        character
        if character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
