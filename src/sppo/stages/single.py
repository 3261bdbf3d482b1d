"""Running a single stage of one iteration: `sppo sample RUN`, `sppo train RUN` and so on."""

from sppo.executors.local import Local
from sppo.progress import Terminal
from sppo.recipe import Recipe
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.guard import enforce
from sppo.stages.evaluate import evaluate_base
from sppo.stages.iterations import Iteration, StageName, iterations
from sppo.stages.open_run import open_run
from sppo.stages.prompts import all_prompts
from sppo.stages.run import Run
from sppo.stages.stage import Stage
from sppo.stages.summary import Summary


def run_stage(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    name: StageName,
    iteration: int | None = None,
    *,
    redo_stale: bool = False,
) -> None:
    """Run one stage of one iteration.

    Args:
        recipe: the run's recipe.
        folder: the run's folder; made if it is not there.
        terminal: where progress is shown.
        name: the name of the stage.
        iteration: the number of the iteration; None: the first iteration that lacks the stage.
        redo_stale: remove stale stages, as in :func:`sppo.selfplay.run`.

    Raises:
        RunError: a stage that this one reads is not done.
        GuardStop: an earlier iteration has failed, or this one has just failed.
    """
    with folder.locked(), Local(recipe) as executor:
        run = open_run(recipe, folder, terminal, executor, redo_stale=redo_stale)
        summary = Summary(run)
        for planned in iterations(run):
            lacks_it = name not in planned.stages or not planned.stages[name].is_done()
            first = iteration is None and (lacks_it or planned.number == recipe.iterations)
            if planned.number == iteration or first:
                stage = _make(run, planned, name)
                files = stage.files
                terminal.show(f"{files.title}: done, in {files.folder}")
                terminal.show_json(
                    {
                        "stage": name,
                        "iteration": planned.number,
                        "folder": str(files.folder),
                        "record": stage.record(),
                    }
                )
                if name == "evaluate" and summary.count == planned.number - 1:
                    summary.show_row(planned)
                    summary.add(planned)
                    enforce(recipe.guard, planned.alarms, planned.number, folder.path, terminal)
                return
            if planned.evaluate.is_done():
                summary.add(planned, show=False)
                enforce(recipe.guard, planned.alarms, planned.number, folder.path, terminal)


def _make(run: Run, iteration: Iteration, name: StageName) -> Stage:
    """Make a stage whose inputs are done; missing prompts, and a missing evaluation of the base, are made as well."""
    order = list(iteration.stages)
    if name not in order:
        raise RunError(
            f"algorithm.type: {run.recipe.algorithm.type} needs no {name} stage, so there is nothing to make; run the"
            f" others: {', '.join(order)}"
        )
    for needed in order[: order.index(name)]:
        stage = iteration.stages[needed]
        if not stage.is_done():
            raise RunError(
                f"{stage.files.title} is not done; run `sppo {needed} {storage.shown(run.folder.path)}"
                f" --iteration {iteration.number}` first"
            )
    if name == "evaluate":
        all_prompts(run)[0].make()
        evaluate_base(run).make()
    else:
        iteration.select.prompts.make()
    stage = iteration.stages[name]
    stage.make()
    return stage
