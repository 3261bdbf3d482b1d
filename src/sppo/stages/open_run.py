"""Opening a run folder: its content must belong to the recipe; stale stages are refused, or removed on demand."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sppo import training
from sppo.executors import Executor
from sppo.executors.local import Local, computes_with_a_model, count_workers
from sppo.policy import cpu_threads
from sppo.progress import Terminal, counted_text
from sppo.recipe import Recipe, RecipeError, dump, load
from sppo.rundir import storage
from sppo.rundir.environment import CPU_THREADS, changes, environment, header, read_header
from sppo.rundir.folder import RunFolder, StageFolder, StaleRun, read_stage_record, write_text
from sppo.rundir.records import holds_digest, with_digest
from sppo.rundir.summary import flatten
from sppo.stages.capabilities import Items
from sppo.stages.evaluate import evaluate_base
from sppo.stages.iterations import iterations
from sppo.stages.jobs import Kind
from sppo.stages.models import Models
from sppo.stages.oracle_trial import try_oracles
from sppo.stages.prompts import all_prompts
from sppo.stages.run import Run
from sppo.training import memory


def open_run(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    executor: Executor | None = None,
    *,
    redo_stale: bool = False,
) -> Run:
    """Open the run of a folder, after making sure that the folder's content belongs to the recipe.

    What the recipe needs (engines, devices, prompts, oracles) is checked only if something is left to compute, and before
    stale stages are removed.

    Raises:
        StaleRun: the content belongs to another recipe; the message names the changed keys and the stale stages.
        ValueError: something that the recipe needs is missing or wrong.
    """
    is_given = recipe.cpu_threads is not None
    recipe = _keep_parts(recipe, folder, terminal)
    recipe = _keep_cpu_threads(_keep_pack_tokens(recipe, folder), folder)
    executor = executor or Local(recipe)
    run = _run(recipe, folder, terminal, executor)
    planned = planned_files(run)
    done = _done(run, planned)
    stale = [stage for stage in planned if stage.is_stale()]
    if stale and not redo_stale:
        raise StaleRun(_why_stale(run, stale))
    _say_what_is_damaged(run, planned)
    unfinished = bool(stale) or not all(done)
    if unfinished:
        run = run if is_given else _choose_cpu_threads(run, planned)
        check(run)
        if not all(stage.is_done() for prompts in all_prompts(run) for stage in prompts.all_files()):
            _ = run.split_prompts  # reads and checks all prompts
        if recipe.evaluation.tasks and not Items(run).is_done():
            _ = run.watched_items  # reads and checks all watched tasks
        try_oracles(run.models)
    for stage in stale:
        terminal.say(f"removed as stale: {stage.title}", "yellow")
        stage.clear()
        folder.forget_metrics(stage.iteration, stage.name)
    if stale:
        storage.remove(folder.path / "summary.json")
    _record(run, planned, unfinished=unfinished)
    return run


def _run(recipe: Recipe, folder: RunFolder, terminal: Terminal, executor: Executor) -> Run:
    executor.use(recipe)
    return Run(recipe, folder, terminal, executor)


def _keep_parts(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> Recipe:
    """The recipe with the number of parts that the run's prompts have been divided into before.

    A run with other `iterations` than before would otherwise divide its prompts anew, which makes everything stale.
    """
    prompts = recipe.prompts
    if prompts.parts is not None or prompts.per_iteration is not None or isinstance(prompts.train, list):
        return recipe
    try:
        before = load(folder.path / "recipe.yaml")
    except RecipeError:
        return recipe
    parts = before.prompts.parts or before.iterations
    if parts == recipe.iterations or before.prompts.model_copy(update={"parts": None}) != prompts:
        return recipe
    terminal.say(
        f"note: the prompts stay divided into {parts} parts, as this run was begun, so that what is done is kept;"
        f" iterations beyond {parts} begin with the first part again. prompts.parts: {recipe.iterations} divides them"
        " anew",
        "yellow",
    )
    return recipe.model_copy(update={"prompts": prompts.model_copy(update={"parts": parts})})


def _keep_pack_tokens(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with a number of tokens in a pack: the one that the run was begun with, or else one that fits this machine."""
    if recipe.training.pack_tokens != "auto":
        return recipe
    try:
        tokens = load(folder.path / "recipe.yaml").training.pack_tokens
    except RecipeError:
        tokens = "auto"
    if tokens == "auto":
        policy = recipe.policy.model_copy(update={"model": str(Models(recipe).base)})
        tokens = memory.pack_tokens(policy, recipe.training) or "auto"
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"pack_tokens": tokens})})


