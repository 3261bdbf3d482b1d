"""The dry run: what a recipe will do, computed without a download and without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sppo import cost
from sppo import prompts as prompt_sources
from sppo.policy import load as policies
from sppo.policy.chat_format import model_path
from sppo.policy.memory import BYTES
from sppo.progress import Terminal, counted_text
from sppo.reading import read_mapping
from sppo.recipe import OracleSection, Policy, PromptSource, Recipe, RecipeError, Training, load
from sppo.recipe.run_policies import RunPolicy, in_run
from sppo.rundir.guard import few_steps, said_once
from sppo.rundir.summary import settings_text
from sppo.sampling.dtype import weights_dtype
from sppo.stages import watched_tasks
from sppo.stages.models import Models
from sppo.stages.oracle_trial import try_oracles
from sppo.training import CHECKPOINTS_KEPT, memory
from sppo.training.schedule import Steps, learning_rate, plan

# Token ids and text of a response on disk, compressed to about a half.
_DISK_BYTES_PER_TOKEN = 4.0
_PROMPT_TOKENS = 100.0
_CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Estimate:
    """The plan of a recipe in numbers. A number is None if it cannot be known without a download.

    `training_bytes` is the memory on each device, or on all devices together if their number is known only when
    training begins. `pack_tokens` is the size of a pack, and `pack_bytes` what its activations take. `prompt_notes` say from
    which columns prompts are taken.
    """

    prompts: list[int | None]
    held_out: int | None
    steps: list[Steps | None]
    parameters: float | None
    training_bytes: float | None
    pack_tokens: int | None
    pack_bytes: float | None
    checkpoint_bytes: float | None
    policy_bytes: float | None
    table_bytes: float | None
    prompt_notes: list[str]


def estimate(recipe: Recipe) -> Estimate:
    """Estimate what a recipe will do from the recipe and from local files."""
    prompts, held_out, notes = _prompt_counts(recipe)
    settings = recipe.training
    steps = [
        None
        if count is None
        else plan(
            count,
            batch_prompts=settings.batch_prompts,
            epochs=settings.epochs,
            keep_epochs=settings.keep_epochs,
            warmup_ratio=settings.warmup_ratio,
        )
        for count in prompts
    ]
    parameters = memory.count_parameters(recipe.policy)
    training = memory.training_bytes(recipe.policy, recipe.training)
    checkpoint = (
        0.0 if settings.checkpoint_steps is None else memory.checkpoint_bytes(recipe.policy, recipe.training)
    )
    saved = tables = None
    if parameters is not None:
        saved = parameters * BYTES[settings.save_dtype or recipe.policy.dtype] * recipe.iterations
        if settings.adapter is not None and not settings.adapter.merge:
            adapter = memory.count_adapter(recipe.policy, recipe.training)
            saved = None if adapter is None else adapter[1] * BYTES["float32"] * recipe.iterations
    known = [count for count in prompts if count is not None]
    if len(known) == len(prompts):
        tokens = sum(known) * recipe.sampling.k * recipe.sampling.max_new_tokens
        tables = tokens * _DISK_BYTES_PER_TOKEN
    return Estimate(
        prompts,
        held_out,
        steps,
        parameters,
        training,
        memory.pack_tokens(recipe.policy, recipe.training),
        memory.pack_bytes(recipe.policy, recipe.training),
        None if checkpoint is None else CHECKPOINTS_KEPT * checkpoint,
        saved,
        tables,
        notes,
    )


@dataclass(frozen=True)
class Rates:
    """The speed of each stage and the lengths of texts, from which the time of a run is estimated.

    Attributes:
        flops: FLOP/s of one device in each stage.
        prompt_tokens: mean length of a prompt.
        response_tokens: mean length of a response; None assumes the longest that the recipe allows.
        source: where the rates come from, in words.
    """

    flops: dict[str, float]
    prompt_tokens: float
    response_tokens: float | None
    source: str


def read_rates(name: str, tokens: str | None) -> Rates:
    """Read the rates of a GPU from a table, or those of a finished run from its records.

    Args:
        name: one of :data:`sppo.cost.PEAKS`, or a run folder.
        tokens: mean lengths as `PROMPT,RESPONSE`, which replace those of the run.

    Raises:
        RecipeError: there is no such GPU or run, or the tokens are not two numbers.
    """
    prompt, response = _PROMPT_TOKENS, None
    if name.lower() in cost.PEAKS:
        flops, source = cost.hardware_rates(name.lower()), f"{name} at an assumed utilisation"
    else:
        run = Path(name)
        if not (run / "recipe.yaml").is_file():
            raise RecipeError(
                f"--rates {name}: neither a finished run nor one of the GPUs {', '.join(cost.PEAKS)}"
            )
        parameters = memory.count_parameters(load(run / "recipe.yaml").policy)
        if parameters is None:
            raise RecipeError(f"--rates {name}: the number of parameters of its policy is not known")
        loads = cost.loads_of_run(run, parameters)
        flops, source = cost.rates_of_run(run, parameters), str(run)
        last = loads[max(loads)]
        prompt, response = last.prompt_tokens, last.response_tokens
    if tokens is not None:
        try:
            prompt, response = (float(part) for part in tokens.split(","))
        except ValueError:
            raise RecipeError(
                f"--tokens {tokens}: must be two numbers, PROMPT,RESPONSE, such as 100,300"
            ) from None
    return Rates(flops, prompt, response, source)


def seconds(recipe: Recipe, estimated: Estimate, rates: Rates) -> list[dict[str, float] | None]:
    """Estimate the seconds of each stage of each iteration; `auto` counts as one device.

    An iteration is None if the number of its prompts or of the policy's parameters is not known.
    """
    k, training, evaluation = _sampled(recipe), recipe.training, recipe.evaluation
    annotates = _oracles(recipe, recipe.oracle)
    evaluates = [*annotates, *_oracles(recipe, evaluation.oracle)]
    counts = {**recipe.workers.model_dump(), "train": training.devices}
    devices = {name: count for name, count in counts.items() if isinstance(count, int)}
    return [
        None
        if prompts is None or estimated.parameters is None or estimated.held_out is None
        else cost.Load(
            parameters=estimated.parameters,
            prompts=prompts,
            k=k,
            pairs=pairs_per_prompt(recipe),
            trained=_trained(recipe),
            epochs=training.keep_epochs or training.epochs,
            held_out=estimated.held_out,
            responses=evaluation.responses,
            prompt_tokens=rates.prompt_tokens,
            response_tokens=_response_tokens(recipe, rates),
            oracle_parameters=sum(oracle.parameters() for oracle in annotates),
            evaluation_parameters=sum(oracle.parameters() for oracle in evaluates),
            oracle_response_parameters=sum(oracle.response_parameters() for oracle in annotates),
            evaluation_response_parameters=sum(oracle.response_parameters() for oracle in evaluates),
            gradient_checkpointing=bool(training.gradient_checkpointing),
            opponents=1 if number == 1 else 2,
        ).seconds(rates.flops, devices)
        for number, prompts in enumerate(estimated.prompts, 1)
    ]


def _response_tokens(recipe: Recipe, rates: Rates) -> float:
    limit = recipe.sampling.max_new_tokens
    return min(rates.response_tokens or limit, limit)


def _show_seconds(recipe: Recipe, estimated: Estimate, rates: Rates, terminal: Terminal) -> None:
    terminal.show(
        f"\nseconds     estimated (docs/scaling.md) from the rates of {rates.source}, for {rates.prompt_tokens:.0f} tokens"
        f" in a prompt and {_response_tokens(recipe, rates):.0f} in a response; `auto` counts as one device"
    )
    terminal.show(_row(("iteration", *cost.STAGES)), "bold")
    for number, stages in enumerate(seconds(recipe, estimated, rates), 1):
        cells = ["?"] if stages is None else [f"{stages[name]:,.0f}" for name in cost.STAGES]
        terminal.show(_row((str(number), *cells)))


def _sampled(recipe: Recipe) -> int:
    """The number of responses that are sampled for each prompt."""
    return recipe.sampling.k if recipe.algorithm.samples else 0


def pairs_per_prompt(recipe: Recipe) -> int:
    """The most pairs that the oracle compares for a prompt: of its responses, and of these with anchors."""
    if recipe.oracle is None or not recipe.algorithm.preferences:
        return 0
    return recipe.comparisons.most_pairs + recipe.oracle.further_pairs(recipe.sampling.k)


def _trained(recipe: Recipe) -> int:
    """The largest number of a prompt's responses that are trained on."""
    k = _sampled(recipe)
    if recipe.algorithm.preferences:
        k = {"best_worst": min(2, k), "all": k, "best_worst_random": min(3, k)}[recipe.selection]
    return k + recipe.algorithm.demonstrations


