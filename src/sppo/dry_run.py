"""The dry run: what a recipe will do, found out without a download and without torch."""

from dataclasses import dataclass
from pathlib import Path

from sppo import cost, randomness
from sppo import prompts as prompt_sources
from sppo.oracle.opponents import count_pairs, opponents
from sppo.policy import load as policies
from sppo.policy.chat_format import model_path
from sppo.progress import Terminal
from sppo.recipe import OracleSection, PromptSource, Recipe, RecipeError, Training, load
from sppo.rundir.summary import settings_text
from sppo.training import CHECKPOINTS_KEPT
from sppo.training.schedule import Steps, learning_rate, plan

_BYTES = {"float32": 4, "bfloat16": 2}
# 4 bits, and a scale of 8 bits for 64 weights that is scaled again for 256 of them
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Optimiser state in values per parameter, by the head of transformers' optimiser names.
_OPTIMISER_VALUES = {"adamw": 2.0, "rmsprop": 1.0, "sgd": 0.0, "adafactor": 0.1, "lion": 1.0, "adagrad": 1.0}
# A response's row on disk: its token ids and text, compressed by about a half.
_DISK_BYTES_PER_TOKEN = 4.0
_PROMPT_TOKENS = 100.0


@dataclass(frozen=True)
class Estimate:
    """What a recipe will do, in numbers; a number is None where it cannot be known without a download.

    `training_bytes` is the memory on each device, or on all together where their number is known only when training
    begins.
    """

    prompts: list[int | None]
    held_out: int | None
    steps: list[Steps | None]
    parameters: float | None
    training_bytes: float | None
    checkpoint_bytes: float | None
    policy_bytes: float | None
    table_bytes: float | None


def estimate(recipe: Recipe) -> Estimate:
    """Count and estimate, from the recipe and the files that lie here."""
    prompts, held_out = _prompt_counts(recipe)
    of = recipe.training
    steps = [
        None
        if count is None
        else plan(
            count,
            batch_prompts=of.batch_prompts,
            epochs=of.epochs,
            keep_epochs=of.keep_epochs,
            warmup_ratio=of.warmup_ratio,
        )
        for count in prompts
    ]
    parameters = _parameters(recipe)
    training = checkpoints = saved = tables = None
    if parameters is not None:
        adapter = _adapter(recipe)
        divided = of.devices if of.sharding is not None and isinstance(of.devices, int) else 1
        training = _training_bytes(recipe, parameters, adapter) / divided
        checkpoints = _checkpoint_bytes(recipe, parameters, adapter)
        saved = parameters * _BYTES[of.save_dtype or recipe.policy.dtype] * recipe.iterations
        if of.adapter is not None and not of.adapter.merge:
            saved = None if adapter is None else adapter[1] * _BYTES["float32"] * recipe.iterations
    known = [count for count in prompts if count is not None]
    if len(known) == len(prompts):
        tokens = sum(known) * recipe.sampling.k * recipe.sampling.max_new_tokens
        tables = tokens * _DISK_BYTES_PER_TOKEN
    return Estimate(prompts, held_out, steps, parameters, training, checkpoints, saved, tables)


@dataclass(frozen=True)
class Rates:
    """What seconds are estimated from: the speed of the stages, and the lengths of texts.

    Attributes:
        flops: FLOP/s of one device in each stage.
        prompt_tokens: mean length of a prompt.
        response_tokens: mean length of a response; None: as long as the recipe allows.
        source: where the rates come from, for people.
    """

    flops: dict[str, float]
    prompt_tokens: float
    response_tokens: float | None
    source: str


def read_rates(name: str, tokens: str | None) -> Rates:
    """The rates of a GPU, given its name, or those that a finished run has reached.

    Args:
        name: one of :data:`sppo.cost.PEAKS`, or a run folder.
        tokens: `PROMPT,RESPONSE`, means that take the place of the run's.

    Raises:
        RecipeError: there is no such GPU or run, or the tokens are not two numbers.
    """
    prompt, response = _PROMPT_TOKENS, None
    if name.lower() in cost.PEAKS:
        flops, source = cost.hardware_rates(name.lower()), f"{name} at an assumed utilisation"
    else:
        run = Path(name)
        if not (run / "recipe.yaml").is_file():
            raise RecipeError(f"--rates {name}: neither a finished run nor one of {', '.join(cost.PEAKS)}")
        parameters = _parameters(load(run / "recipe.yaml"))
        if parameters is None:
            raise RecipeError(f"--rates {name}: how many parameters its policy has is not known")
        loads = cost.loads_of_run(run, parameters)
        flops, source = cost.rates_of_run(run, parameters), str(run)
        last = loads[max(loads)]
        prompt, response = last.prompt_tokens, last.response_tokens
    if tokens is not None:
        try:
            prompt, response = (float(part) for part in tokens.split(","))
        except ValueError:
            raise RecipeError(f"--tokens {tokens}: give PROMPT,RESPONSE, e.g. 100,300") from None
    return Rates(flops, prompt, response, source)


