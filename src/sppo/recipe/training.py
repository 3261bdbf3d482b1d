"""The recipe's `training:`."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sppo.recipe.section import Section


class Lora(Section):
    """Train low-rank matrices beside the weights (arXiv:2106.09685) instead of the weights; keys are peft's."""

    type: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, description="rank")
    lora_alpha: int = Field(32, ge=1, description="the update is scaled by lora_alpha / r")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="names of layers, or all linear ones but the output head"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r)")
    merge: bool = Field(
        False,
        description="true: each pi_{t+1} is a whole policy; false: it is the adapter, which the next trains on",
    )

    @field_validator("target_modules")
    @classmethod
    def _some_names(cls, value: Any) -> Any:
        if isinstance(value, list) and not (value and all(value)):
            raise ValueError("name at least one layer, or all-linear")
        return value


class Training(Section):
    """pi_t -> pi_{t+1}: one optimiser step is so many prompts, however they are packed."""

    learning_rate: float = Field(5e-7, gt=0)
    optimizer: str = Field("adamw_torch", min_length=1, description="a name of transformers' `optim`")
    optimizer_args: dict[str, float | str] = Field(
        default_factory=dict, description="transformers' `optim_args`"
    )
    weight_decay: float = Field(0.0, ge=0)
    batch_prompts: int = Field(64, ge=1, description="prompts in one optimiser step, over all devices")
    epochs: float = Field(1.0, gt=0, le=10_000, description="that the learning-rate schedule spans")
    keep_epochs: float | None = Field(
        None, gt=0, description="stop after so many of them and keep that policy; None: all"
    )
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="of the schedule's steps")
    max_grad_norm: float = Field(1.0, ge=0, description="0: no clipping")
    pack_tokens: int = Field(
        16384, ge=1, description="tokens computed side by side; moves results by rounding only"
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    save_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of pi_{t+1}; None: policy.dtype"
    )
    devices: int | Literal["auto"] = Field(1, description="processes to train with; auto: one for each GPU")
    sharding: Literal["fsdp2", "zero3"] | None = Field(
        None,
        description="of weights, gradients and optimiser state over the devices: PyTorch's FSDP2 or DeepSpeed's"
        " ZeRO-3; None: each device holds all of them (DDP)",
    )
    truncated_responses: Literal["score_only", "train"] = Field(
        "score_only",
        description="responses truncated at max_new_tokens: scored but not trained on, or trained on",
    )
    max_tokens: int | None = Field(
        None,
        ge=2,
        description="of prompt and response; a longer response is cut there. None: what the model holds",
    )
    opponent_log_probs: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="log pi_t(y|x): computed once by the trainer's code, or as the sampler counted them",
    )
    adapter: Lora | None = Field(
        None, description="what is trained instead of the weights; None: the weights"
    )
    logging_steps: int = Field(1, ge=1)
    checkpoint_steps: int | Literal["auto"] | None = Field(
        "auto",
        description="optimiser steps between checkpoints; auto: by time, at most 5% of it; None: no checkpoints",
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _plain_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false

    def on_devices(self, count: int) -> "Training":
        """The settings for so many devices; over one, nothing is sharded."""
        return self.model_copy(update={"devices": count, "sharding": self.sharding if count > 1 else None})

    def result_settings(self) -> dict[str, Any]:
        """The values that the result of training depends on."""
        return self.model_dump(exclude={"logging_steps", "checkpoint_steps"})

    @field_validator("devices", "checkpoint_steps")
    @classmethod
    def _at_least_one(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1, or auto")
        return value

    @model_validator(mode="after")
    def _sharded_over_several(self) -> "Training":
        if self.sharding is not None and self.devices == 1:
            raise ValueError(
                f"sharding: {self.sharding} over one device; set devices to their number, or to auto"
            )
        return self

    @model_validator(mode="after")
    def _adapters_stay_whole(self) -> "Training":
        if self.adapter is not None and self.sharding is not None:
            raise ValueError(
                f"sharding: {self.sharding}, but an adapter is trained beside a whole copy of the weights on each"
                " device; leave sharding out"
            )
        if self.adapter is not None and not self.adapter.merge and self.save_dtype is not None:
            raise ValueError(
                f"save_dtype: {self.save_dtype}, but a kept adapter is saved as it was trained, in float32;"
                " leave save_dtype out, or set adapter.merge: true"
            )
        return self

    @model_validator(mode="after")
    def _kept_within_schedule(self) -> "Training":
        if self.keep_epochs is not None and self.keep_epochs > self.epochs:
            raise ValueError(
                f"keep_epochs: {self.keep_epochs:g} of a schedule of {self.epochs:g} epochs; raise epochs"
            )
        return self