def show(recipe: Recipe, terminal: Terminal, rates: Rates | None = None) -> None:
    """Print what a recipe will do; with rates, also how long it would take.

    Raises:
        ValueError: something on this machine cannot be used as the recipe says, as `sppo run` would find out later.
    """
    check(recipe)
    tasks = _task_lines(recipe)
    estimated = estimate(recipe)
    _show_settings(recipe, estimated, terminal)
    _show_iterations(recipe, estimated, terminal)
    steps = estimated.steps[0]
    if steps is not None:
        terminal.show(f"\nlearning rate in iteration 1: {_curve_text(recipe, steps)}")
    noun = "held-out prompt"
    held_out = f"? {noun}s" if estimated.held_out is None else counted_text(estimated.held_out, noun)
    terminal.show(
        f"evaluation  {held_out} x {counted_text(recipe.evaluation.responses, 'response')}, after each iteration"
    )
    for line in tasks:
        terminal.show(line)
    terminal.show(
        f"memory      {size_text(estimated.training_bytes)} for weights, gradients and optimiser state"
        f" {_where(recipe.training)}; {_on_top(recipe, estimated)}\n"
        f"disk        {size_text(estimated.policy_bytes)} of policies and at most {size_text(estimated.table_bytes)} of tables;"
        f" up to {size_text(estimated.checkpoint_bytes)} of checkpoints while training"
    )
    if rates is not None:
        _show_seconds(recipe, estimated, rates, terminal)
    terminal.show(f"threads     {_threads_text(recipe)}")
    planned = [(number, plan) for number, plan in enumerate(estimated.steps, 1) if plan is not None]
    said = [(number, warning) for number, plan in planned if (warning := few_steps(plan.kept)) is not None]
    warnings = said_once(said)
    for warning in warnings:
        terminal.show(f"WARNING: {warning}", "bold yellow")
    times = None if rates is None else seconds(recipe, estimated, rates)
    terminal.show_json({**asdict(estimated), "seconds": times, "warnings": warnings})
    if steps is not None and not any(_curve(recipe, steps)):
        terminal.show("note        every step has a learning rate of 0: nothing would be learnt", "yellow")
    elif steps is not None and steps.kept < steps.warmup:
        terminal.show(
            f"note        the schedule is left during its warm-up ({steps.warmup:,} steps): the peak"
            f" {recipe.training.learning_rate:g} is never reached, the highest rate used is"
            f" {max(_curve(recipe, steps)):.3g}",
            "yellow",
        )


