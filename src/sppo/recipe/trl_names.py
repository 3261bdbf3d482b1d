"""Names of TRL's and transformers' settings, each with the key that does the same here.

A recipe in which one of them stands is answered with that key, and docs/trl.md shows the table.
"""

from collections.abc import Callable

_BATCH = (
    "prompts in one optimiser step over all devices; `training.pack_tokens` bounds what is computed at once"
)
_TRAINED_LENGTH = "prompt and response together, in tokens"
_ADAPTER = "e.g. `adapter: {type: lora, r: 16, lora_alpha: 32}`"

NAMES: dict[str, tuple[str, str]] = {
    "model_name_or_path": ("policy.model", "a folder or a hub name"),
    "model_revision": ("policy.revision", ""),
    "torch_dtype": ("policy.dtype", ""),
    "load_in_4bit": ("policy.quantization", "nf4"),
    "ref_model": ("policy.model", "the opponent pi_t of each iteration is kept by the run; it needs no key"),
    "dataset_name": ("prompts.train", "a file, a folder or a data set on the hub"),
    "dataset_config": ("prompts.train.config", ""),
    "dataset_train_split": ("prompts.train.split", ""),
    "eval_dataset": ("prompts.held_out", "a source, or a number of prompts to set aside"),
    "max_prompt_length": ("prompts.max_tokens", "longer prompts are refused, not truncated"),
    "num_generations": ("sampling.k", "responses to each prompt"),
    "max_completion_length": ("sampling.max_new_tokens", ""),
    "use_vllm": ("sampling.engine", "vllm"),
    "judge": ("oracle", "e.g. `{type: pairrm, model: llm-blender/PairRM}` or `{type: judge, ...}`"),
    "reward_model_path": ("oracle", "e.g. `{type: reward_model, model: PATH}`"),
    "reward_funcs": ("oracle", "`{type: function, function: module:name}`"),
    "loss_type": ("algorithm.type", "sppo, dpo, ipo, ..."),
    "beta": ("algorithm.eta", "1 / beta, the size of a step; with `algorithm: {type: dpo}` it is `beta`"),
    "per_device_train_batch_size": ("training.batch_prompts", _BATCH),
    "gradient_accumulation_steps": ("training.batch_prompts", _BATCH),
    "num_train_epochs": ("training.epochs", "in each iteration"),
    "max_steps": ("training.keep_epochs", "where training stops, in passes over the iteration's prompts"),
    "lr_scheduler_type": ("training.schedule", ""),
    "warmup_steps": ("training.warmup_ratio", "the share of the steps"),
    "optim": ("training.optimizer", ""),
    "optim_args": ("training.optimizer_args", ""),
    "bf16": ("training.mixed_precision", "bf16"),
    "fp16": ("training.mixed_precision", "bf16; there is no fp16"),
    "max_length": ("training.max_tokens", _TRAINED_LENGTH),
    "max_seq_length": ("training.max_tokens", _TRAINED_LENGTH),
    "activation_offloading": ("training.gradient_checkpointing", "offload"),
    "use_peft": ("training.adapter", _ADAPTER),
    "peft_config": ("training.adapter", _ADAPTER),
    "lora_r": ("training.adapter", _ADAPTER),
    "lora_alpha": ("training.adapter", _ADAPTER),
    "lora_target_modules": ("training.adapter", _ADAPTER),
    "fsdp": ("training.sharding", "fsdp2"),
    "deepspeed": ("training.sharding", "zero3"),
    "save_steps": ("training.checkpoint_steps", ""),
    "num_processes": ("training.devices", "a number, or auto"),
    "missing_eos_penalty": (
        "training.truncated_responses",
        "truncated responses are scored, but not trained on",
    ),
    "output_dir": ("--run-dir", "the option of `sppo run`; by default runs/NAME after the recipe's file"),
    "run_name": ("--run-dir", "the option of `sppo run`; the run has its folder's name"),
    "resume_from_checkpoint": ("sppo run", "the same command again continues"),
    "push_to_hub": ("sppo export", "with `--push-to-hub OWNER/NAME`"),
}
"""TRL's names with the dotted key or the command that does the same, and what else is to be known."""


def answer(name: str, is_known: Callable[[str], bool]) -> str | None:
    """Say which key does what a setting of TRL does; None for any other name.

    Args:
        name: the unknown key of a recipe.
        is_known: whether the recipe at hand has a dotted key, since the keys of an algorithm depend on its type.
    """
    key, note = NAMES.get(name, ("", ""))
    if not key or (key.partition(" ")[0] not in ("sppo", "--run-dir") and not is_known(key)):
        return None
    return f"here it is `{key}`" + (f" ({note})" if note else "")


def markdown_table() -> str:
    """All names as a table for the documentation."""
    rows = [f"| `{name}` | `{key}` | {note} |" for name, (key, note) in NAMES.items()]
    return "\n".join(["| TRL, transformers | here | |", "|---|---|---|", *rows]) + "\n"
