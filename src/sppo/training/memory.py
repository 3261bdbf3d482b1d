"""The memory that training takes, estimated from a policy's files, and the size of packs that fits beside it."""

from pathlib import Path

from sppo.policy import load as policies
from sppo.policy import memory
from sppo.policy.chat_format import model_path
from sppo.policy.memory import BYTES
from sppo.policy.model_files import read_configuration
from sppo.recipe import MOST_PACK_TOKENS, Policy, Training

# NF4 stores 4 bits for each weight, an 8-bit scale for 64 weights and a 32-bit scale for 256 of those scales.
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Values of optimiser state for each parameter, by the first part of transformers' optimiser names.
_OPTIMISER_VALUES = {"adamw": 2.0, "rmsprop": 1.0, "sgd": 0.0, "adafactor": 0.1, "lion": 1.0, "adagrad": 1.0}
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
        return parameters * (2 * weight + state_bytes(training, weight)) / devices
    adapted, own = adapter or (parameters, 0)
    adapted_weight = _NF4_BYTES if policy.quantization == "nf4" else weight
    trained = 2 * BYTES["float32"] + state_bytes(training, BYTES["float32"])
    # The recipe refuses adapters that are sharded, so nothing is divided here.
    return (parameters - adapted) * weight + adapted * adapted_weight + own * trained


def checkpoint_bytes(policy: Policy, training: Training) -> float | None:
    """The bytes of a checkpoint, which has the trained weights and their optimiser state; None if they are not known."""
    parameters, adapter = count_parameters(policy), count_adapter(policy, training)
    if training.adapter is None and parameters is not None:
        count, weight = parameters, BYTES[policy.dtype]
    elif training.adapter is not None and adapter is not None:
        count, weight = adapter[1], BYTES["float32"]
    else:
        return None
    return count * (weight + state_bytes(training, weight))


def state_bytes(training: Training, weight: int) -> float:
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
    fitting = max(1, int(memory.room_for_activations(state) / each))
    largest_power = 1 << (fitting.bit_length() - 1)
    return min(max(largest_power, _LEAST_PACK_TOKENS), MOST_PACK_TOKENS)


def pack_bytes(policy: Policy, training: Training) -> float | None:
    """The bytes of a full pack's activations, on each device; None if they cannot be counted."""
    tokens, each = pack_tokens(policy, training), _activation_bytes_of(policy, training)
    return None if tokens is None or each is None else tokens * each


def _activation_bytes_of(policy: Policy, training: Training) -> float | None:
    folder = Path(model_path(policy.model))
    try:
        return memory.activation_bytes(
            read_configuration(policies.config_folder(folder) / "config.json"),
            policy.dtype,
            gradient_checkpointing=bool(training.gradient_checkpointing),
        )
    except (OSError, ValueError, KeyError):
        return None
