"""Whether a recipe's optimiser can be had here: asked of transformers, and tried, before anything is computed."""

import difflib
import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sppo import recipe

# They step within the backward pass of the Trainer's own training step, which is not the one used here.
_NOT_SUPPORTED = ("lomo", "adalomo")
_TRIED_ENTRIES = 8192
"""Of the weight that is tried on: 8-bit optimisers keep 8 bits from 4096 entries on."""


def arguments(settings: recipe.Training) -> dict[str, Any]:
    """The optimiser's part of transformers' TrainingArguments."""
    return {
        "learning_rate": settings.learning_rate,
        "optim": settings.optimizer,
        "optim_args": ",".join(f"{name}={value}" for name, value in settings.optimizer_args.items()) or None,
        "weight_decay": settings.weight_decay,
    }


def check(settings: recipe.Training) -> None:
    """Take a step with the recipe's optimiser on a weight made for it.

    Raises:
        sppo.recipe.RecipeError: it is unknown, not installed, or does not work on this machine.
    """
    name = settings.optimizer
    known = sorted(each.value for each in OptimizerNames if each.value not in _NOT_SUPPORTED)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        way_out = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
        what = "is not supported" if name in _NOT_SUPPORTED else "is unknown"
        raise recipe.RecipeError(f"training.optimizer: {name!r} {what}; {way_out}")
    try:
        made, options, device = _chosen(settings)
        weight = torch.nn.Parameter(torch.zeros(_TRIED_ENTRIES, device=device))
        weight.grad = torch.ones_like(weight)
        made([weight], **options).step()
    except (ImportError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise recipe.RecipeError(
            f"training.optimizer: {name!r} with optimizer_args {settings.optimizer_args} does not work here:"
            f" {str(error).strip() or type(error).__name__}"
        ) from error
    for argument in settings.optimizer_args:
        others = {key: value for key, value in settings.optimizer_args.items() if key != argument}
        without = _chosen(settings.model_copy(update={"optimizer_args": others}))[1]
        if argument not in options and without == options:
            raise recipe.RecipeError(
                f"training.optimizer_args: {argument!r} has no effect on {name!r}: transformers hands it no such argument"
            )


def _chosen(settings: recipe.Training) -> tuple[Any, dict[str, Any], torch.device]:
    """The optimiser's class, what transformers hands it, and where it will work."""
    with tempfile.TemporaryDirectory() as folder:
        here = TrainingArguments(
            output_dir=folder,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            **arguments(settings),
        )
    made, options = Trainer.get_optimizer_cls_and_kwargs(here)
    return made, options, here.device
