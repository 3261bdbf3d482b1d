"""`sppo report --watch`: a page that follows runs while they are under way."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sppo.progress import Terminal
from sppo.report import page, run_figures


def watch(
    runs: Sequence[Path],
    output: Path,
    terminal: Terminal,
    *,
    seconds: float,
    wait: Callable[[float], None] = time.sleep,
    **options: Any,
) -> None:
    """Writes the page whenever a run has made progress, until all runs have ended.

    Args:
        runs: the run folders.
        output: the HTML file.
        terminal: shows how far each run has got.
        seconds: the time between two looks at the runs; the page reloads itself as often.
        wait: waits for so many seconds.
        options: further arguments of :func:`page.write`.
    """
    last_written: list[float] = []
    while True:
        figures = [run_figures.read(path) for path in runs]
        ended = all(run.has_ended for run in figures)
        written = [run.written for run in figures]
        if written != last_written or ended:
            page.write(runs, output, reload=None if ended else seconds, **options)
            for run in figures:
                terminal.say(f"{run.name}: {run.status}")
        if ended:
            return
        last_written = written
        wait(seconds)