def seconds(recipe: Recipe, found: Estimate, rates: Rates) -> list[dict[str, float] | None]:
    """The seconds of each stage of each iteration, `auto` counted as one device.

    An iteration is None where its prompts or the policy's parameters are not known.
    """
    of, k = recipe, _drawn(recipe)
    limit = of.sampling.max_new_tokens
    counts = {**of.workers.model_dump(), "train": of.training.devices}
    devices = {name: count for name, count in counts.items() if isinstance(count, int)}
    return [
        None
        if prompts is None or found.parameters is None or found.held_out is None
        else cost.Load(
            parameters=found.parameters,
            prompts=prompts,
            k=k,
            pairs=pairs_per_prompt(recipe),
            trained=_trained(recipe),
            epochs=of.training.keep_epochs or of.training.epochs,
            held_out=found.held_out,
            responses=of.evaluation.responses,
            prompt_tokens=rates.prompt_tokens,
            response_tokens=min(rates.response_tokens or limit, limit),
            oracle_parameters=_oracle_parameters(of.oracle),
            evaluation_parameters=_oracle_parameters(of.oracle) + _oracle_parameters(of.evaluation.oracle),
            gradient_checkpointing=of.training.gradient_checkpointing,
            opponents=1 if number == 1 else 2,
        ).seconds(rates.flops, devices)
        for number, prompts in enumerate(found.prompts, 1)
    ]


def _show_seconds(recipe: Recipe, found: Estimate, rates: Rates, terminal: Terminal) -> None:
    length = min(rates.response_tokens or recipe.sampling.max_new_tokens, recipe.sampling.max_new_tokens)
    terminal.say(
        f"\nseconds     an estimate (docs/scaling.md) by the rates of {rates.source}; {rates.prompt_tokens:.0f} tokens a"
        f" prompt and {length:.0f} a response, `auto` counted as one device"
    )
    terminal.say(_row(("iteration", *cost.STAGES)), "bold")
    for number, of_iteration in enumerate(seconds(recipe, found, rates), 1):
        cells = ["?"] if of_iteration is None else [f"{of_iteration[name]:,.0f}" for name in cost.STAGES]
        terminal.say(_row((str(number), *cells)))


def _drawn(recipe: Recipe) -> int:
    """Responses per prompt that are drawn."""
    return recipe.sampling.k if recipe.algorithm.samples else 0


def pairs_per_prompt(recipe: Recipe) -> int:
    """Pairs of a prompt's responses that the oracle is asked about."""
    if not recipe.algorithm.preferences:
        return 0
    k = recipe.sampling.k
    m = recipe.needed_oracle("annotation").compared_opponents() or k - 1
    return count_pairs(opponents(k, m, randomness.generator("opponents", recipe.seed, "any prompt")))


def _trained(recipe: Recipe) -> int:
    """Responses per prompt that are trained on, at most."""
    k = _drawn(recipe)
    if recipe.algorithm.preferences:
        k = {"best_worst": min(2, k), "all": k, "best_worst_random": min(3, k)}[recipe.selection]
    return k + recipe.algorithm.demonstrations


