"""The page that a run leaves behind when it ends, or when its guard stops it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sppo.progress import Terminal
from sppo.rundir.reader import RunReader
from sppo.rundir.records import holds_digest


@contextlib.contextmanager
def reported(run: Path, terminal: Terminal, stopped: type[Exception]) -> Iterator[None]:
    """Writes RUN/report.html when the run has ended or was stopped.

    Args:
        run: the run folder.
        terminal: shows where the page is, or why there is none: a page that fails must not fail the run.
        stopped: the exception that the guard raises to stop the run.
    """
    try:
        yield
    except stopped:
        _write(run, terminal)
        raise
    if _is_current(run):
        terminal.show(f"The report is {run / 'report.html'}")
    else:
        _write(run, terminal)


def _is_current(run: Path) -> bool:
    """Whether the page is whole, and nothing that it shows has been written since it was."""
    page = run / "report.html"
    if not page.is_file() or not holds_digest(page.read_text(encoding="utf-8", errors="replace")):
        return False
    return all(path.stat().st_mtime_ns <= page.stat().st_mtime_ns for path in RunReader(run).files)


def _write(run: Path, terminal: Terminal) -> None:
    from sppo.report import page

    try:
        page.write([run], run / "report.html")
    except (ValueError, OSError) as error:
        terminal.say(f"note: no report could be written: {error}", "yellow")
    else:
        terminal.show(f"The report is {run / 'report.html'}")