def _task_lines(recipe: Recipe) -> list[str]:
    """What each watched task costs; those whose data lie on this machine are loaded.

    Raises:
        WatchedTaskError: a task does not load, or lm-eval does not know it.
    """
    lines = []
    for config in recipe.evaluation.tasks:
        if not watched_tasks.is_local(config):
            watched_tasks.check_name(config)
            cost = f"{config.items} items, whose length is known only once the task's data are downloaded"
        else:
            with watched_tasks.opened(config) as task:
                items = task.draw(recipe.seed)
                requests, characters = task.requests(items)
            tokens = characters / requests / _CHARACTERS_PER_TOKEN
            cost = (
                f"{len(items):,} of {task.size:,} items, {requests:,} requests of about {tokens:,.0f} tokens"
            )
        lines.append(f"            {config.name}: {cost}, for the base and after each iteration")
    return lines


def check(recipe: Recipe) -> None:
    """Check what lies on this machine beside the prompts: the policy's context, and oracle functions.

    Raises:
        ValueError: the message names the key and the way out.
    """
    policies.check_place(recipe.policy.model)
    context, limit = _context(recipe), recipe.sampling.max_new_tokens
    if context is not None and limit >= context:
        raise RecipeError(
            f"sampling.max_new_tokens: {limit}, but {recipe.policy.model!r} takes {context} tokens in all; lower it, so"
            " that a prompt fits as well"
        )
    try_oracles(Models(recipe), local_only=True)


