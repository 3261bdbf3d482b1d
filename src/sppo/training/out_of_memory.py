"""The warning, before training begins, and the error, when an allocation fails, about examples too large for the memory."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from sppo.policy import memory
from sppo.recipe import Training
from sppo.training.examples import Example, TrainingError
from sppo.training.memory import state_bytes

_log = logging.getLogger(__name__)
_WAYS_OUT = "set training.gradient_checkpointing, or shorten the responses by training.max_tokens, or train on fewer of them by selection"


def warn_of_large_examples(table: pa.Table, model: Any, settings: Training) -> None:
    """Log a warning if, by the estimate, the largest example's activations do not fit beside the training's state.

    A prompt goes through the model together with all of its responses, so an example can be larger than
    `training.pack_tokens`. On a machine without GPUs the kernel ends a process that takes more memory than there is, so that
    nothing could be said afterwards.

    Args:
        table: all training examples, as :func:`sppo.training.examples.read` returns them.
        model: the model that is trained, the whole of it on one device.
        settings: the recipe's `training` section.
    """
    each = memory.activation_bytes(
        model.config.to_dict(),
        str(model.dtype).removeprefix("torch."),
        gradient_checkpointing=bool(settings.gradient_checkpointing),
    )
    if each is None:
        return
    tokens = _tokens(table)
    largest = int(tokens.argmax())
    needed = _state(model, settings) + int(tokens[largest]) * each
    available = memory.machine_memory()
    if needed > available:
        _log.warning(
            "the prompt %r has %s tokens with its responses, which go through the model together; their activations, with"
            " weights, gradients and optimiser state, need about %.1f GB, and this machine has %.1f GB: %s",
            table["prompt_id"][largest].as_py(),
            f"{tokens[largest]:,}",
            needed / 1e9,
            available / 1e9,
            _WAYS_OUT,
        )


def _tokens(table: pa.Table) -> np.ndarray:
    """The tokens of each example: its prompt's, counted once, and those of all of its responses."""
    responses = table["responses"].combine_chunks()
    of_response = pa.compute.list_value_length(responses.flatten().field("token_ids")).to_numpy()
    example = pa.compute.list_parent_indices(responses).to_numpy()
    of_responses = np.bincount(example, weights=of_response, minlength=table.num_rows).astype(int)
    total: np.ndarray = pa.compute.list_value_length(table["prompt_token_ids"]).to_numpy() + of_responses
    return total


def _state(model: Any, settings: Training) -> float:
    """The bytes of a model's weights, of the gradients of those that are trained, and of their optimiser state."""
    weights: list[Tensor] = list(model.parameters())
    held = sum(weight.numel() * weight.element_size() for weight in weights)
    trained = sum(
        weight.numel() * (weight.element_size() + state_bytes(settings, weight.element_size()))
        for weight in weights
        if weight.requires_grad
    )
    return held + trained


@contextlib.contextmanager
def explained(step: int, examples: Sequence[Example]) -> Iterator[None]:
    """Within the block, an allocation that fails is an error that names the examples and the way out.

    Args:
        step: the number of the optimiser step.
        examples: those that go through the model together.

    Raises:
        TrainingError: the memory of the device is exhausted.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        tokens = sum(len(example.prompt) + sum(map(len, example.responses)) for example in examples)
        if len(examples) > 1:
            what = f"{len(examples)} prompts with their responses ({tokens:,} tokens side by side)"
            way_out = "lower training.pack_tokens"
        else:
            what = f"the prompt {examples[0].prompt_id} with its responses ({tokens:,} tokens)"
            way_out = _WAYS_OUT
        raise TrainingError(
            f"step {step}: the memory is too small for {what}; {way_out}. {str(error).strip().splitlines()[0]}"
        ) from error
