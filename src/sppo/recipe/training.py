"""The `training:` section of a recipe."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sppo.recipe.section import Section

MOST_PACK_TOKENS = 16384
"""The largest pack that `training.pack_tokens: auto` chooses; beyond it nothing gets faster."""


class Lora(Section):
    """Train low-rank matrices beside frozen weights (LoRA, arXiv:2106.09685). The keys are those of peft."""

    type: Literal["lora"] = "lora"
    r: int = Field(16, ge=1)
    """Rank of the matrices."""
    lora_alpha: int = Field(32, ge=1)
    """The update is scaled by lora_alpha / r."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the adapted layers; all-linear adapts all linear layers except the output head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    merge: bool = False
    """True merges each pi_{t+1} into a whole policy; false keeps the adapter, which the next iteration trains on."""

    @field_validator("target_modules")
    @classmethod
    def _names_are_given(cls, value: Any) -> Any:
        if isinstance(value, list) and not (value and all(value)):
            raise ValueError("must name at least one layer, or be all-linear")
        return value


class Training(Section):
    """The training of pi_{t+1} from pi_t. An optimiser step takes a number of prompts, however they are packed."""

    learning_rate: float = Field(5e-7, gt=0)
    """The peak of the schedule; 5e-7 is the paper's, for 7B models."""
    optimizer: str = Field("adamw_torch", min_length=1)
    """An optimiser of transformers' `optim`."""
    optimizer_args: dict[str, float | str] = Field(default_factory=dict)
    """Transformers' `optim_args`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    batch_prompts: int = Field(64, ge=1)
    """Prompts in one optimiser step, over all devices."""
    epochs: float = Field(1.0, gt=0, le=10000)
    """Length of the learning-rate schedule."""
    keep_epochs: float | None = Field(None, gt=0)
    """Stop after this many epochs and keep that policy; None trains to the end of the schedule."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after its warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the schedule's steps that are warm-up."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Largest norm of the gradient, beyond which it is clipped; 0 never clips."""
    pack_tokens: int | Literal["auto"] = "auto"
    """Tokens computed side by side; changes results by rounding only. Auto is what half of the memory beside weights and
    optimiser state holds, and at most 16384; a run keeps the number that it began with."""
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    """With bf16, matrix products are computed in bfloat16 and weights stay in policy.dtype; auto is bf16 where the processor or the
    GPU multiplies it natively."""
    gradient_checkpointing: bool | Literal["offload"] = False
    """Recompute activations in the backward pass to save memory; with offload, what is kept for that lies in the machine's memory
    and not in the GPU's."""
    save_dtype: Literal["float32", "bfloat16"] | None = None
    """Data type of the saved pi_{t+1}; None takes policy.dtype."""
    devices: int | Literal["auto"] = 1
    """Number of training processes; auto starts one for each GPU."""
    sharding: Literal["fsdp2", "zero3"] | None = None
    """Divide weights, gradients and optimiser state over the devices by PyTorch's FSDP2 or DeepSpeed's ZeRO-3; None
    keeps all of them on each device (DDP)."""
    truncated_responses: Literal["score_only", "train"] = "score_only"
    """Whether responses truncated at max_new_tokens are only scored, or also trained on."""
    max_tokens: int | None = Field(None, ge=2)
    """Longest prompt and response together; longer responses are truncated. None allows what the context holds."""
    opponent_log_probs: Literal["trainer", "sampler"] = "trainer"
    """Take log pi_t(y|x) from the trainer's code or, without an extra pass, from the sampler."""
    adapter: Lora | None = None
    """An adapter to train instead of the weights."""
    logging_steps: int = Field(1, ge=1)
    """Optimiser steps between two lines of metrics."""
    checkpoint_steps: int | Literal["auto"] | None = "auto"
    """Optimiser steps between checkpoints; auto spends at most 5% of the time on them; None saves none."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _plain_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false

    @property
    def largest_pack(self) -> int:
        """`pack_tokens` as a number; `auto`, which a run replaces with its number, is the largest outside of a run."""
        return MOST_PACK_TOKENS if self.pack_tokens == "auto" else self.pack_tokens

    def on_devices(self, count: int) -> "Training":
        """The settings for a number of devices; on a single device nothing is sharded."""
        return self.model_copy(update={"devices": count, "sharding": self.sharding if count > 1 else None})

    def result_settings(self) -> dict[str, Any]:
        """The settings that the result of training depends on."""
        return self.model_dump(exclude={"logging_steps", "checkpoint_steps"})

    @field_validator("devices", "checkpoint_steps", "pack_tokens")
    @classmethod
    def _at_least_one(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value

    @model_validator(mode="after")
    def _sharding_needs_several_devices(self) -> "Training":
        if self.sharding is not None and self.devices == 1:
            raise ValueError(
                f"sharding: {self.sharding} needs several devices; set devices to their number, or to auto"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_not_sharded(self) -> "Training":
        if self.adapter is not None and self.sharding is not None:
            raise ValueError(
                f"sharding: {self.sharding}, but an adapter is trained with a whole copy of the weights on each"
                " device; leave out sharding"
            )
        if self.adapter is not None and not self.adapter.merge and self.save_dtype is not None:
            raise ValueError(
                f"save_dtype: {self.save_dtype}, but a kept adapter is saved in float32, as it was trained;"
                " leave out save_dtype, or set adapter.merge: true"
            )
        return self

    @model_validator(mode="after")
    def _training_ends_within_the_schedule(self) -> "Training":
        if self.keep_epochs is not None and self.keep_epochs > self.epochs:
            raise ValueError(
                f"keep_epochs: {self.keep_epochs:g} is beyond the schedule of {self.epochs:g} epochs; raise epochs"
            )
        return self