def _context(recipe: Recipe) -> int | None:
    """The longest sequence of the policy by its config.json; None if it is not on this disk or does not say."""
    try:
        folder = policies.base_folder(Path(model_path(recipe.policy.model)))
        config = read_mapping(folder / "config.json")
    except (OSError, ValueError, KeyError):
        return None
    config = {**config, **config.get("text_config", {})}
    return config.get("max_position_embeddings") or config.get("n_positions")


def _show_settings(recipe: Recipe, estimated: Estimate, terminal: Terminal) -> None:
    policy, sampling, training = recipe.policy, recipe.sampling, recipe.training
    oracle = "none: no win rates are measured" if recipe.oracle is None else settings_text(recipe.oracle)
    only = "" if recipe.oracle is None or recipe.algorithm.preferences else "; for win rates only"
    kept = "" if training.keep_epochs is None else f", the first {training.keep_epochs:g} of them kept"
    sampled_in = weights_dtype(
        sampling, policy.dtype, estimated.parameters or 0, policy.quantization is not None
    )
    terminal.show(
        f"policy      {policy.model}, {parameters_text(estimated.parameters)}, {policy.dtype}\n"
        f"oracle      {oracle}{only}\n"
        f"algorithm   {settings_text(recipe.algorithm)}; {_learnt_from(recipe)}; seed {recipe.seed}\n"
        f"sampling    {sampling.engine}: temperature {sampling.temperature:g}, top-p {sampling.top_p:g},"
        f" at most {sampling.max_new_tokens} new tokens, in {sampled_in}\n"
        f"training    {training.optimizer}, {counted_text(training.batch_prompts, 'prompt')} a step; a {training.schedule} schedule"
        f" over {training.epochs:g} epoch{'' if training.epochs == 1 else 's'}{kept}; peak {training.learning_rate:g}"
    )
    for note in estimated.prompt_notes:
        terminal.show(f"prompts     {note}")
    terminal.show("")


def _show_iterations(recipe: Recipe, estimated: Estimate, terminal: Terminal) -> None:
    header = ("iteration", "prompts", "responses", "pairs compared", "trained on", "optimiser steps")
    terminal.show(_row(header), "bold")
    k, pairs, trained = _sampled(recipe), pairs_per_prompt(recipe), _trained(recipe)
    for number, (prompts, steps) in enumerate(zip(estimated.prompts, estimated.steps, strict=True), 1):
        if prompts is None or steps is None:
            cells = ["?  set `rows` of its source to the number of its prompts"]
        else:
            of_all = f" of {steps.scheduled:,}" if steps.kept < steps.scheduled else ""
            counts = [f"{prompts:,}", f"{prompts * k:,}", f"{prompts * pairs:,}"]
            cells = [*counts, f"at most {prompts * trained:,}", f"{steps.kept:,}{of_all}"]
        terminal.show(_row((str(number), *cells)))


def _learnt_from(recipe: Recipe) -> str:
    k = recipe.sampling.k
    if recipe.algorithm.preferences:
        return f"{recipe.selection} of K = {k}"
    return f"demonstrations against K = {k}" if recipe.algorithm.samples else "demonstrations"


def _on_top(recipe: Recipe, estimated: Estimate) -> str:
    """What comes on top of weights, gradients and optimiser state, in words."""
    size, adapter = estimated.pack_tokens, recipe.training.adapter
    packs = "activations come on top"
    if size is not None and estimated.pack_bytes is not None:
        held = size_text(estimated.pack_bytes)
        packs = f"activations of {size:,} tokens side by side (training.pack_tokens) take {held} on top"
    if adapter is None or memory.count_adapter(recipe.policy, recipe.training) is not None:
        return packs
    return f"{packs}, and so does the adapter (16 bytes x {adapter.r} x (rows + columns) of each layer, with AdamW)"


