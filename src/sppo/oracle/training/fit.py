"""Trains the network with transformers' Trainer: the order of the pairs, the steps, and resuming from a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sppo import randomness
from sppo.oracle import OracleError
from sppo.oracle.training.pairs import JudgedPair
from sppo.policy import memory
from sppo.progress import Advance, unseen
from sppo.recipe.oracle_training import OracleTraining

_CHUNK = 16
"""Batches that are sorted by length together: little padding, and nearly random batches."""
_LONGEST = 8
"""So many pairs with the most characters are encoded to find the one with the most tokens."""
SCRATCH_LEARNING_RATE, PRETRAINED_LEARNING_RATE, ADAPTER_LEARNING_RATE = 5e-4, 1e-5, 1e-4


class Inputs(Protocol):
    """Makes the inputs of a network from pairs."""

    def item(self, pair: JudgedPair, swapped: bool, weight: float) -> dict[str, Any]:
        """The input of one pair, whose two responses may be swapped."""
        ...

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several inputs as the arguments of the network's `forward`."""
        ...


def item_of(pair: JudgedPair, swapped: bool, weight: float) -> dict[str, Any]:
    """The target and the weight of a pair, which every input has."""
    return {"probability": 1 - pair.probability if swapped else pair.probability, "weight": weight}


def numbers(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The targets and the weights of a batch."""
    return {
        name: torch.tensor([item[name] for item in items], dtype=torch.float32)
        for name in ("probability", "weight")
    }


def steps(settings: OracleTraining, pairs: int) -> int:
    """The number of optimiser steps of the whole training."""
    return max(1, round(settings.training.epochs * pairs / settings.training.batch_pairs))


def order(characters: Sequence[int], count: int, batch: int, seed: int) -> list[tuple[int, bool]]:
    """The pair at each place of the training, and whether its two responses are swapped.

    Every epoch draws a new permutation, and a new order of the responses of each pair. Pairs of similar length stand
    in one batch.

    Args:
        characters: the length of each pair.
        count: the number of places.
        batch: the number of places in a step.
        seed: the seed of the training.
    """
    found: list[tuple[int, bool]] = []
    epoch = 0
    lengths = np.asarray(characters)
    while len(found) < count:
        generator = randomness.generator("train-oracle", seed, "order", epoch)
        permutation, swapped = (
            generator.permutation(len(lengths)),
            generator.random(len(lengths)) < 0.5,
        )
        for start in range(0, len(lengths), _CHUNK * batch):
            chunk = permutation[start : start + _CHUNK * batch]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            batches = [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
            # a batch that is not full stays last, so that no step straddles two lengths
            full = len(batches) - (len(batches[-1]) < batch)
            shuffled = [batches[n] for n in generator.permutation(full)] + batches[full:]
            found += [(int(n), bool(swapped[n])) for n in np.concatenate(shuffled)]
        epoch += 1
    return found[:count]


class Places(Dataset[dict[str, Any]]):
    """The pairs in the order in which the training sees them."""

    def __init__(
        self, pairs: Sequence[JudgedPair], places: Sequence[tuple[int, bool]], inputs: Inputs
    ) -> None:
        self.pairs, self.places, self.inputs = pairs, places, inputs
        self.judgments = float(np.mean([pair.judgments for pair in pairs]))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> dict[str, Any]:
        number, swapped = self.places[place]
        pair = self.pairs[number]
        return self.inputs.item(pair, swapped, pair.judgments / self.judgments)


class _InOrder(Trainer):  # type: ignore[misc]
    """A Trainer that reads its dataset in order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)