def show(recipe: Recipe, terminal: Terminal, rates: Rates | None = None) -> None:
    """Print what a recipe will do; with rates, how long it would take."""
    found = estimate(recipe)
    of, training = recipe, recipe.training
    terminal.say(f"policy      {of.policy.model}, {_count(found.parameters)} parameters, {of.policy.dtype}")
    oracle = "none: no win rates are measured" if of.oracle is None else settings_text(of.oracle)
    unasked = "" if of.oracle is None or of.algorithm.preferences else "; for win rates alone"
    terminal.say(f"oracle      {oracle}{unasked}")
    kept = "" if training.keep_epochs is None else f", the first {training.keep_epochs:g} of them kept"
    terminal.say(f"algorithm   {settings_text(of.algorithm)}; {_learnt_from(recipe)}; seed {of.seed}")
    terminal.say(
        f"sampling    {of.sampling.engine}: temperature {of.sampling.temperature:g}, top-p {of.sampling.top_p:g},"
        f" at most {of.sampling.max_new_tokens} new tokens"
    )
    terminal.say(
        f"training    {training.optimizer}, {training.batch_prompts} prompts a step; a {training.schedule} schedule"
        f" over {training.epochs:g} epochs{kept}; peak {training.learning_rate:g}\n"
    )
    k = _drawn(recipe)
    pick = _trained(recipe)
    terminal.say(
        _row(("iteration", "prompts", "responses", "pairs compared", "trained on", "optimiser steps")), "bold"
    )
    for number, (prompts, steps) in enumerate(zip(found.prompts, found.steps, strict=True), 1):
        if prompts is None or steps is None:
            terminal.say(
                _row((str(number), "?")) + "  set `rows` of its source to say how many prompts it has"
            )
            continue
        taken = (
            f"{steps.kept:,} of {steps.scheduled:,}" if steps.kept < steps.scheduled else f"{steps.kept:,}"
        )
        pairs = prompts * pairs_per_prompt(recipe)
        terminal.say(
            _row(
                (
                    str(number),
                    f"{prompts:,}",
                    f"{prompts * k:,}",
                    f"{pairs:,}",
                    f"at most {prompts * pick:,}",
                    taken,
                )
            )
        )
    for steps in found.steps[:1]:
        if steps is not None:
            terminal.say(f"\nlearning rate in iteration 1: {_curve_text(recipe, steps)}")
    held_out = "?" if found.held_out is None else f"{found.held_out:,}"
    terminal.say(
        f"evaluation  {held_out} held-out prompts x {of.evaluation.responses} responses, after each iteration\n"
        f"memory      {_size(found.training_bytes)} for weights, gradients and optimiser state {_where(training)};"
        f" activations{_on_top(recipe)} come on top\n"
        f"disk        {_size(found.policy_bytes)} of policies and at most {_size(found.table_bytes)} of tables;"
        f" up to {_size(found.checkpoint_bytes)} of checkpoints while training"
    )
    if rates is not None:
        _show_seconds(recipe, found, rates, terminal)
    for steps in found.steps[:1]:
        if steps is not None and not any(_curve(recipe, steps)):
            terminal.say("note        every step has a learning rate of 0: nothing would be learnt", "yellow")
        elif steps is not None and steps.kept < steps.warmup:
            highest = max(_curve(recipe, steps))
            terminal.say(
                f"note        the schedule is left during its warm-up ({steps.warmup:,} steps): the peak"
                f" {training.learning_rate:g} is never reached, the highest rate used is {highest:.3g}",
                "yellow",
            )


def _learnt_from(recipe: Recipe) -> str:
    k = recipe.sampling.k
    if recipe.algorithm.preferences:
        return f"{recipe.selection} of K = {k}"
    return f"demonstrations against K = {k}" if recipe.algorithm.samples else "demonstrations"


def _on_top(recipe: Recipe) -> str:
    of = recipe.training.adapter
    if of is None or _adapter(recipe) is not None:
        return ""
    return f" and the adapter (16 bytes x {of.r} x (rows + columns) of each layer, with AdamW)"


def _where(training: Training) -> str:
    """The devices that hold weights, gradients and optimiser state, in words."""
    if training.sharding is not None and training.devices == "auto":
        return f"over all training devices together (devices: auto, sharding: {training.sharding})"
    sharded = "" if training.sharding is None else f", sharding: {training.sharding}"
    return f"on each training device (devices: {training.devices}{sharded})"


def _row(cells: tuple[str, ...]) -> str:
    return "".join(cell.rjust(18 if column else 9) for column, cell in enumerate(cells))


def _curve(recipe: Recipe, steps: Steps) -> list[float]:
    of = recipe.training
    return [learning_rate(step, steps, of.schedule, of.learning_rate) for step in range(steps.kept)]


