"""Algorithms side by side: the same prompts, oracle and budget for each, several seeds, one table and one figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.compare.runs import entries, plan, play
from sppo.progress import Terminal
from sppo.rundir.folder import write_json


def compare(
    recipe: Path,
    algorithms: str,
    seeds: int,
    changes: Mapping[str, Any],
    home: Path,
    terminal: Terminal,
    *,
    redo_stale: bool = False,
) -> dict[str, Any]:
    """Play a recipe with several algorithms and seeds, from wherever the folder stands, and compare.

    Args:
        recipe: a file.
        algorithms: as :func:`sppo.compare.runs.entries`.
        seeds: how many.
        changes: dotted keys to values; those of one algorithm begin with its name.
        home: the comparison's folder: `runs/`, one folder for each algorithm and seed; `comparison.json` and
            `comparison.svg`.
        terminal: where progress is shown.
        redo_stale: remove what was computed from another recipe, instead of refusing.

    Returns:
        As in comparison.json.

    Raises:
        sppo.recipe.RecipeError: an algorithm, a key or the recipe is wrong; nothing has been computed.
        sppo.rundir.folder.StaleRun: the folder holds runs of another recipe.
    """
    from sppo.compare import results
    from sppo.compare.figure import draw

    sides, common = entries(algorithms, changes)
    runs = plan(recipe, sides, common, seeds, home)
    stopped = {}
    for number, run in enumerate(runs):
        terminal.say(f"{run.entry}, seed {run.seed}: run {number + 1} of {len(runs)}", "bold")
        reason = play(run, [*reversed(runs[:number]), *runs[number + 1 :]], terminal, redo_stale=redo_stale)
        if reason is not None:
            stopped[run.folder.path.name] = reason
    found, played = results.gather(home, runs, stopped, terminal)
    write_json(home / "comparison.json", found)
    draw(found, played, home / "comparison.svg")
    results.show(terminal, found)
    terminal.say(f"\nThe figure is in {home / 'comparison.svg'}, all values in {home / 'comparison.json'}.")
    return found
