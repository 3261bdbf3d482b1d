"""Compares algorithms on the same prompts, with the same oracle and budget, over several seeds."""

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
    """Runs a recipe with several algorithms and seeds, continuing what is there, and compares the results.

    Args:
        recipe: the recipe's file.
        algorithms: the names, as :func:`sppo.compare.runs.entries` takes them.
        seeds: the number of seeds.
        changes: dotted keys of the recipe with their values; keys for one algorithm begin with its name.
        home: the comparison's folder, which receives `runs/` with one run for each algorithm and seed,
            `comparison.json` and `comparison.svg`.
        terminal: shows progress and the results.
        redo_stale: whether to remove what was computed from a different recipe, instead of refusing to go on.

    Returns:
        The content of comparison.json.

    Raises:
        sppo.recipe.RecipeError: an algorithm, a key or the recipe is invalid; nothing has been computed.
        sppo.rundir.folder.StaleRun: the folder holds runs of a different recipe.
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
        terminal.say(f"  {results.last_win_rate(run)}")
    comparison, played = results.gather(home, runs, stopped, terminal)
    write_json(home / "comparison.json", comparison)
    draw(comparison, played, home / "comparison.svg")
    results.show(terminal, comparison)
    terminal.show_json(comparison)
    terminal.show(f"\nThe figure is in {home / 'comparison.svg'}, all values in {home / 'comparison.json'}.")
    return comparison
