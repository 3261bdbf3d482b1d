"""The memory that a model's weights and activations take, and how much of it this machine has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2}
"""The bytes of a weight, by its data type."""
RECOMPUTED = 8
"""So many layers' activations are there at once while one of them is computed again (measured on SmolLM2)."""
# The share of the memory beside weights, gradients and optimiser state that activations may take. The rest is for the process
# itself, gradients while they are summed, an output head's tiles, and whatever else the machine does.
_ACTIVATIONS_SHARE = 0.5
# The device files of NVIDIA's and AMD's drivers.
_GPUS = ("/dev/nvidia0", "/dev/kfd")


def activation_bytes(config: Mapping[str, Any], dtype: str, *, gradient_checkpointing: bool) -> float | None:
    """The bytes that one more token keeps in memory for the backward pass, without mixed precision.

    A layer of width h with an inner width of m keeps about 12 h + 4 m values for each token: the inputs of its norms and of
    its matrix products, queries, and what attention and the gate give. With gradient checkpointing it keeps h, and one
    layer is computed again at a time, whose values, their gradients and copies are there for that moment.

    Args:
        config: the content of the model's config.json.
        dtype: the data type of its weights.
        gradient_checkpointing: whether the layers' activations are computed again in the backward pass.

    Returns:
        Bytes per token, or None if the configuration does not give the widths.
    """
    config = {**config, **config.get("text_config", {})}
    layers, width = (config.get(name) for name in ("num_hidden_layers", "hidden_size"))
    if not isinstance(layers, int) or not isinstance(width, int):
        return None
    inner = config.get("intermediate_size")
    inner = inner if isinstance(inner, int) else 4 * width
    layer = (12 * width + 4 * inner) * BYTES[dtype]
    if gradient_checkpointing:
        return float(layers * width * BYTES[dtype] + RECOMPUTED * layer)
    return float(layers * layer)


def room_for_activations(state: float) -> float:
    """The bytes that activations may take beside so many bytes of weights, gradients and optimiser state."""
    return _ACTIVATIONS_SHARE * (machine_memory() - state)


def machine_memory() -> int:
    """The bytes of the first GPU's memory, or of this machine's without one, whether they are free or not."""
    if any(Path(device).exists() for device in _GPUS):  # torch takes seconds to import
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
