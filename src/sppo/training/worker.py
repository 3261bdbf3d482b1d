"""The training process: `python -m sppo.training.worker JOB`, or called by the only process there is."""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from sppo import randomness
from sppo.policy import load as policy
from sppo.policy.tokenizer_files import copy_tokenizer
from sppo.rundir.records import append_line
from sppo.training import TrainingJob, lora, optimizer, sharding
from sppo.training.checkpoints import Checkpoints
from sppo.training.examples import StepBatches, check, read
from sppo.training.interruption import Interruption
from sppo.training.launch import end_with_the_parent
from sppo.training.trainer import SelfPlayTrainer


def run(
    job: TrainingJob, interruption: Interruption, on_step: Callable[[int], None] = lambda count: None
) -> None:
    """Train and save pi_{t+1} to the job's output folder."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    settings = job.settings
    sharded = settings.sharding if processes > 1 else None
    table = read([Path(shard) for shard in job.shards])
    check(
        table,
        opponent=job.opponent,
        reference_policies=job.reference_policies,
        context=policy.context_length(Path(job.policy), job.trust_remote_code),
    )
    set_seed(randomness.seed("train", job.seed))
    args = TrainingArguments(
        output_dir=job.work,
        max_steps=job.steps.kept,
        per_device_train_batch_size=1,
        lr_scheduler_type=settings.schedule,
        warmup_steps=job.steps.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.mixed_precision == "bf16" and sharded != "zero3",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=job.report_to or "none",
        run_name=job.run_name,
        seed=randomness.seed("train", job.seed),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        **optimizer.arguments(settings),
        **{"use_cpu": not torch.cuda.is_available()} | sharding.arguments(sharded, settings),
    )
    args._n_gpu = min(1, args.n_gpu)  # one process a device: never the Trainer's own nn.DataParallel
    sharding.prepare(sharded, args.device)
    model = policy.load(
        Path(job.policy),
        dtype=job.dtype,
        attn_implementation=job.attn_implementation,
        trust_remote_code=job.trust_remote_code,
        device="cpu" if sharded else str(args.device),
        quantization=job.quantization,
    )
    if settings.adapter is not None:
        model = lora.prepare(model, settings.adapter, randomness.seed("adapter", job.seed))
    disable_dropout(model)
    batches = StepBatches(
        table,
        batch_prompts=settings.batch_prompts,
        steps=job.steps,
        seed=job.seed,
        rank=rank,
        processes=processes,
    )
    checkpoints = [Checkpoints(job, interruption)] if settings.checkpoint_steps is not None else []
    with _tracker_folder(Path(job.metrics).parent / "trackers"):
        trainer = SelfPlayTrainer(
            model=model,
            args=args,
            batches=batches,
            algorithm=job.algorithm,
            pack_tokens=settings.pack_tokens,
            mixed_precision=settings.mixed_precision,
            callbacks=[_Report(Path(job.metrics), on_step), *checkpoints],
        )
        sharding.keep_sums_precise(trainer)
        with interruption.noted() if checkpoints else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=job.checkpoint)
    state = sharding.whole_state(trainer)
    if rank == 0:
        save(model, job, state)


def disable_dropout(model: nn.Module) -> None:
    """No dropout: at the first step every log-ratio is exactly log 1 = 0, and pi_t has none either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def save(model: Any, job: TrainingJob, state: dict[str, Tensor] | None) -> None:
    """Write a policy as an ordinary transformers folder, with the small files of the one it came from.

    A kept adapter is written instead of the policy's weights.

    Args:
        model: unwrapped.
        job: that it comes from.
        state: its whole weights, where it holds but a part of them.
    """
    adapter = job.settings.adapter
    if adapter is not None and not adapter.merge:
        lora.save(
            model,
            Path(job.output),
            policy=Path(job.policy),
            model_name=job.model,
            revision=job.revision,
            quantization=job.quantization,
        )
    else:
        _save_whole(model, job, state)
    copy_tokenizer(Path(job.policy), Path(job.output), job.chat_template)


def _save_whole(model: Any, job: TrainingJob, state: dict[str, Tensor] | None) -> None:
    dtype = getattr(torch, job.settings.save_dtype or job.dtype)
    if job.settings.adapter is not None:
        model = lora.merged(model, dtype)
    if state is None:
        model = model.to(dtype)
    else:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with policy.quiet():
        model.save_pretrained(job.output, state_dict=state)
    if state is not None:  # the model itself has kept the dtype that it was trained in
        model.config.dtype = dtype
        model.config.save_pretrained(job.output)


@contextlib.contextmanager
def _tracker_folder(folder: Path) -> Iterator[None]:
    """Where a tracker writes files, unless the user says so: beside the metrics, since job.work goes."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(name)
    os.environ[name] = given or str(folder)
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]


class _Report(TrainerCallback):  # type: ignore[misc]
    """Writes each log line to the metrics file and counts steps."""

    def __init__(self, metrics: Path, on_step: Callable[[int], None]) -> None:
        self.metrics = metrics
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            append_line(self.metrics, {"stage": "train", "step": state.global_step, **logs})


def main(path: str) -> None:
    """Run the job of a file as one process of several."""
    end_with_the_parent(signal.SIGKILL)
    job = TrainingJob.from_json(Path(path).read_text(encoding="utf-8"))
    try:
        run(job, Interruption.of_one_of_several())
    except Exception as error:
        failure = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        name = f"failure-{os.environ['RANK']}.json"
        (Path(job.work) / name).write_text(json.dumps(failure), encoding="utf-8")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
