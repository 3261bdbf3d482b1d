"""Opening a run folder: what lies there must belong to the recipe, and what is stale is refused or removed."""

from pathlib import Path

from sppo import training
from sppo.executors import Executor
from sppo.executors.local import Local
from sppo.policy import adapter as adapters
from sppo.progress import Terminal
from sppo.recipe import Recipe, RecipeError, dump, load
from sppo.rundir import storage
from sppo.rundir.folder import RunFolder, StageFolder, StaleRun, write_text
from sppo.rundir.summary import flatten, versions
from sppo.stages.evaluate import evaluate_base
from sppo.stages.iterations import iterations
from sppo.stages.prompts import all_prompts
from sppo.stages.run import Run


def open_run(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    executor: Executor | None = None,
    *,
    redo_stale: bool = False,
) -> Run:
    """The run of a folder, after making sure that what lies there belongs to the recipe.

    What the recipe asks of this machine (engines, devices, adapters) is checked only where something is left to do.

    Raises:
        StaleRun: it does not; the message names the changed keys and the stages that are stale.
    """
    run = Run(recipe, folder, terminal, executor or Local(recipe))
    planned = planned_files(run)
    stale = [stage for stage in planned if stage.is_stale()]
    if stale and not redo_stale:
        raise StaleRun(_why_stale(run, stale))
    if stale or not all(stage.is_done() for stage in planned):
        check(run)
    for stage in stale:
        terminal.say(f"removed as stale: {stage.title}", "yellow")
        stage.clear()
        folder.forget_metrics(stage.iteration, stage.name)
    if stale:
        storage.remove(folder.path / "summary.json")
    recorded = versions() + dump(recipe)
    if not _says(folder.path / "recipe.yaml", recorded):
        write_text(folder.path / "recipe.yaml", recorded)
    return run


def planned_files(run: Run) -> list[StageFolder]:
    """The files of every stage of the run, as far as it can be planned."""
    stages = [*all_prompts(run), evaluate_base(run)]
    stages += [stage for iteration in iterations(run) for stage in iteration.stages.values()]
    return [files for stage in stages for files in stage.all_files()]


def check(run: Run) -> None:
    """Refuse, before anything is computed, what cannot work on this machine.

    Raises:
        ValueError: the message names the key and the way out.
    """
    recipe = run.recipe
    training.check(recipe.training, recipe.report_to, recipe.policy.quantization)
    recipe.sampling.check()
    if recipe.training.adapter is not None or adapters.is_adapter(run.base.folder):
        from sppo.training import lora

        lora.check(
            recipe.training.adapter,
            run.base.folder,
            sampling=recipe.sampling,
            quantization=recipe.policy.quantization,
            trust_remote_code=recipe.policy.trust_remote_code,
        )
    run.executor.check()


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _why_stale(run: Run, stale: list[StageFolder]) -> str:
    shown, recorded = storage.shown(run.folder.path), run.folder.path / "recipe.yaml"
    names = "\n".join(f"  {stage.title}" for stage in stale)
    way_out = "Choose another folder with --run-dir, or remove and redo them with --redo-stale"
    if any(stage.is_of_another_format() for stage in stale):
        return (
            f"{shown} holds a run of another version of sppo, which stored its results differently; `sppo report {shown}`"
            f" still shows it, but it cannot be continued. These stages would have to be made again:\n{names}\n{way_out}"
        )
    return (
        f"{shown} holds a run of another recipe; {_changes(recorded, run.recipe)}. These stages are stale:\n"
        f"{names}\n{way_out}"
    )


def _changes(recorded: Path, recipe: Recipe) -> str:
    try:
        before = flatten(load(recorded).model_dump(mode="json"))
    except RecipeError:
        return "its recipe.yaml cannot be read"
    after = flatten(recipe.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if not changed:
        return "the recipe is the same, but the files that it names (prompts, model, oracle) have changed"
    return "changed: " + ", ".join(changed)
