"""pi_t -> pi_{t+1}: least squares on the log-ratios of the selected responses."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from sppo import recipe
from sppo.policy import adapter as adapters
from sppo.training.schedule import Steps, plan

CHECKPOINTS_KEPT = 2
"""Of a training under way; the one before the last is there in case the last is damaged."""


@dataclass(frozen=True)
class TrainingJob:
    """All that one iteration's training is made from; plain values, so that processes can be handed it.

    Attributes:
        policy: folder of pi_t.
        opponent: its fingerprint; the shards' log-probabilities must be of a policy with the same.
        reference_policies: fingerprints of the further policies whose log-probabilities the shards must hold.
        shards: training shards.
        output: the folder that pi_{t+1} is written to; must not exist.
        work: a folder for what is needed while training only.
        metrics: a JSONL file that the figures of every logged step are appended to.
        prompts: how many prompts the shards hold.
        seed: of the order of prompts and of whatever draws random numbers.
        algorithm: the recipe's section.
        settings: the recipe's section.
        chat_template: a file that takes the place of the template in the policy's folder.
        model, revision: the base policy as the recipe calls it; None: by its folder.
        quantization: what the weights beside an adapter are rounded to.
        fingerprint: of the stage; a checkpoint is gone on from only where it is the same.
        checkpoint: a folder in `work` that is gone on from (see `training.checkpoints`); None: from the beginning.
        begun: optimiser steps that were taken before the checkpoint.
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
        """The optimiser steps that it takes."""
        return plan(
            self.prompts,
            batch_prompts=self.settings.batch_prompts,
            epochs=self.settings.epochs,
            keep_epochs=self.settings.keep_epochs,
            warmup_ratio=self.settings.warmup_ratio,
        )

    def to_json(self) -> str:
        """For another process."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return json.dumps(values | {name: values[name].model_dump() for name in ("algorithm", "settings")})

    @classmethod
    def from_json(cls, text: str) -> "TrainingJob":
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        values["algorithm"] = recipe.parse_algorithm(values["algorithm"])
        values["settings"] = recipe.Training.model_validate(values["settings"])
        return cls(**values)


def processes(settings: recipe.Training) -> int:
    """How many processes a recipe's `training.devices` stands for on this machine.

    Raises:
        ValueError: more than there are GPUs, on a machine that has some.
    """
    import torch

    gpus = torch.cuda.device_count()
    if settings.devices == "auto":
        return max(1, gpus)
    if gpus and settings.devices > gpus:
        raise ValueError(
            f"training.devices: {settings.devices}, but this machine has {gpus} GPUs; lower it, or `auto`"
        )
    return settings.devices


def check(settings: recipe.Training, report_to: list[str], quantization: str | None = None) -> None:
    """Refuse, before anything is computed, what transformers would refuse when training begins.

    Raises:
        sppo.recipe.RecipeError: an optimiser or tracker that is unknown or not installed.
        sppo.policy.adapter.AdapterError: an adapter without what it needs installed.
    """
    if settings.adapter is not None:
        adapters.require_peft(quantization)
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    from sppo.training import optimizer

    optimizer.check(settings)
    if settings.sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise recipe.RecipeError(
            "training.sharding: zero3 needs DeepSpeed; pip install 'sppo[deepspeed]', or take fsdp2"
        )
    for tracker in report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise recipe.RecipeError(f"report_to: {tracker!r} is unknown; one of {known}")
        if tracker not in get_available_reporting_integrations():
            raise recipe.RecipeError(f"report_to: {tracker!r} is not installed; pip install {tracker}")


def train(
    job: TrainingJob,
    on_step: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a training job, in this process or in one process for each device.

    Args:
        job: what to do.
        on_step: called with the number of optimiser steps just taken.
        say: told what the user should know meanwhile.

    Raises:
        sppo.training.examples.TrainingError: a loss is not finite.
        RuntimeError: a process of several failed.
    """
    count = processes(job.settings)
    if count > 1:
        from sppo.training.launch import train_in_processes

        train_in_processes(job, count, on_step, say)
    else:
        from sppo.training.interruption import Interruption
        from sppo.training.worker import run

        run(job, Interruption.of_the_only_process(say), on_step)
