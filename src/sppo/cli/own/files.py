"""Write what a run of one's own begins with, with values that suit the model, its prompts and a laptop."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from sppo import dry_run, prompts
from sppo.policy import hub
from sppo.policy import load as policies
from sppo.policy.chat_format import load as load_chat_format
from sppo.policy.chat_format import model_path
from sppo.progress import counted_text
from sppo.prompts import PromptError
from sppo.recipe import PromptSource, Recipe, parse, read_value
from sppo.rundir.folder import RunError
from sppo.training import memory

RECIPE, ORACLE, PROMPTS = "own.yaml", "my_oracle.py", "prompts.jsonl"
EMBEDDED = "tinyworld"
LEARNING_RATES = ((1e6, 5e-4), (1.35e8, 1e-4), (7e9, 5e-7))
"""Numbers of parameters with a rate that suits them: tinyworld's and SmolLM2's were tried, the last is the paper's."""
_MOST_PROMPTS = 120
_STEPS = 16
"""So many optimiser steps are enough to see a change, and few enough for minutes."""


@dataclass(frozen=True)
class Start:
    """What own.yaml is written from.

    Attributes:
        model: the policy's folder, hub name or `tinyworld`.
        parameters: the number of its parameters; None if it is not known.
        prompts: their source.
        limit: the number of prompts that are read of it; None: all.
        held_out: the number of them that are set aside.
    """

    model: str
    parameters: float | None
    prompts: str
    limit: int | None
    held_out: int
    iterations: int
    max_new_tokens: int
    learning_rate: float
    batch_prompts: int
    epochs: int

    def text(self) -> str:
        """The recipe, with comments."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
        )
        template = environment.from_string(_packaged(f"{RECIPE}.jinja"))
        values = asdict(self) | {"model": _scalar(self.model), "prompts": _scalar(self.prompts)}
        rate = f"{self.learning_rate:.0e}".replace("e-0", "e-")
        return template.render(values | {"learning_rate": rate, "is_embedded": self.model == EMBEDDED})


def write(folder: Path, model: str, source: str | None) -> tuple[list[Path], list[str], list[str]]:
    """Write own.yaml, my_oracle.py and, where no prompts are named, prompts.jsonl; nothing if anything is wrong.

    Args:
        folder: the folder to write to, which is made.
        model: a folder, a hub name, or `tinyworld`, whose prompts are used where no others are named.
        source: prompts as in a recipe.

    Returns:
        The files, sentences on what the recipe will do, and warnings.

    Raises:
        RunError: one of the files is there already, or a value is empty.
        PolicyError, ChatError: the model cannot be used.
        PromptError: the prompts cannot be read, or there are too few of them.
    """
    for option, value in (("--model", model), ("--prompts", source)):
        if value is not None and not value.strip():
            raise RunError(f"{option}: it is empty; give a value, or leave the option out")
    contents = {ORACLE: _packaged(ORACLE)}
    if source is None and model != EMBEDDED:
        contents[PROMPTS] = _packaged(PROMPTS)
    for name in (RECIPE, *contents):
        if (folder / name).exists():
            raise RunError(f"{folder / name} exists already; name another folder, or move the file away")
    start = _start(folder, model, source)
    contents = {RECIPE: start.text(), **contents}
    recipe = parse(read_value(contents[RECIPE], name=RECIPE))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in contents], [_sentence(start)], _warnings(start, recipe)


def learning_rate(parameters: float | None) -> float:
    """A learning rate for full training, between those of :data:`LEARNING_RATES` on logarithmic scales.

    It has one significant digit, and is that of the nearest end beyond the ends. For an unknown number of parameters it is that
    of the largest model: too low a rate learns too little, too high a one destroys the policy.
    """
    import numpy as np

    sizes, rates = np.log(LEARNING_RATES).T
    size = sizes[-1] if parameters is None else math.log(parameters)
    return float(f"{math.exp(np.interp(size, sizes, rates)):.0e}")


def _start(folder: Path, model: str, source: str | None) -> Start:
    """The values for a model and prompts, which are checked."""
    model, parameters = _model(folder, model)
    rate = learning_rate(parameters)
    if model == EMBEDDED and source is None:
        return Start(model, parameters, f"{EMBEDDED}/train", 192, 64, 2, 96, rate, batch_prompts=8, epochs=2)
    named, count, limit = _prompts(folder, source)
    held_out, tokens = max(1, count // 4), 96 if model == EMBEDDED else 64
    batch = min(max(1, (count - held_out) // _STEPS), 8)
    return Start(model, parameters, named, limit, held_out, 1, tokens, rate, batch, epochs=1)


def _model(folder: Path, model: str) -> tuple[str, float | None]:
    """The model as a recipe names it from any folder, and the number of its parameters where it can be known."""
    path = Path(model_path(model)).expanduser()
    if not path.is_dir():
        parameters = hub.parameters(model)
        return model, _size_in(model) if parameters is None else parameters
    weights = policies.folder(str(path))
    if model != EMBEDDED:
        load_chat_format(str(weights), config=str(policies.base_folder(weights)))
        model = _seen_from(folder, model)
    return model, policies.count_parameters(policies.base_folder(weights)) or None


def _size_in(name: str) -> float | None:
    """The number of parameters that a model's name states, such as 135M or 0.5B."""
    stated = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", name.lower())
    return float(stated[-1][0]) * {"m": 1e6, "b": 1e9}[stated[-1][1]] if stated else None


