"""Output while stages run: progress bars with rate and remaining time, and lines that stay."""

import contextlib
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    """A column that shows units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s", style="cyan")


class Terminal:
    """Prints progress bars and lines to a console; outside of a terminal, a line replaces each finished bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a bar of `total` units and yield the function that advances it."""
        with self.bars([(title, total, unit)]) as (advance,):
            yield advance

    @contextlib.contextmanager
    def bars(self, bars: Sequence[tuple[str, int | None, str]]) -> Iterator[list[Advance]]:
        """Show bars, each with a title, a total and a unit, and yield the functions that advance them."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        begin = time.perf_counter()
        with progress:
            tasks = [progress.add_task(escape(title), total=total, unit=unit) for title, total, unit in bars]
            yield [partial(progress.advance, task) for task in tasks]
        if not self.console.is_terminal:
            seconds = time.perf_counter() - begin
            for (title, _, unit), task in zip(bars, progress.tasks, strict=True):
                self.say(f"{title}: {task.completed:,.0f} {unit} in {seconds:.1f} s", "bright_black")

    def say(self, text: str, style: str = "") -> None:
        """Print plain text; nothing in it is read as markup."""
        self.console.print(Text(printable(text), style=style), soft_wrap=True)


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
