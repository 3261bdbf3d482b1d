"""Algorithm 1: the loop over iterations and stages.

for t in 1..T:
    y_1..K ~ pi_t(. | x)                                    sample
    P(y_i > y_j | x) for every pair                         annotate
    P^(y_i > pi_t | x) = mean_j P(y_i > y_j | x)            select
    pi_{t+1} = argmin E (log pi/pi_t - eta (P^ - 1/2))^2    train
    win rate against the base and against pi_t              evaluate
"""

from collections.abc import Iterator
from typing import Any

from sppo import sampling, training
from sppo.executors.local import Executor
from sppo.progress import Terminal
from sppo.recipe import Recipe, RecipeError, dump, load
from sppo.rundir import folder as rundir
from sppo.rundir import storage, summary
from sppo.rundir.folder import RunError, RunFolder, StageFolder, StaleRun
from sppo.stages.all import HELD_OUT, StageName, Stages, Turn


class GuardStop(RuntimeError):
    """The guard has stopped the run; everything computed so far is kept."""


def run(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    executor: Executor | None = None,
    *,
    redo_stale: bool = False,
) -> dict[str, Any]:
    """Play the whole recipe, from wherever the run folder stands.

    Args:
        recipe: what to do.
        folder: the run's folder; made if it is not there.
        terminal: where progress is shown.
        executor: where shards and policies are computed; None: on this machine.
        redo_stale: remove stages that were computed from something else, instead of refusing.

    Returns:
        The run's summary, as in summary.json.

    Raises:
        StaleRun: the folder holds stages of another recipe.
        GuardStop: an iteration failed and the recipe says stop.
    """
    with folder.locked():
        stages = open_run(recipe, folder, terminal, executor, redo_stale=redo_stale)
        for number in range(recipe.iterations + 1):
            stages.prompts(number)
        stages.evaluate(HELD_OUT, stages.base, (HELD_OUT, stages.base))
        summary.show_header(terminal, stages)
        played: list[Turn] = []
        for turn in turns(stages):
            evaluated = play(stages, turn, "evaluate", run_upstream=True)
            played.append(turn)
            summary.show_iteration(terminal, stages, played)
            _judge(terminal, stages, turn.number, evaluated)
        return summary.finish(terminal, stages, played)


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
        recipe: of the run.
        folder: the run's folder; made if it is not there.
        terminal: where progress is shown.
        name: the stage.
        iteration: which one; None: the first that lacks it.
        redo_stale: as in :func:`run`.

    Raises:
        RunError: what the stage reads is not done.
        GuardStop: an iteration before it has failed, or this one has just been found to fail.
    """
    with folder.locked():
        stages = open_run(recipe, folder, terminal, redo_stale=redo_stale)
        played: list[Turn] = []
        for turn in turns(stages):
            lacks_it = (
                turn.number == recipe.iterations or name not in turn.stages or not turn.stages[name].is_done()
            )
            if turn.number == iteration or (iteration is None and lacks_it):
                done = play(stages, turn, name, run_upstream=False)
                terminal.say(f"{done.title}: done, in {done.folder}")
                if name == "evaluate" and len(played) == turn.number - 1:
                    summary.show_iteration(terminal, stages, [*played, turn])
                    _judge(terminal, stages, turn.number, done)
                return
            evaluated = turn.stages["evaluate"]
            if evaluated.is_done():
                played.append(turn)
                _judge(terminal, stages, turn.number, evaluated)


def turns(stages: Stages) -> Iterator[Turn]:
    """The iterations one after another, each planned when the one before it has been judged."""
    previous, accepted = HELD_OUT, [stages.base]
    for number in range(1, stages.recipe.iterations + 1):
        policy = accepted[-1]
        reference_policies = tuple(
            accepted[s - 1] for s in stages.recipe.algorithm.reference_policies(len(accepted))
        )
        turn = Turn(number, policy, previous, reference_policies, {})
        if stages.recipe.algorithm.samples:
            turn.stages["sample"] = stages.sample_stage(number, policy)
        if stages.recipe.algorithm.preferences:
            turn.stages["annotate"] = stages.annotate_stage(number, turn.stages["sample"])
        turn.stages["select"] = selected = stages.select_stage(
            number, turn.read_by_select(), reference_policies
        )
        turn.stages["train"] = trained = stages.train_stage(number, selected)
        candidate = stages.trained(trained)
        turn.stages["evaluate"] = evaluated = stages.evaluate_stage(number, candidate, policy)
        yield turn
        if (
            stages.recipe.guard.on_failure != "fall_back"
            or not evaluated.is_done()
            or not stages.alarms(evaluated)
        ):
            accepted.append(candidate)
            previous = number


def play(stages: Stages, turn: Turn, name: StageName, *, run_upstream: bool) -> StageFolder:
    """Run one stage of an iteration.

    Args:
        stages: of the run.
        turn: the iteration.
        name: the stage.
        run_upstream: run what it reads as well, where that is not done, instead of refusing.

    Raises:
        RunError: what it reads is not done.
    """
    order = list(turn.stages)
    if name not in turn.stages:
        raise RunError(
            f"algorithm {stages.recipe.algorithm.type} learns from demonstrations: there is no {name} stage"
        )
    if run_upstream and order.index(name) >= order.index("select"):
        stages.sample_and_annotate(turn.number, turn.policy)
    for needed in order[: order.index(name)]:
        if run_upstream:
            _play_one(stages, turn, needed)
        elif not turn.stages[needed].is_done():
            raise RunError(
                f"{turn.stages[needed].title} is not done; run `sppo {needed} {storage.shown(stages.run.path)}"
                f" --iteration {turn.number}` first"
            )
    return _play_one(stages, turn, name)


def _play_one(stages: Stages, turn: Turn, name: StageName) -> StageFolder:
    of = turn.stages
    match name:
        case "sample":
            return stages.sample(turn.number, turn.policy)
        case "annotate":
            return stages.annotate(turn.number, of["sample"])
        case "select":
            return stages.select(turn.number, turn.policy, turn.read_by_select(), turn.reference_policies)
        case "train":
            return stages.train(turn.number, turn.policy, of["select"], turn.reference_policies)
        case "evaluate":
            stages.evaluate(HELD_OUT, stages.base, (HELD_OUT, stages.base))
            return stages.evaluate(turn.number, stages.trained(of["train"]), (turn.previous, turn.policy))


def open_run(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    executor: Executor | None = None,
    *,
    redo_stale: bool = False,
) -> Stages:
    """The stages of a run folder, after making sure that what lies there belongs to the recipe.

    Raises:
        StaleRun: it does not; the message names the changed keys and the stages that are stale.
    """
    training.check(recipe.training, recipe.report_to, recipe.policy.quantization)
    sampling.check(recipe.sampling)
    stages = Stages(recipe, folder, terminal, executor)
    stages.check_adapter()
    stages.executor.check()
    recorded = folder.path / "recipe.yaml"
    planned = [stages.prompts_stage(number) for number in range(recipe.iterations + 1)]
    planned.append(stages.evaluate_stage(HELD_OUT, stages.base, stages.base))
    planned += [stage for turn in turns(stages) for stage in turn.stages.values()]
    stale = [stage for stage in planned if stage.is_stale()]
    if stale and not redo_stale:
        names = "\n".join(f"  {stage.title}" for stage in stale)
        raise StaleRun(
            f"{storage.shown(folder.path)} holds a run of another recipe; {_changes(recorded, recipe)}. These stages are stale:\n"
            f"{names}\nChoose another folder with --run-dir, or remove and redo them with --redo-stale"
        )
    for stage in stale:
        terminal.say(f"removed as stale: {stage.title}", "yellow")
        stage.clear()
        folder.forget_metrics(stage.iteration, stage.name)
    if stale:
        storage.remove(folder.path / "summary.json")
    rundir.write_text(recorded, summary.versions() + dump(recipe))
    return stages


def _changes(recorded: Any, recipe: Recipe) -> str:
    try:
        before = summary.flatten(load(recorded).model_dump(mode="json"))
    except RecipeError:
        return "its recipe.yaml cannot be read"
    after = summary.flatten(recipe.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if not changed:
        return "the recipe is the same, but the files that it names (prompts, model, oracle) have changed"
    return "changed: " + ", ".join(changed)


def _judge(terminal: Terminal, stages: Stages, number: int, evaluated: StageFolder) -> None:
    """Say loudly that an iteration has failed, if it has, and do what the recipe says."""
    found = stages.alarms(evaluated)
    if not found:
        return
    action = stages.recipe.guard.on_failure
    terminal.say(f"\nWARNING: iteration {number} has failed:", "bold red")
    for reason in found:
        terminal.say(f"  - {reason}", "red")
    if action == "stop":
        raise GuardStop(
            f"stopped after iteration {number}: {'; '.join(found)}. Everything is kept in"
            f" {storage.shown(stages.run.path)}. Lower"
            " training.learning_rate or algorithm.eta and start again in another folder (--run-dir), or go on"
            " from here with --set guard.on_failure=keep or fall_back"
        )
    kept = "it is kept" if action == "keep" else "the run falls back to the previous policy"
    terminal.say(f"  guard.on_failure is {action}: {kept}\n", "red")
