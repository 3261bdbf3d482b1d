"""Train pi_{t+1}, starting from pi_t, on the responses that the select stage has chosen."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sppo import recipe
from sppo.policy import adapter as adapters
from sppo.progress import Advance, unseen
from sppo.rundir.environment import multiplies_bfloat16
from sppo.training.schedule import Steps, plan

CHECKPOINTS_KEPT = 2
"""How many checkpoints are kept while a training runs: the newest, and one more in case the newest is damaged."""


def mixed_precision(settings: recipe.Training) -> Literal["no", "bf16"]:
    """The recipe's `mixed_precision` on this machine, where `auto` is bf16 if bfloat16 is multiplied natively."""
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    import torch

    on_gpu = torch.cuda.is_available()
    is_native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else multiplies_bfloat16()
    return "bf16" if is_native else "no"


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of one iteration's training, as plain values that can be sent to other processes.

    Attributes:
        policy: the folder of the policy from whose weights training starts, which is mostly pi_t.
        opponent: the fingerprint of pi_t, for which the opponent's log-probabilities in the shards must have been computed.
        reference_policies: the fingerprints of the further policies whose log-probabilities the shards must hold.
        shards: the paths of the training shards.
        output: the folder that pi_{t+1} is written to; it must not exist.
        work: a folder for files that are needed only while training.
        metrics: a JSONL file to which the figures of every logged step are appended.
        prompts: the number of prompts in the shards.
        seed: decides the order of the prompts and every random number of the training.
        algorithm: the recipe's `algorithm` section.
        settings: the recipe's `training` section.
        chat_template: a file to use instead of the chat template in the policy's folder.
        model, revision: the base policy as the recipe names it; None: it is named by its folder.
        quantization: the data type that the frozen weights beside an adapter are quantised to.
        fingerprint: the stage's fingerprint; only checkpoints with the same fingerprint are resumed.
        checkpoint: a folder in `work` to resume from (see `training.checkpoints`); None: start from the beginning.
        begun: the number of optimiser steps that were taken before the checkpoint.
    """

    policy: str
    opponent: str
    shards: list[str]
    output: str
    work: str
    metrics: str
    prompts: int
    seed: int
    dtype: str
    attn_implementation: str | None
    trust_remote_code: bool
    chat_template: str | None
    algorithm: recipe.AlgorithmConfig
    settings: recipe.Training
    report_to: list[str] = field(default_factory=list)
    run_name: str = "sppo"
    model: str | None = None
    revision: str | None = None
    quantization: str | None = None
    fingerprint: str = ""
    checkpoint: str | None = None
    begun: int = 0
    reference_policies: list[str] = field(default_factory=list)

    @property
    def steps(self) -> Steps:
        """The optimiser steps that the training takes."""
        return plan(
            self.prompts,
            batch_prompts=self.settings.batch_prompts,
            epochs=self.settings.epochs,
            keep_epochs=self.settings.keep_epochs,
            warmup_ratio=self.settings.warmup_ratio,
        )

    def to_json(self) -> str:
        """Serialise the job for another process."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return json.dumps(values | {name: values[name].model_dump() for name in ("algorithm", "settings")})

    @classmethod
    def from_json(cls, text: str) -> "TrainingJob":
        """Restore a job that :meth:`to_json` serialised."""
        values = json.loads(text)
        values["algorithm"] = recipe.parse_algorithm(values["algorithm"])
        values["settings"] = recipe.Training.model_validate(values["settings"])
        return cls(**values)


def processes(settings: recipe.Training) -> int:
    """The number of training processes that `training.devices` asks for on this machine.

    Raises:
        ValueError: the machine has GPUs, but fewer than `training.devices`.
    """
    import torch

    gpus = torch.cuda.device_count()
    if settings.devices == "auto":
        return max(1, gpus)
    if gpus and settings.devices > gpus:
        raise ValueError(
            f"training.devices: {settings.devices}, but this machine has {gpus} GPUs; lower it, or set it to auto"
        )
    return settings.devices


def check(settings: recipe.Training, report_to: list[str], quantization: str | None = None) -> None:
    """Refuse, before anything is computed, settings that transformers would refuse when training begins.

    Raises:
        sppo.recipe.RecipeError: the optimiser or a tracker is unknown or not installed.
        sppo.policy.adapter.AdapterError: an adapter is asked for, but a package that it needs is not installed.
    """
    if settings.adapter is not None:
        adapters.require_peft(quantization)
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    from sppo.training import gradient_checkpointing, optimizer

    optimizer.check(settings)
    gradient_checkpointing.check(settings)
    if settings.sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise recipe.RecipeError(
            "training.sharding: zero3 needs DeepSpeed; pip install 'sppo[deepspeed]', or use fsdp2"
        )
    for tracker in report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise recipe.RecipeError(f"report_to: {tracker!r} is unknown; known trackers are {known}")
        if tracker not in get_available_reporting_integrations():
            raise recipe.RecipeError(f"report_to: {tracker!r} is not installed; pip install {tracker}")


def loss_text(figures: Mapping[str, Any]) -> str:
    """The loss among the figures of a step, as the progress bar shows it; empty if there is none."""
    return f"loss {figures['loss']:.4g}" if isinstance(figures.get("loss"), float) else ""


def train(
    job: TrainingJob,
    on_step: Advance = unseen,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a training job, in this process or in one process for each device.

    Args:
        job: the training to run.
        on_step: called with the number of optimiser steps that were just taken, and with the loss in words.
        say: called with messages for the user.

    Raises:
        sppo.training.examples.TrainingError: the examples cannot be trained on, or a loss or gradient is not finite.
        RuntimeError: one of several training processes failed.
    """
    count = processes(job.settings)
    if count > 1:
        from sppo.training.launch import train_in_processes

        train_in_processes(job, count, on_step, say)
    else:
        from sppo.training.interruption import Interruption
        from sppo.training.worker import run

        run(job, Interruption.for_single_process(say), on_step)
