"""The memory that training takes, estimated from a policy's files, and the size of packs that fits beside it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sppo.policy import load as policies
from sppo.policy.chat_format import model_path
from sppo.recipe import MOST_PACK_TOKENS, Policy, Training

BYTES = {"float32": 4, "bfloat16": 2}
# NF4 stores 4 bits for each weight, an 8-bit scale for 64 weights and a 32-bit scale for 256 of those scales.
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Values of optimiser state for each parameter, by the first part of transformers' optimiser names.
_OPTIMISER_VALUES = {"adamw": 2.0, "rmsprop": 1.0, "sgd": 0.0, "adafactor": 0.1, "lion": 1.0, "adagrad": 1.0}
# The share of the memory beside weights, gradients and optimiser state that a pack's activations may take. The rest is
# for the process itself, gradients while they are summed, the output head's tiles, and whatever else the machine does.
_SHARE = 0.5
# The smallest pack that is chosen: smaller ones save little, and many passes take long.
_LEAST_PACK_TOKENS = 512
# The pack of a policy whose activations cannot be counted.
_PACK_TOKENS_UNKNOWN = 4096


def training_bytes(policy: Policy, training: Training) -> float | None:
    """The bytes of weights, gradients and optimiser state on each device.

    Where they are sharded over devices whose number is known only when training begins, they are those of all devices
    together. With LoRA, the frozen base weights need no gradients and no optimiser state. None: the number of parameters
    is not known.
    """
    parameters, adapter = count_parameters(policy), count_adapter(policy, training)
    if parameters is None:
        return None
    weight, devices = BYTES[policy.dtype], 1
    if training.sharding is not None and isinstance(training.devices, int):
        devices = training.devices
    if training.adapter is None:
        return parameters * (2 * weight + _state_bytes(training, weight)) / devices
    adapted, own = adapter or (parameters, 0)
    adapted_weight = _NF4_BYTES if policy.quantization == "nf4" else weight
    trained = 2 * BYTES["float32"] + _state_bytes(training, BYTES["float32"])
    return (
        (parameters - adapted) * weight + adapted * adapted_weight + own * trained
    )  # adapters are not sharded


def checkpoint_bytes(policy: Policy, training: Training) -> float | None:
    """The bytes of a checkpoint, which has the trained weights and their optimiser state; None if they are not known."""
    parameters, adapter = count_parameters(policy), count_adapter(policy, training)
    if training.adapter is None and parameters is not None:
        count, weight = parameters, BYTES[policy.dtype]
    elif training.adapter is not None and adapter is not None:
        count, weight = adapter[1], BYTES["float32"]
    else:
        return None
    return count * (weight + _state_bytes(training, weight))


def _state_bytes(training: Training, weight: int) -> float:
    """The bytes of optimiser state for a weight that has `weight` bytes itself."""
    name = training.optimizer
    return _OPTIMISER_VALUES.get(name.split("_")[0], 2.0) * (1 if "8bit" in name else weight)


def count_parameters(policy: Policy) -> float | None:
    """The number of the policy's parameters; None if it is not on this disk and `policy.parameters` is not set."""
    folder = Path(model_path(policy.model))
    try:
        return policies.count_parameters(policies.base_folder(folder)) or policy.parameters
    except (OSError, ValueError, KeyError):
        return policy.parameters


def count_adapter(policy: Policy, training: Training) -> tuple[int, int] | None:
    """The number of parameters that the adapter adapts, and of its own; None without one, or if the model is not here."""
    settings = training.adapter
    folder = Path(model_path(policy.model))
    if settings is None or not folder.is_dir():
        return None
    try:
        return policies.count_adaptable(policies.base_folder(folder), settings.target_modules, settings.r)
    except (OSError, ValueError, KeyError):
        return None


def pack_tokens(policy: Policy, training: Training) -> int | None:
    """The value of `training.pack_tokens`; `auto` becomes the largest pack that fits into half of the memory that is left.

    It is a power of two, which depends on the machine's whole memory (or that of its first GPU) and not on what is free at
    the moment, so that a run that is continued finds the same number. None: the policy is not on this disk yet.
    """
    if training.pack_tokens != "auto":
        return training.pack_tokens
    state = training_bytes(policy, training)
    if state is None or not Path(model_path(policy.model)).is_dir():
        return None
    each = _activation_bytes_of(policy, training)
    if each is None:
        return _PACK_TOKENS_UNKNOWN
    fitting = max(1, int(_SHARE * (_memory() - state) / each))
    largest_power = 1 << (fitting.bit_length() - 1)
    return min(max(largest_power, _LEAST_PACK_TOKENS), MOST_PACK_TOKENS)


def pack_bytes(policy: Policy, training: Training) -> float | None:
    """The bytes of a full pack's activations, on each device; None if they cannot be counted."""
    tokens, each = pack_tokens(policy, training), _activation_bytes_of(policy, training)
    return None if tokens is None or each is None else tokens * each


def _activation_bytes_of(policy: Policy, training: Training) -> float | None:
    folder = Path(model_path(policy.model))
    if not folder.is_dir():
        return None
    return activation_bytes(
        policies.config_folder(folder),
        policy.dtype,
        gradient_checkpointing=training.gradient_checkpointing,
        trust_remote_code=policy.trust_remote_code,
    )


@cache
def activation_bytes(
    folder: Path, dtype: str, *, gradient_checkpointing: bool, trust_remote_code: bool = False
) -> float | None:
    """The bytes that one more token in a pack keeps in memory for the backward pass, without mixed precision.

    They are counted and not assumed: the model is built without weights, and autograd says which tensors a forward pass of
    its body keeps. With n tokens these are a n + b n^2 bytes; the second term belongs to an attention that keeps its
    matrix, which the trainer's do not, so two passes tell a. With gradient checkpointing one layer is computed
    again at a time, and its activations are added.

    Args:
        folder: the folder of the policy's configuration.
        dtype: the data type of its weights.
        gradient_checkpointing: whether the layers' activations are computed again in the backward pass.
        trust_remote_code: whether code in the folder may be run.

    Returns:
        Bytes per token, or None for a model that does not run without its weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with policies.quiet(), torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
            ).train()
            plain = _linear_part([_kept_bytes(model, tokens) for tokens in (16, 32)])
            if not gradient_checkpointing:
                return plain
            model.gradient_checkpointing_enable({"use_reentrant": False})
            kept = _linear_part([_kept_bytes(model, tokens) for tokens in (16, 32)])
        except Exception:  # models whose forward pass looks at values fail in ways of their own
            return None
    layers: int = config.get_text_config().num_hidden_layers
    return kept + plain / layers


def _linear_part(measured: Sequence[int]) -> float:
    """The factor a of a n + b n^2, from its values at n = 16 and n = 32."""
    return (4 * measured[0] - measured[1]) / 32


def _kept_bytes(model: Any, tokens: int) -> int:
    """The bytes of the tensors that a forward pass of the model's body keeps for its backward pass, beside the weights."""
    import torch

    weights = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return value

    dtype = next(model.parameters()).dtype
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = model.base_model(
            input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"),
            attention_mask=torch.zeros(1, 1, tokens, tokens, dtype=dtype, device="meta"),
            position_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"),
            use_cache=False,
        )
        total = sum(storage.nbytes() for storage in kept.values())
        del output
    return total


def _memory() -> int:
    """The bytes of the first GPU's memory, or of this machine's without one."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)
