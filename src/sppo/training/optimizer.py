"""Check that the recipe's optimiser is available and works, by taking a step with it before anything is computed."""

import difflib
import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sppo import recipe

# These optimisers take their step within the backward pass of the Trainer's own training step, which this package replaces.
_NOT_SUPPORTED = ("lomo", "adalomo")
_TEST_ENTRIES = 8192
"""The size of the test weight: 8-bit optimisers keep 32-bit state for weights of fewer than 4096 entries."""


def arguments(settings: recipe.Training) -> dict[str, Any]:
    """The keyword arguments of transformers' TrainingArguments that concern the optimiser."""
    return {
        "learning_rate": settings.learning_rate,
        "optim": settings.optimizer,
        "optim_args": ",".join(f"{name}={value}" for name, value in settings.optimizer_args.items()) or None,
        "weight_decay": settings.weight_decay,
    }


def check(settings: recipe.Training) -> None:
    """Take a step with the recipe's optimiser on a test weight.

    Raises:
        sppo.recipe.RecipeError: the optimiser is unknown, not installed, or does not work on this machine.
    """
    name = settings.optimizer
    known = sorted(known.value for known in OptimizerNames if known.value not in _NOT_SUPPORTED)
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        way_out = f"did you mean {similar[0]!r}?" if similar else f"choose one of {', '.join(known)}"
        reason = "is not supported" if name in _NOT_SUPPORTED else "is unknown"
        raise recipe.RecipeError(f"training.optimizer: {name!r} {reason}; {way_out}")
    try:
        optimizer, options, device = _resolve(settings)
        weight = torch.nn.Parameter(torch.zeros(_TEST_ENTRIES, device=device))
        weight.grad = torch.ones_like(weight)
        optimizer([weight], **options).step()
    except (ImportError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise recipe.RecipeError(
            f"training.optimizer: {name!r} with optimizer_args {settings.optimizer_args} does not work on this machine:"
            f" {str(error).strip() or type(error).__name__}"
        ) from error
    for argument in settings.optimizer_args:
        others = {key: value for key, value in settings.optimizer_args.items() if key != argument}
        without = _resolve(settings.model_copy(update={"optimizer_args": others}))[1]
        if argument not in options and without == options:
            raise recipe.RecipeError(
                f"training.optimizer_args: {argument!r} has no effect on {name!r}, because transformers does not pass it"
                " on; remove it"
            )


def _resolve(settings: recipe.Training) -> tuple[Any, dict[str, Any], torch.device]:
    """The optimiser's class, the arguments that transformers passes to it, and the device that it will run on."""
    with tempfile.TemporaryDirectory() as folder:
        resolved = TrainingArguments(
            output_dir=folder,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            **arguments(settings),
        )
    optimizer, options = Trainer.get_optimizer_cls_and_kwargs(resolved)
    return optimizer, options, resolved.device
