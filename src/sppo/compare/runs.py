"""The runs of a comparison: one for each side and seed, which share the results that they have in common.

All runs of a seed begin with the same prompts, the same responses of the base to held-out prompts, and the same
responses and preferences in the first iteration. A stage's result is adopted from another run when its fingerprint,
which covers everything that it is computed from, is the same (:meth:`sppo.rundir.folder.StageFolder.adopt`).
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
"""The sections of the recipe that sides may differ in; all other sections are the same for every side."""


@dataclass(frozen=True)
class Entry:
    """One side of a comparison.

    Attributes:
        name: its name in tables and folders.
        changes: dotted keys of the recipe with this side's values.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a comparison: a side with a seed."""

    entry: str
    seed: int
    recipe: Recipe
    folder: RunFolder


def entries(algorithms: str, changes: Mapping[str, Any]) -> tuple[list[Entry], dict[str, Any]]:
    """The sides that a command line names, and the changes that apply to all of them.

    Args:
        algorithms: values of `algorithm.type`, separated by commas; NAME=TYPE gives a side a name of its own, so
            that an algorithm can be compared with itself at other settings.
        changes: dotted keys with their values; a key that begins with a side's name and a dot applies to that side.

    Raises:
        RecipeError: a name is invalid, repeated, or a section of the recipe; or a key of a side is not in
            :data:`OWN`.
    """
    sides: dict[str, dict[str, Any]] = {}
    for word in algorithms.split(","):
        name, _, kind = (part.strip() for part in word.partition("="))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecipeError(
                f"--algorithms {word!r}: give names separated by commas, for example sppo,dpo,ipo"
            )
        if name in Recipe.model_fields:
            raise RecipeError(
                f"--algorithms {name}: a section of the recipe has this name; choose another name"
            )
        if name in sides:
            raise RecipeError(
                f"--algorithms: {name} is named twice; rename one of them, for example {name}-2={kind or name}"
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
                f"--set {key}: sides may only differ in {', '.join(OWN)}; set other keys for all sides"
            )
        sides[side][own] = value
    return [Entry(name, own) for name, own in sides.items()], common


def plan(
    recipe: Path, sides: Sequence[Entry], common: Mapping[str, Any], seeds: Sequence[int] | int, home: Path
) -> list[Run]:
    """The runs of a comparison, seed by seed, each in a folder of its own in `home`.

    Args:
        recipe: the recipe's file.
        sides: the sides, as :func:`entries` returns them.
        common: dotted keys of the recipe with the values that all sides have.
        seeds: the seeds, or their number, counted from the recipe's own seed.
        home: the comparison's folder.

    Raises:
        RecipeError: the recipe of a side is invalid; the message begins with the side's name.
    """
    if isinstance(seeds, int):
        first = _recipe(recipe, sides[0], common).seed
        seeds = range(first, first + seeds)
    runs = []
    for seed in seeds:
        for side in sides:
            own = keep_answers_in(_recipe(recipe, side, {**common, "seed": seed}), (home / ANSWERS).resolve())
            runs.append(Run(side.name, seed, own, RunFolder(home / "runs" / f"{side.name}-seed-{seed}")))
    return runs


def _recipe(path: Path, side: Entry, common: Mapping[str, Any]) -> Recipe:
    # the type comes first, because changing it drops the keys of the algorithm that was there before
    values = {"algorithm.type": side.changes["algorithm.type"], **common, **side.changes}
    try:
        recipe = load(path, values)
    except RecipeError as error:
        raise RecipeError(f"{side.name}: {error}") from None
    if recipe.oracle is None and recipe.evaluation.oracle is None:
        raise RecipeError(
            f"{side.name}: a comparison needs an oracle to compare policies by; set oracle or evaluation.oracle"
        )
    return recipe


def play(run: Run, donors: Iterable[Run], terminal: Terminal, *, redo_stale: bool = False) -> str | None:
    """Runs one run of a comparison to its end, continuing what is there.

    Args:
        run: the run.
        donors: the runs whose stages may be adopted.
        terminal: shows progress.
        redo_stale: whether to remove what was computed from a different recipe, instead of refusing to go on.

    Returns:
        The guard's reason where it has stopped the run, which then counts as it is; None where it has not.

    Raises:
        sppo.rundir.folder.StaleRun: the folder holds a run of a different recipe.
    """
    share(run, donors, terminal)
    try:
        selfplay.run(run.recipe, run.folder, terminal.for_part(), redo_stale=redo_stale)
    except GuardStop as stopped:
        terminal.warn(f"{run.entry}, seed {run.seed}: {stopped}", "red")
        return str(stopped)
    return None


def share(run: Run, donors: Iterable[Run], terminal: Terminal) -> list[StageFolder]:
    """Adopts the stages before the first iteration's training that other runs have computed from the same inputs."""
    adopted = []
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
                    adopted.append(stage)
                    _log(run, donor, stage)
            if not waiting:
                break
    return adopted


def _log(run: Run, donor: Run, stage: StageFolder) -> None:
    """Logs where a stage comes from, and what its oracle counted; the seconds that it took stay the donor's."""
    for record in donor.folder.read_metrics(stage.iteration):
        if record.get("stage") == stage.name and "oracle" in record:
            run.folder.log(stage.iteration, record)
    run.folder.log(stage.iteration, {"stage": stage.name, "adopted_from": donor.folder.path.name})
