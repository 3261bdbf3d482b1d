"""Shard weights, gradients and optimiser state over the devices with accelerate's FSDP2 or DeepSpeed's ZeRO-3."""

import os
from typing import Any, Literal

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from sppo.recipe import Training

Sharding = Literal["fsdp2", "zero3"] | None


def arguments(sharding: Sharding, settings: Training) -> dict[str, Any]:
    """The keyword arguments of transformers' TrainingArguments for a kind of sharding."""
    if sharding == "fsdp2":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # one decoder layer at a time is gathered whole
                "reshard_after_forward": True,
                "cpu_ram_efficient_loading": True,
                "state_dict_type": "SHARDED_STATE_DICT",  # checkpoints: each process writes its own part
            },
        }
    if sharding == "zero3":
        options: dict[str, Any] = {"deepspeed": deepspeed_config(settings)}
        if not torch.cuda.is_available():
            # accelerate initialises DeepSpeed on GPUs only. On a CPU the process group is set up here, and accelerate is
            # told to use it.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(backend="gloo")
            options |= {"use_cpu": False, "accelerator_config": {"use_configured_state": True}}
        return options
    return {}


def prepare(sharding: Sharding, device: torch.device) -> None:
    """Prepare to load a model that will be sharded; requires the process group."""
    if sharding == "fsdp2":
        # This makes transformers read the weights in process 0 only, into the machine's memory rather than the device's.
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        if device.type == "cpu":
            # PyTorch shards on any device, but accelerate only if the processes have the type of GPU processes. CPU
            # processes are given that type, which becomes FSDP when the Accelerator is created.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def deepspeed_config(settings: Training) -> dict[str, Any]:
    """The configuration of DeepSpeed's ZeRO-3."""
    return {
        # DeepSpeed is told that a step is one pass; the trainer itself marks the pass that completes a step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        # DeepSpeed must be told about the trainer's autocast; the weights keep their dtype.
        "torch_autocast": {"enabled": settings.mixed_precision == "bf16", "dtype": "bfloat16"},
    }


def keep_sums_precise(trainer: Any) -> None:
    """Make FSDP2 sum gradients over packs and processes in single precision, whatever precision the passes use."""
    # The sum has one term for each pack and process. If it were rounded to bfloat16 after each term, the gradient would
    # depend on how the step is divided into packs and processes.
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype, reduce_dtype=torch.float32
        )


def whole_state(trainer: Any) -> dict[str, Tensor] | None:
    """Gather all weights of a sharded model on the CPU of process 0; None if the model is not sharded.

    Every process must call this function, because each holds a part of the weights.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        state: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state
    return None