class _Report(TrainerCallback):  # type: ignore[misc]
    def __init__(self, log: Path, on_step: Advance) -> None:
        self.log, self.on_step = log, on_step
        self.seen = 0
        self.loss = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step - self.seen, self.loss)
        self.seen = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        if not np.isfinite(logs["loss"]):
            raise OracleError(
                f"step {state.global_step}: the loss is {logs['loss']}; lower training.learning_rate"
            )
        self.loss = f"loss {logs['loss']:.4g}"
        if state.is_world_process_zero:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _arguments(settings: OracleTraining, total: int, checkpoints: Path) -> TrainingArguments:
    """The Trainer's arguments for a training of `total` steps."""
    training = settings.training
    rate = training.learning_rate
    if rate is None:
        scratch = settings.head is None and settings.encoder.model is None
        whole = SCRATCH_LEARNING_RATE if scratch else PRETRAINED_LEARNING_RATE
        rate = whole if training.adapter is None else ADAPTER_LEARNING_RATE
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=total,
        per_device_train_batch_size=training.batch_pairs,
        learning_rate=rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=round(training.warmup_ratio * total),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.mixed_precision == "bf16",
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint_steps,
        save_total_limit=1,
        report_to=settings.report_to or "none",
        seed=randomness.seed("train-oracle", settings.seed),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def pairs_at_a_time(
    network: Any, inputs: Inputs, pairs: Sequence[JudgedPair], settings: OracleTraining, processes: int
) -> int:
    """The pairs that a device computes at a time: those of a step that it is given, or a part of them that fits into the memory.

    The activations of so many pairs like the longest one take at most half of the memory that weights, gradients and
    optimiser state leave. The memory is that of the whole machine, not what is free, so that a training that goes on takes the same number.

    Args:
        network: what is trained, a module with its pretrained part under `encoder`.
        inputs: makes its inputs.
        pairs: what it is trained on.
        settings: of the training.
        processes: the number of devices.

    Raises:
        OracleError: a step's pairs cannot be shared by the devices, or a device's share by `training.device_pairs`.
    """
    training = settings.training
    share, rest = divmod(training.batch_pairs, processes)
    if rest:
        raise OracleError(
            f"training.batch_pairs: {training.batch_pairs} cannot be shared by {processes} processes"
        )
    if training.device_pairs is not None:
        if share % training.device_pairs:
            raise OracleError(
                f"training.device_pairs: {training.device_pairs} does not divide the {share} pairs of a step on each device;"
                " take a number that does, or change training.batch_pairs"
            )
        return training.device_pairs
    each = memory.activation_bytes(
        network.encoder.config.to_dict(), "float32", gradient_checkpointing=training.gradient_checkpointing
    )
    if each is None:
        return share
    longest = sorted(pairs, key=lambda pair: pair.characters)[-_LONGEST:]
    batches = (inputs.collate([inputs.item(pair, False, 1.0)]) for pair in longest)
    tokens = max(value.numel() for batch in batches for value in batch.values() if isinstance(value, Tensor))
    weights = list(network.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    state = 4 * (sum(weight.numel() for weight in weights) + 3 * trained)
    room = memory.room_for_activations(state)
    fitting = (count for count in range(share, 1, -1) if share % count == 0 and count * tokens * each <= room)
    return next(fitting, 1)


def fit(
    network: Any,
    inputs: Inputs,
    pairs: Sequence[JudgedPair],
    settings: OracleTraining,
    work: Path,
    on_step: Advance = unseen,
) -> bool:
    """Train a network in place, from its last checkpoint where there is one.

    Args:
        network: what is trained, a module with its pretrained part under `encoder`.
        inputs: makes its inputs.
        pairs: what it is trained on.
        settings: of the training.
        work: where checkpoints and the log are kept.
        on_step: called with the number of steps taken.

    Raises:
        OracleError: a loss is not finite, or a step's pairs cannot be shared by the devices.

    Returns:
        Whether this process is the one that saves the result, where there are several.
    """
    training = settings.training
    arguments = _arguments(settings, steps(settings, len(pairs)), work / "checkpoints")
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process a device
    at_a_time = pairs_at_a_time(network, inputs, pairs, settings, arguments.world_size)
    arguments.per_device_train_batch_size = at_a_time
    arguments.gradient_accumulation_steps = training.batch_pairs // arguments.world_size // at_a_time
    if training.gradient_checkpointing:
        network.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    characters = [pair.characters for pair in pairs]
    places = order(
        characters, arguments.max_steps * training.batch_pairs, training.batch_pairs, settings.seed
    )
    torch.manual_seed(arguments.seed)
    trainer = _InOrder(
        model=network,
        args=arguments,
        train_dataset=Places(pairs, places, inputs),
        data_collator=inputs.collate,
        callbacks=[_Report(work / "log.jsonl", on_step)],
    )
    trainer.remove_callback(PrinterCallback)  # the log has its lines
    (work / "checkpoints").mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work / "checkpoints")))
    return bool(arguments.process_index == 0)
