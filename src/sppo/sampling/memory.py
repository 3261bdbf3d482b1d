"""Checks that a policy fits into the memory before its weights are loaded, and the rule for what is kept between stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.policy import load as policies
from sppo.policy.memory import BYTES
from sppo.policy.model_files import read_configuration
from sppo.sampling import SamplingError

_FREE_SHARE = 0.5
"""The free share of this machine's memory below which nothing is kept for the next stage."""


def check_room(policy: Path, dtype: str, batch_tokens: int, quantization: str | None = None) -> None:
    """Refuse a policy whose weights, with the keys and values of a full batch, exceed the free memory.

    Args:
        policy: a transformers folder, or an adapter's.
        dtype: the data type of the weights.
        batch_tokens: the number of tokens that are decoded side by side.
        quantization: the format that the weights are rounded to; None: they are not.

    Raises:
        SamplingError: the policy does not fit; the message says whether it would with fewer tokens.
    """
    parameters = policies.count_parameters(policies.base_folder(policy))
    # Weights of 4 bits take 0.6 bytes with their scales and the embeddings, which are not rounded.
    weights = parameters * (BYTES[dtype] if quantization is None else 0.6)
    states = batch_tokens * bytes_per_token(policy, dtype)
    free, device = free_memory()
    if weights > free:
        raise SamplingError(
            f"{_too_large(policy, weights, dtype, free, device)}; set sampling.dtype: bfloat16, or use the engine vllm"
            " with tensor_parallel_size over several GPUs"
        )
    if weights + states > free:
        fitting = int((free - weights) // bytes_per_token(policy, dtype))
        raise SamplingError(
            f"sampling.batch_tokens: {batch_tokens} tokens need {_size(states)} beside {_size(weights)} of weights,"
            f" and {device} has {_size(free)} free; lower it to {fitting} or less"
        )


def check_weights(policy: Path, dtype: str, engine_args: Mapping[str, Any], devices: int) -> None:
    """Refuse a policy for vLLM if its weights alone exceed the free memory; vLLM measures the rest by itself.

    Args:
        policy: a transformers folder, or an adapter's.
        dtype: the data type of the weights.
        engine_args: vLLM's arguments; if they round the weights or keep them elsewhere, nothing is refused.
        devices: the number of GPUs that the weights are spread over.

    Raises:
        SamplingError: the weights do not fit.
    """
    base = policies.base_folder(policy)
    if {"quantization", "cpu_offload_gb"} & engine_args.keys() or "quantization_config" in _config(base):
        return
    free, device = free_memory()
    weights = policies.count_parameters(base) * BYTES[dtype] / (devices if device == "the GPU" else 1)
    if weights > free:
        raise SamplingError(
            f"{_too_large(policy, weights, dtype, free, device)}; set sampling.dtype: bfloat16, or raise"
            " sampling.engine_args.tensor_parallel_size"
        )


def _too_large(policy: Path, weights: float, dtype: str, free: int, device: str) -> str:
    return f"policy.model: the weights of {policy} are {_size(weights)} in {dtype}, and {device} has {_size(free)} free"


def bytes_per_token(policy: Path, dtype: str) -> int:
    """The bytes of one token's keys and values in all layers; 0 if the configuration does not say."""
    config = _config(policy)
    config = config.get("text_config", config)
    heads = config.get("num_attention_heads") or 0
    width = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else 0)
    shared = config.get("num_key_value_heads") or heads
    return int(2 * config.get("num_hidden_layers", 0) * shared * width * BYTES[dtype])


def _config(policy: Path) -> dict[str, Any]:
    return read_configuration(policies.config_folder(policy) / "config.json")


def free_memory() -> tuple[int, str]:
    """The bytes that are free for a model, and where: on the GPU if there is one, else on this machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch keeps it for itself
        return int(torch.cuda.mem_get_info()[0]) + kept, "the GPU"
    return int(psutil.virtual_memory().available), "this machine"


def has_room_to_keep() -> bool:
    """Whether enough memory of this machine is free to keep engines and worker processes for the next stage.

    Training, which takes most, may come before it; so at least half has to be free.
    """
    import psutil

    memory = psutil.virtual_memory()
    return bool(memory.available >= _FREE_SHARE * memory.total)


def _size(value: float) -> str:
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"