def _prompts(folder: Path, source: str | None) -> tuple[str, int, int | None]:
    """The source as the recipe names it, the number of prompts to take of it, and the limit that makes them so few."""
    if source is None:
        return PROMPTS, _packaged(PROMPTS).count("\n"), None
    settings = PromptSource.model_validate({"source": source, "limit": _MOST_PROMPTS + 1})
    if not prompts.is_local(settings) and not prompts.names_a_file(settings):
        return source, _MOST_PROMPTS, _MOST_PROMPTS  # a data set on the hub
    counts = prompts.survey(settings)
    if counts.skipped:
        raise PromptError(f"--prompts: {next(iter(counts.first_skipped.values()))}; mend it, or leave it out")
    if counts.read < 2:
        raise PromptError(
            f"--prompts: {source} has {counted_text(counts.read, 'prompt')}; a run needs one to learn from and another one"
            " to compare policies by, and dozens to show a change"
        )
    if not source.startswith(f"{EMBEDDED}/"):
        source = _seen_from(folder, source)
    limit = _MOST_PROMPTS if counts.read > _MOST_PROMPTS else None
    return source, limit or counts.read, limit


def _seen_from(folder: Path, path: str) -> str:
    """A path as somebody in the folder names it: relative where it lies inside."""
    whole = os.path.abspath(os.path.expanduser(path))
    inside = Path(whole).is_relative_to(os.path.abspath(folder))
    return os.path.relpath(whole, folder) if inside else whole


def _sentence(start: Start) -> str:
    return (
        f"{start.model}, {dry_run.parameters_text(start.parameters)}: learning_rate is {start.learning_rate:g};"
        f" set aside to compare policies by: {counted_text(start.held_out, 'prompt')}"
    )


def _warnings(start: Start, recipe: Recipe) -> list[str]:
    """What will probably go wrong on this machine."""
    import psutil

    if start.parameters is None:
        return [
            f"policy.model: the number of parameters of {start.model!r} is not known here, so training.learning_rate is that"
            " of a large model; raise it for a smaller one, as its comment says"
        ]
    policy = recipe.policy.model_copy(update={"parameters": start.parameters})
    needed, there = memory.training_bytes(policy, recipe.training), psutil.virtual_memory().total
    assert needed is not None
    if needed < 0.8 * there or policies.default_device() != "cpu":
        return []
    return [
        f"policy.model: training needs {dry_run.size_text(needed)} for weights, gradients and optimiser state, and this"
        f" machine has {dry_run.size_text(there)} of memory; name a smaller model, or train an adapter (training.adapter,"
        " docs/lora.md)"
    ]


def _scalar(text: str) -> str:
    """A text as YAML within braces, on one line."""
    if re.fullmatch(r"[\w./-]+", text) and read_value(text, name=text) == text:
        return text
    return json.dumps(text)


def _packaged(name: str) -> str:
    return (files("sppo.cli.own") / name).read_text(encoding="utf-8")