def _keep_cpu_threads(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with the number of threads that the run was begun with, if neither says anything else."""
    if recipe.cpu_threads is not None:
        return recipe
    try:
        return recipe.model_copy(update={"cpu_threads": load(folder.path / "recipe.yaml").cpu_threads})
    except RecipeError:
        return recipe


def _choose_cpu_threads(run: Run, planned: Sequence[StageFolder]) -> Run:
    """The run with a number of threads: the one that it was begun with, or else the one that is measured to be fast here.

    A run of an earlier version, or one with a damaged recipe.yaml, was begun with the number that its environment names. A
    number that was chosen on a larger machine is chosen anew. On a GPU the choice is left to torch.
    """
    from sppo.policy.load import default_device

    if default_device() != "cpu":
        return run
    recipe, cores = run.recipe, run.executor.cores()
    before = str(recipe.cpu_threads or _environment_before(run, planned).get(CPU_THREADS))
    if before.isdigit() and 1 <= int(before) <= cores:
        threads = int(before)
    else:
        threads = _measure_cpu_threads(run, max(1, cores // _most_processes(recipe)))
    recipe = recipe.model_copy(update={"cpu_threads": threads})
    return _run(recipe, run.folder, run.terminal, run.executor)


def _measure_cpu_threads(run: Run, most: int) -> int:
    if most == 1:
        return 1
    policy = run.recipe.policy
    seconds = cpu_threads.measure(
        run.base.folder, policy.dtype, most, trust_remote_code=policy.trust_remote_code
    )
    threads = cpu_threads.fewest_near_the_fastest(seconds)
    times = ", ".join(f"{1000 * taken:.3g} ms with {number}" for number, taken in seconds.items())
    run.terminal.say(
        f"cpu_threads: {threads}, as measured now for matrices of the policy's sizes ({times}); the run keeps this number"
    )
    return threads


def _most_processes(recipe: Recipe) -> int:
    """The most processes that compute with a model side by side on a machine without GPUs, where `auto` is one."""
    kinds = [kind for kind in get_args(Kind) if computes_with_a_model(recipe, kind)]
    return max(count_workers(recipe, kind, gpus=0) for kind in kinds)


def _done(run: Run, planned: Sequence[StageFolder]) -> list[bool]:
    """Whether each stage is done. Large files take long to check, so a run that was begun before shows a bar."""
    if not (run.folder.path / "recipe.yaml").is_file():
        return [stage.is_done() for stage in planned]
    done = []
    with run.terminal.bar(f"checking {storage.shown(run.folder.path)}", len(planned), "stages") as advance:
        for stage in planned:
            done.append(stage.is_done())
            advance(1)
    return done


def _say_what_is_damaged(run: Run, planned: Sequence[StageFolder]) -> None:
    for stage in planned:
        reason = stage.damage()
        if reason is not None:
            run.terminal.say(
                f"note: {reason}. {stage.title.capitalize()} counts as not done; what is whole of it is kept",
                "yellow",
            )
    for number in range(run.recipe.iterations + 1):
        lost = run.folder.lost_metrics(number)
        if lost:
            run.terminal.say(
                f"note: {counted_text(lost, 'line')} of {run.folder.metrics(number)} left out: damaged, lost, or interrupted"
                " by a kill",
                "yellow",
            )


def _record(run: Run, planned: Sequence[StageFolder], *, unfinished: bool) -> None:
    """Write recipe.yaml, and say how the packages and threads of this process differ from those before it.

    Neither is in a fingerprint, though both can change the last digits of a result, so a run that mixes them says so. A
    finished run keeps the recipe.yaml that it was computed with; what a damaged one said is taken from the stages' records.
    """
    path, resolved = run.folder.path / "recipe.yaml", dump(run.recipe)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text and not holds_digest(text):
        run.terminal.say(
            f"note: {path} has been changed since it was written (or an earlier version wrote it); the run goes on by the"
            " recipe that was given",
            "yellow",
        )
    elif text.partition("\n")[2].startswith(resolved) and not unfinished:
        return
    run.models.limit_threads()
    before = _environment_before(run, planned)
    now = environment()
    changed = changes(before, now)
    head = header(now if unfinished or not before else before)
    if changed and unfinished:
        run.terminal.say(
            f"note: this run was begun with other versions or threads ({', '.join(changed)}), so what is computed from now"
            " on can differ in its last digits from what would have been computed then; each stage's record says what it"
            " was computed with",
            "yellow",
        )
    if text != with_digest(head + resolved):
        write_text(path, with_digest(head + resolved))


def _environment_before(run: Run, planned: Sequence[StageFolder]) -> dict[str, str]:
    """What the run was computed with, as recipe.yaml says, or a stage's record if that is damaged; empty for a new run."""
    path = run.folder.path / "recipe.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text and not holds_digest(text):
        for stage in reversed(planned):
            record = read_stage_record(stage.record) or {}
            if "environment" in record:
                return dict(record["environment"])
    return read_header(text)


def planned_files(run: Run) -> list[StageFolder]:
    """The folders of all stages of the run."""
    stages = [*all_prompts(run), evaluate_base(run)]
    stages += [stage for iteration in iterations(run) for stage in iteration.stages.values()]
    return [files for stage in stages for files in stage.all_files()]


def check(run: Run) -> None:
    """Refuse, before anything is computed, a recipe that cannot work on this machine.

    Raises:
        ValueError: the message names the key and the way out.
    """
    from sppo.training import lora

    recipe = run.recipe
    training.check(recipe.training, recipe.report_to, recipe.policy.quantization)
    recipe.sampling.check()
    lora.check(
        recipe.training.adapter,
        run.base.folder,
        sampling=recipe.sampling,
        quantization=recipe.policy.quantization,
        trust_remote_code=recipe.policy.trust_remote_code,
    )
    run.executor.check()


def _why_stale(run: Run, stale: list[StageFolder]) -> str:
    shown, recorded = storage.shown(run.folder.path), run.folder.path / "recipe.yaml"
    names = "\n".join(f"  {stage.title}" for stage in stale)
    way_out = (
        "Choose another folder (--run-dir), or remove and redo them (--redo-stale, in Python redo_stale=True)"
    )
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
