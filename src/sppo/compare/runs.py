"""The runs of a comparison: one for each entry and seed, which share what is equal in them.

What every run of a seed begins with is equal: the prompts, the base's answers to the held-out ones, and the first
iteration's responses and preferences. A stage is taken over from another run where its fingerprint, which covers all
that it is computed from, says that it is the same (:meth:`sppo.rundir.folder.StageFolder.adopt`); nothing is shared by name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo import selfplay
from sppo.executors.local import Local
from sppo.progress import Terminal
from sppo.recipe import ANSWERS, Recipe, RecipeError, keep_answers_in, load
from sppo.rundir.folder import RunFolder, StageFolder
from sppo.selfplay import GuardStop
from sppo.stages.evaluate import evaluate_base
from sppo.stages.iterations import iterations
from sppo.stages.prompts import all_prompts
from sppo.stages.run import Run as OpenedRun
from sppo.stages.stage import Stage

OWN = ("algorithm", "selection", "training")
"""Sections of the recipe that entries may differ in; prompts, oracle, policy and sampling are the comparison's."""


@dataclass(frozen=True)
class Entry:
    """One side of a comparison.

    Attributes:
        name: in tables and folders.
        changes: dotted keys of the recipe to this side's values.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a comparison."""

    entry: str
    seed: int
    recipe: Recipe
    folder: RunFolder


def entries(algorithms: str, changes: Mapping[str, Any]) -> tuple[list[Entry], dict[str, Any]]:
    """The sides that a command line names, and the changes that are for all of them.

    Args:
        algorithms: names of `algorithm.type` with commas between them; NAME=TYPE is a side with a name of its own, so
            that one algorithm can stand there twice.
        changes: dotted keys to values; a key that begins with a side's name and a dot is for that side alone.

    Raises:
        RecipeError: a name that is there twice, is no name, or is a section of the recipe; a side's key that is not
            among :data:`OWN`.
    """
    sides: dict[str, dict[str, Any]] = {}
    for word in algorithms.split(","):
        name, _, kind = (part.strip() for part in word.partition("="))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecipeError(
                f"--algorithms {word!r}: give names with commas between them, e.g. sppo,dpo,ipo"
            )
        if name in Recipe.model_fields:
            raise RecipeError(f"--algorithms {name}: a section of the recipe has this name; choose another")
        if name in sides:
            raise RecipeError(
                f"--algorithms: {name} is there twice; name one of them, e.g. {name}-2={kind or name}"
            )
        sides[name] = {"algorithm.type": kind or name}
    common: dict[str, Any] = {}
    for key, value in changes.items():
        side, _, own = key.partition(".")
        if side not in sides:
            common[key] = value
            continue
        if own.split(".")[0] not in OWN:
            raise RecipeError(
                f"--set {key}: sides differ in {', '.join(OWN)} alone; what else is compared must be the same for all"
            )
        sides[side][own] = value
    return [Entry(name, own) for name, own in sides.items()], common


def plan(
    recipe: Path, sides: Sequence[Entry], common: Mapping[str, Any], seeds: Sequence[int] | int, home: Path
) -> list[Run]:
    """The runs, seed by seed, each in a folder of its own in `home`.

    Args:
        recipe: a file.
        sides: as :func:`entries` gives them.
        common: dotted keys of the recipe to values that all sides have.
        seeds: or how many, counted from the recipe's own.
        home: the comparison's folder.

    Raises:
        RecipeError: a recipe that cannot be used, with the side's name.
    """
    if isinstance(seeds, int):
        first = _recipe(recipe, sides[0], common).seed
        seeds = range(first, first + seeds)
    found = []
    for seed in seeds:
        for side in sides:
            of = _recipe(recipe, side, {**common, "seed": seed})
            folder = RunFolder(home / "runs" / f"{side.name}-seed-{seed}")
            found.append(Run(side.name, seed, keep_answers_in(of, (home / ANSWERS).resolve()), folder))
    return found


def _recipe(path: Path, side: Entry, common: Mapping[str, Any]) -> Recipe:
    # the type first: another type of algorithm keeps no key of the one below it
    values = {"algorithm.type": side.changes["algorithm.type"], **common, **side.changes}
    try:
        found = load(path, values)
    except RecipeError as error:
        raise RecipeError(f"{side.name}: {error}") from None
    if found.oracle is None and found.evaluation.oracle is None:
        raise RecipeError(
            f"{side.name}: a comparison needs an oracle, or an evaluation.oracle, to compare by"
        )
    return found


def play(run: Run, donors: Iterable[Run], terminal: Terminal, *, redo_stale: bool = False) -> str | None:
    """Play one run to its end, from wherever it stands.

    Args:
        run: of the comparison.
        donors: runs whose stages may be taken over.
        terminal: where progress is shown.
        redo_stale: as :func:`sppo.selfplay.run`.

    Returns:
        What the guard said where it has stopped the run, which then counts as it stands; None where it has not.

    Raises:
        sppo.rundir.folder.StaleRun: the folder holds a run of another recipe.
    """
    share(run, donors, terminal)
    try:
        selfplay.run(run.recipe, run.folder, terminal, redo_stale=redo_stale)
    except GuardStop as stopped:
        terminal.say(f"{run.entry}, seed {run.seed}: {stopped}", "red")
        return str(stopped)
    return None


def share(run: Run, donors: Iterable[Run], terminal: Terminal) -> list[StageFolder]:
    """Take over the stages up to the first iteration's training that another run has computed from the same."""
    taken = []
    with run.folder.locked():
        opened = OpenedRun(run.recipe, run.folder, terminal, Local(run.recipe))
        first = next(iterations(opened))
        shared: list[Stage] = [*all_prompts(opened), evaluate_base(opened)]
        shared += [stage for stage in (first.sample, first.annotate, first.select) if stage is not None]
        waiting = [files for stage in shared for files in stage.all_files() if not files.is_done()]
        for donor in donors:
            for stage in list(waiting):
                if stage.adopt(run.folder, donor.folder):
                    waiting.remove(stage)
                    taken.append(stage)
                    _log(run, donor, stage)
            if not waiting:
                break
    return taken


def _log(run: Run, donor: Run, stage: StageFolder) -> None:
    """The run's metrics say where a stage comes from, and what its oracle counted; its seconds are the donor's."""
    for record in donor.folder.read_metrics(stage.iteration):
        if record.get("stage") == stage.name and "oracle" in record:
            run.folder.log(stage.iteration, record)
    run.folder.log(stage.iteration, {"stage": stage.name, "adopted_from": donor.folder.path.name})
