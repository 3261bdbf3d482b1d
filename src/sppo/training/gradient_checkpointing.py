"""Gradient checkpointing as transformers does it, with what is kept on the device or in the machine's memory."""

import inspect
from typing import Any

from transformers import PreTrainedModel

from sppo.recipe import RecipeError, Training


def arguments(settings: Training, *, on_gpu: bool) -> dict[str, Any]:
    """The keyword arguments of transformers' TrainingArguments that concern gradient checkpointing.

    Args:
        settings: the recipe's `training` section.
        on_gpu: whether training runs on a GPU. Otherwise `offload` has no effect, because what is kept is in the machine's memory
            already, of which torch cannot make pinned copies without a GPU.
    """
    if not settings.gradient_checkpointing:
        return {"gradient_checkpointing": False}
    options = {"use_reentrant": False}
    if settings.gradient_checkpointing == "offload" and on_gpu:
        options["offload"] = True
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}


def check(settings: Training) -> None:
    """Refuse `offload` if this version of transformers does not have it.

    Raises:
        sppo.recipe.RecipeError: it does not.
    """
    known = inspect.signature(PreTrainedModel.gradient_checkpointing_enable).parameters
    if settings.gradient_checkpointing == "offload" and "offload" not in known:
        raise RecipeError(
            "training.gradient_checkpointing: offload needs transformers 5.17 or newer; install it, or set it to true"
        )