def _threads_text(recipe: Recipe) -> str:
    if recipe.cpu_threads is not None:
        return f"{recipe.cpu_threads} on a CPU (cpu_threads)"
    return (
        "on a CPU as many as a measurement of about a second finds fastest when the run begins, which then keeps them;"
        " cpu_threads states a number"
    )


def _where(training: Training) -> str:
    """The devices that hold weights, gradients and optimiser state, in words."""
    if training.sharding is not None and training.devices == "auto":
        return f"over all training devices together (devices: auto, sharding: {training.sharding})"
    sharded = "" if training.sharding is None else f", sharding: {training.sharding}"
    return f"on each training device (devices: {training.devices}{sharded})"


def _row(cells: tuple[str, ...]) -> str:
    return "".join(cell.rjust(18 if column else 9) for column, cell in enumerate(cells))


def _curve(recipe: Recipe, steps: Steps) -> list[float]:
    training = recipe.training
    return [
        learning_rate(step, steps, training.schedule, training.learning_rate) for step in range(steps.kept)
    ]


def _curve_text(recipe: Recipe, steps: Steps) -> str:
    curve = _curve(recipe, steps)
    top = curve.index(max(curve))
    points = sorted({0, top, len(curve) // 4, len(curve) // 2, 3 * len(curve) // 4, len(curve) - 1})
    return ", ".join(f"{curve[step]:.3g} at step {step + 1:,}" for step in points)


def _prompt_counts(recipe: Recipe) -> tuple[list[int | None], int | None, list[str]]:
    """The prompts of each iteration and the held-out ones, None if a source is not on this disk; and notes on them."""
    settings, iterations = recipe.prompts, recipe.iterations
    notes: list[str] = []
    counts = [_source_count(source, notes, settings.invalid) for source in settings.train_sources]
    sizes = [count for count in counts if count is not None]
    if not isinstance(settings.held_out, int):
        held_out = _source_count(settings.held_out, notes, settings.invalid)
    else:
        held_out = settings.held_out
        if len(sizes) == len(counts):
            shares = prompt_sources.held_out_shares(sizes, held_out)
            sizes = [size - share for size, share in zip(sizes, shares, strict=True)]
            counts = [*sizes]
    if len(counts) == 1 and not sizes:
        counts = [settings.per_iteration] * iterations
    elif len(counts) == 1:
        portions = prompt_sources.portions(sizes[0], iterations, settings.per_iteration, settings.parts)
        counts = [*map(len, portions)]
        if 0 in counts:
            raise prompt_sources.PromptError(
                f"iterations: {settings.parts or iterations}, but only {counted_text(sizes[0], 'prompt')} to train on;"
                " lower iterations or give more prompts"
            )
    if settings.per_iteration is not None:
        counts = [None if count is None else min(count, settings.per_iteration) for count in counts]
    return counts, held_out, notes


def _source_count(source: PromptSource, notes: list[str], invalid: str) -> int | None:
    if not prompt_sources.is_local(source):
        if prompt_sources.names_a_file(source):
            raise prompt_sources.PromptError(f"prompts: there is no file {source.source!r} here")
        return source.rows if source.limit is None else min(source.limit, source.rows or source.limit)
    counts = prompt_sources.survey(source)
    if counts.skipped and invalid == "error":
        raise prompt_sources.PromptError(
            f"{next(iter(counts.first_skipped.values()))}; mend it, or set prompts.invalid: skip to leave such prompts out"
        )
    notes += counts.notes()
    return counts.read - counts.skipped.total()


def _oracles(recipe: Recipe, oracle: OracleSection | None) -> list[OracleSection]:
    """The oracle, if there is one; every policy of the run that it computes with is as large as the base."""
    policies: dict[RunPolicy, Policy] = {"base": recipe.policy, "current": recipe.policy}
    return [] if oracle is None else [in_run(oracle, policies, recipe.sampling)]


def parameters_text(value: float | None) -> str:
    """A number of parameters in words, such as 135M parameters."""
    if value is None:
        return "parameters unknown before the download (or set policy.parameters)"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit} parameters"
    return f"{value:g} parameters"


def size_text(value: float | None) -> str:
    """A number of bytes in words, such as 2.15 GB."""
    if value is None:
        return "an unknown size"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"