def _curve_text(recipe: Recipe, steps: Steps) -> str:
    curve = _curve(recipe, steps)
    top = curve.index(max(curve))
    points = sorted({0, top, len(curve) // 4, len(curve) // 2, 3 * len(curve) // 4, len(curve) - 1})
    return ", ".join(f"{curve[step]:.3g} at step {step + 1:,}" for step in points)


def _prompt_counts(recipe: Recipe) -> tuple[list[int | None], int | None]:
    of = recipe.prompts
    sources = [of.train] if isinstance(of.train, PromptSource) else list(of.train)
    counts = [_source_count(source) for source in sources]
    held_out = of.held_out if isinstance(of.held_out, int) else _source_count(of.held_out)
    if isinstance(of.held_out, int) and all(count is not None for count in counts):
        total = sum(count or 0 for count in counts)
        if of.held_out >= total:
            raise prompt_sources.PromptError(
                f"prompts.held_out: {of.held_out} to set aside of {total} prompts leaves none to train on; lower it"
            )
        sizes = [count or 0 for count in counts]
        shares = prompt_sources.held_out_shares(sizes, of.held_out)
        counts = [size - share for size, share in zip(sizes, shares, strict=True)]
    if len(counts) == 1:
        total_or_none = counts[0]
        if total_or_none is None:
            counts = [of.per_iteration] * recipe.iterations
        else:
            bounds = [total_or_none * index // recipe.iterations for index in range(recipe.iterations + 1)]
            counts = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
            if total_or_none < recipe.iterations:
                raise prompt_sources.PromptError(
                    f"iterations: {recipe.iterations}, but there are only {total_or_none} prompts to train on;"
                    " lower iterations or give more prompts"
                )
    if of.per_iteration is not None:
        counts = [None if count is None else min(count, of.per_iteration) for count in counts]
    return counts, held_out


def _source_count(source: PromptSource) -> int | None:
    if prompt_sources.local_file(source) is None:
        if prompt_sources.names_a_file(source):
            raise prompt_sources.PromptError(f"prompts: there is no file {source.source!r} here")
        return source.rows if source.limit is None else min(source.limit, source.rows or source.limit)
    return sum(1 for _ in prompt_sources.read_source(source))


def _training_bytes(recipe: Recipe, parameters: float, adapter: tuple[int, int] | None) -> float:
    """The bytes of weights, gradients and optimiser state.

    With LoRA, the frozen base weights need no gradients and no optimiser state.
    """
    weight = _BYTES[recipe.policy.dtype]
    if recipe.training.adapter is None:
        return parameters * (2 * weight + _state_bytes(recipe, weight))
    rounded, fresh = adapter or (parameters, 0)
    narrow = _NF4_BYTES if recipe.policy.quantization == "nf4" else weight
    own = _BYTES["float32"]
    return (parameters - rounded) * weight + rounded * narrow + fresh * (2 * own + _state_bytes(recipe, own))


def _checkpoint_bytes(recipe: Recipe, parameters: float, adapter: tuple[int, int] | None) -> float | None:
    """The bytes of all checkpoints that are kept: the trained weights and their optimiser state in each."""
    if recipe.training.checkpoint_steps is None:
        return 0.0
    if recipe.training.adapter is None:
        count, weight = parameters, _BYTES[recipe.policy.dtype]
    elif adapter is not None:
        count, weight = adapter[1], _BYTES["float32"]
    else:
        return None
    return CHECKPOINTS_KEPT * count * (weight + _state_bytes(recipe, weight))


def _state_bytes(recipe: Recipe, weight: int) -> float:
    """The bytes of optimiser state for one weight of `weight` bytes."""
    name = recipe.training.optimizer
    return _OPTIMISER_VALUES.get(name.split("_")[0], 2.0) * (1 if "8bit" in name else weight)


def _adapter(recipe: Recipe) -> tuple[int, int] | None:
    """The number of parameters that the adapter adapts, and of its own; None where the model is not on this disk."""
    of = recipe.training.adapter
    folder = Path(model_path(recipe.policy.model))
    if of is None or not folder.is_dir():
        return None
    try:
        return policies.count_adaptable(policies.base_folder(folder), of.target_modules, of.r)
    except (OSError, ValueError, KeyError):
        return None


def _parameters(recipe: Recipe) -> float | None:
    folder = Path(model_path(recipe.policy.model))
    try:
        return policies.count_parameters(policies.base_folder(folder)) or recipe.policy.parameters
    except (OSError, ValueError, KeyError):
        return recipe.policy.parameters


def _oracle_parameters(oracle: OracleSection | None) -> float:
    return 0.0 if oracle is None else oracle.parameters()


def _count(value: float | None) -> str:
    if value is None:
        return "an unknown number of (set policy.parameters)"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _size(value: float | None) -> str:
    if value is None:
        return "an unknown size"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"
