"""The training itself, run in the only process or as `python -m sppo.training.worker JOB` in each of several."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import TrainerCallback, TrainingArguments, set_seed

from sppo import randomness
from sppo.policy import load as policy
from sppo.policy.saving import save_model
from sppo.policy.tokenizer_files import copy_tokenizer
from sppo.progress import Advance, unseen
from sppo.rundir.records import append_line
from sppo.training import (
    TrainingJob,
    gradient_checkpointing,
    lora,
    loss_text,
    mixed_precision,
    optimizer,
    sharding,
)
from sppo.training.checkpoints import Checkpoints
from sppo.training.examples import StepBatches, check, read
from sppo.training.interruption import Interruption
from sppo.training.launch import end_with_the_parent
from sppo.training.out_of_memory import warn_of_large_examples
from sppo.training.trainer import SelfPlayTrainer
from sppo.training.unused_weights import freeze_beside_text


def run(job: TrainingJob, interruption: Interruption, on_step: Advance = unseen) -> None:
    """Train pi_{t+1} and save it to the job's output folder."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    settings = job.settings.model_copy(update={"mixed_precision": mixed_precision(job.settings)})
    job = dataclasses.replace(job, settings=settings)
    sharded = settings.sharding if processes > 1 else None
    table = read([Path(shard) for shard in job.shards])
    check(
        table,
        opponent=job.opponent,
        reference_policies=job.reference_policies,
        context=policy.context_length(Path(job.policy), job.trust_remote_code),
    )
    set_seed(randomness.seed("train", job.seed))
    args = _arguments(job, sharded)
    model = _load(job, args, sharded)
    if sharded is None and rank == 0:
        warn_of_large_examples(table, model, settings)
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
            pack_tokens=settings.largest_pack,
            mixed_precision=settings.mixed_precision,
            callbacks=[_Report(Path(job.metrics), on_step), *checkpoints],
        )
        sharding.keep_sums_precise(trainer)
        with policy.quiet(), interruption.deferred() if checkpoints else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=job.checkpoint)
    state = sharding.whole_state(trainer)
    if rank == 0:
        save(model, job, state)


def _arguments(job: TrainingJob, sharded: sharding.Sharding) -> TrainingArguments:
    settings = job.settings
    args = TrainingArguments(
        output_dir=job.work,
        max_steps=job.steps.kept,
        per_device_train_batch_size=1,
        lr_scheduler_type=settings.schedule,
        warmup_steps=job.steps.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.mixed_precision == "bf16" and sharded != "zero3",
        **gradient_checkpointing.arguments(settings, on_gpu=torch.cuda.is_available()),
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
    args._n_gpu = min(1, args.n_gpu)  # one process per device, so the Trainer must not use nn.DataParallel
    return args


def _load(job: TrainingJob, args: TrainingArguments, sharded: sharding.Sharding) -> Any:
    """Load pi_t with its dropout off and, if one is trained, with an adapter."""
    sharding.prepare(sharded, args.device)
    model = policy.load(
        Path(job.policy),
        dtype=job.dtype,
        attn_implementation=job.attn_implementation,
        trust_remote_code=job.trust_remote_code,
        device="cpu" if sharded else str(args.device),
        quantization=job.quantization,
    )
    if job.settings.adapter is not None:
        model = lora.prepare(model, job.settings.adapter, randomness.seed("adapter", job.seed))
    freeze_beside_text(model)
    disable_dropout(model)
    return model


_DROPOUT = re.compile(r"dropout|pdrop|drop_prob|drop_path|layerdrop")


def disable_dropout(model: nn.Module) -> None:
    """Switch off dropout: pi_t has none, and at the first step every log-ratio must be exactly log 1 = 0."""
    # Modules of dropout have a rate p. Others keep a rate as an attribute that is called dropout by itself
    # (`residual_dropout`, `attn_pdrop`). Noise of other kinds is found by `measure_noise`.
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and _DROPOUT.search(name):
                setattr(module, name, 0.0)


def save(model: Any, job: TrainingJob, state: dict[str, Tensor] | None) -> None:
    """Write the trained policy as an ordinary transformers folder with the tokenizer of the policy that it came from.

    An adapter that is kept is written without the policy's weights.

    Args:
        model: the trained model, not wrapped.
        job: the job that it was trained by.
        state: all weights, if the model holds only a part of them.
    """
    source, output = Path(job.policy), Path(job.output)
    adapter = job.settings.adapter
    if adapter is not None and not adapter.merge:
        lora.save(
            model,
            output,
            policy=source,
            model_name=job.model,
            revision=job.revision,
            quantization=job.quantization,
        )
    else:
        dtype = getattr(torch, job.settings.save_dtype or job.dtype)
        if adapter is not None:
            model = lora.merged(model, dtype)
        if state is None:
            model = model.to(dtype)
        else:
            state = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_model(model, output, source, state=state)
    copy_tokenizer(source, output, job.chat_template)


@contextlib.contextmanager
def _tracker_folder(folder: Path) -> Iterator[None]:
    """Let trackers write beside the metrics, because `job.work` is removed; a folder that the user has set is kept."""
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ[name] = before or str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


class _Report(TrainerCallback):  # type: ignore[misc]
    """Writes each line of the log to the metrics file, and reports each step."""

    def __init__(self, metrics: Path, on_step: Advance) -> None:
        self.metrics = metrics
        self.on_step = on_step
        self.loss = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(1, self.loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            append_line(self.metrics, {"stage": "train", "step": state.global_step, **logs})
            self.loss = loss_text(logs)


def main(path: str) -> None:
    """Run the job in a file, as one of several processes."""
    end_with_the_parent(signal.SIGKILL)
    job = TrainingJob.from_json(Path(path).read_text(encoding="utf-8"))
    try:
        run(job, Interruption.for_worker())
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
