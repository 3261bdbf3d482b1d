"""One iteration's training with `transformers.Trainer`, in which an optimiser step is a fixed number of prompts.

One batch of the Trainer is this process's share of a step's prompts. `training_step` processes the share pack by pack,
weights every prompt by 1 / (prompts in the whole step), and reduces gradients over the processes once, with the last pack.
So the step's gradient is that of the mean loss over its prompts, however they are divided into packs and processes.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sppo.objectives import Responses
from sppo.recipe import Algorithm
from sppo.training.examples import Example, StepBatch, StepBatches, TrainingError
from sppo.training.log_probs import (
    Capabilities,
    Tree,
    measure_capabilities,
    measure_noise,
    packs,
    precision,
    response_log_probs,
    set_training_mode,
)
from sppo.training.metrics import Size, StepMetrics, StepSums
from sppo.training.out_of_memory import explained
from sppo.training.schedule import Steps
from sppo.training.unused_weights import has_weights_without_gradient


class SelfPlayTrainer(Trainer):  # type: ignore[misc]
    """Fits the policy to its training examples.

    Args:
        model: pi_theta, initialised with the weights of pi_t, with its dropout off.
        args: the Trainer's arguments, with `max_steps` = `steps.kept`.
        batches: this process's share of each optimiser step.
        algorithm: computes one loss per prompt; the step minimises their mean.
        pack_tokens: the largest number of tokens that go through the model together.
        mixed_precision: `no` or `bf16`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        batches: StepBatches,
        algorithm: Algorithm,
        pack_tokens: int,
        mixed_precision: str,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._algorithm = algorithm
        self._pack_tokens = pack_tokens
        self._mixed_precision = mixed_precision
        self._batches = batches
        self._steps: Steps = batches.steps
        dtype = torch.bfloat16 if mixed_precision == "bf16" else model.dtype
        self._metrics = StepMetrics(args.device, dtype)
        self._size = Size.measure(model)
        # A sharded model computes only when all processes do. The Trainer shards it later, so it is measured at the first
        # step.
        self._capabilities: Capabilities | None = None
        if not (args.fsdp or args.deepspeed):
            self._measure(model, "no")
            assert self._capabilities is not None
            args.ddp_find_unused_parameters = has_weights_without_gradient(model, self._capabilities)
        super().__init__(model=model, args=args, train_dataset=batches, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)

    def _measure(self, model: Any, mixed_precision: str) -> None:
        self._capabilities = measure_capabilities(model, mixed_precision)
        self._noisy = measure_noise(model, self._capabilities, mixed_precision)

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        """Load one item per step; accelerate does not divide the data set, which is already this process's own."""
        return DataLoader(self._batches, batch_size=1, collate_fn=_as_batch)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make a schedule over `steps.scheduled` steps, of which only the first `steps.kept` are taken."""
        del num_training_steps
        return super().create_scheduler(self._steps.scheduled, optimizer)

    def floating_point_ops(self, inputs: dict[str, StepBatch]) -> int:
        """The FLOPs of the forward and backward passes over this process's share of the step."""
        return self._size.flops([_tree(example) for example in inputs["step"].examples])

    def training_step(
        self, model: Any, inputs: dict[str, StepBatch], num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute the gradients of the step's mean loss over its prompts, and return the loss."""
        del num_items_in_batch
        if self._capabilities is None:
            self._measure(model, self._mixed_precision)
        set_training_mode(model, self._noisy)
        self._batch = inputs["step"]
        weighted_packs = self._weighted_packs(self._batch)
        sums = StepSums()
        for number, (examples, weight) in enumerate(weighted_packs, 1):
            last = number == len(weighted_packs)
            # Gradients accumulate locally over the packs, and only the last backward pass reduces them over the processes:
            # reduction is linear, so one per step gives the same sum. DeepSpeed learns from the gradient state which
            # backward pass completes the step.
            self.accelerator.gradient_state._set_sync_gradients(last)
            alone = nullcontext() if last else self.accelerator.no_sync(model)
            with alone, explained(self.state.global_step + 1, examples):
                loss = self._pack_loss(model, examples, weight, sums)
                # The weights are already divided by the number of prompts in the whole step, so the gradients of the
                # processes must be added, but the reduction averages them. The factor undoes its division.
                self.accelerator.backward(loss * self.accelerator.num_processes)
        sums.values = self._over_processes(sums.values)
        self._metrics.add(sums)
        return torch.tensor(sums.loss, device=self.args.device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm as the Trainer computes it, refused if it is not finite."""
        # The Trainer calls this before the optimiser's step, so a gradient that is not finite never reaches the weights.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)}, {self._describe_prompts_at_fault(model)};"
                " the step was not applied. Lower training.learning_rate, or inspect these prompts' responses"
            )
        return norm

    def _describe_prompts_at_fault(self, model: Any) -> str:
        """Name the prompts of the step whose own gradient is not finite."""
        # The gradients are recomputed one prompt at a time. Sharded processes, which have different numbers of prompts but
        # compute together, would wait for each other.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "over the step's prompts"
        wrong = []
        for example in self._batch.examples:
            model.zero_grad()
            with self.accelerator.no_sync(model):
                self.accelerator.backward(self._pack_loss(model, [example], 1.0, StepSums()))
            gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
            if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                wrong.append(example.prompt_id)
        wrong = gather_object(wrong)
        return (
            f"for the prompts {_named(wrong)}"
            if wrong
            else "though each of its prompts alone has a finite one"
        )

    def _weighted_packs(self, batch: StepBatch) -> list[tuple[list[Example], float]]:
        """The packs of this process's prompts, each with the weight of its prompts in the step's mean."""
        assert self._capabilities is not None
        trees = [_tree(example) for example in batch.examples]
        weighted_packs = [
            ([batch.examples[index] for index in pack.indices], 1 / batch.step_prompts)
            for pack in packs(trees, self._pack_tokens, self._capabilities)
        ]
        # The reduction of gradients waits for all processes, so even a process without prompts needs a backward pass. With
        # sharded weights every pass gathers them from all processes, so all processes need the same number of passes.
        # Missing passes use an arbitrary prompt and the weight 0, which leaves the gradients unchanged.
        needed = max(1, len(weighted_packs))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            counts = self.accelerator.gather(torch.tensor([needed], device=self.args.device))
            needed = int(counts.max())
        return weighted_packs + [([self._batches.any_example()], 0.0)] * (needed - len(weighted_packs))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the Trainer's figures and those of the steps, with `epoch` counted in passes over the prompts."""
        if "loss" in logs:
            logs = {**logs, **self._metrics.take(self.accelerator.num_processes)}
        super().log(logs, start_time)
        for record in (logs, self.state.log_history[-1]):
            record["epoch"] = self.state.global_step / self._steps.per_epoch

    def _over_processes(self, sums: Tensor) -> Tensor:
        """Add up sums over the processes, in double precision if the device supports it."""
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        total: Tensor = self.accelerator.reduce(sums.to(self.args.device, dtype), reduction="sum")
        return total.cpu().double()

    def _pack_loss(self, model: Any, examples: Sequence[Example], weight: float, sums: StepSums) -> Tensor:
        device = self.args.device
        with precision(self._mixed_precision, device):
            trees = [_tree(example) for example in examples]
            assert self._capabilities is not None
            log_probs = response_log_probs(model, trees, self._capabilities)
        # log pi_t(y|x) was computed before training and is a constant of the loss.
        opponent = torch.tensor([value for example in examples for value in example.opponent_log_probs])
        opponent = opponent.to(device)
        responses = _responses(log_probs - opponent, opponent, examples)
        loss: Tensor = self._algorithm.loss(responses) * weight
        total = loss.sum()
        if not torch.isfinite(total):
            wrong = [examples[row].prompt_id for row in (~torch.isfinite(loss)).nonzero().flatten()]
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite for the prompts {_named(wrong)}; the"
                " step was not applied. Lower training.learning_rate, or inspect these prompts' responses"
            )
        if weight > 0:  # passes that are made only because other processes need them do not count
            sums.add(responses, log_probs, self._algorithm.targets(responses), total)
            sums.add_work(trees, self._size)
        return total


def _named(prompts: Sequence[str]) -> str:
    return f"{', '.join(prompts[:5])}{' and more' if len(prompts) > 5 else ''}"


def _responses(log_ratio: Tensor, opponent: Tensor, examples: Sequence[Example]) -> Responses:
    """Gather the responses of all examples, in the order of :func:`response_log_probs`."""
    device = log_ratio.device
    sizes = [len(example.responses) for example in examples]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    winners_and_losers = [
        tuple(start + number for number in example.best_and_worst())
        for start, example in zip(starts, examples, strict=True)
    ]
    demonstrations = [flag for e in examples for flag in (e.demonstrations or [False] * len(e.responses))]
    return Responses(
        log_ratio=log_ratio,
        opponent=opponent,
        demonstration=torch.tensor(demonstrations, device=device),
        references=_references(examples, device) - opponent,
        reward=torch.tensor([reward for example in examples for reward in example.rewards], device=device),
        win_rate=torch.tensor([rate for example in examples for rate in example.win_rates], device=device),
        prompt=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device),
        log_partition=torch.tensor([example.log_partition for example in examples], device=device),
        winner=torch.tensor([winner for winner, _ in winners_and_losers], device=device),
        loser=torch.tensor([loser for _, loser in winners_and_losers], device=device),
    )


def _references(examples: Sequence[Example], device: torch.device) -> Tensor:
    """log pi(y|x) of each response under each reference policy, [policies, responses]."""
    per_response = [values for example in examples for values in example.reference_log_probs]
    return torch.tensor(per_response, device=device).reshape(sum(len(e.responses) for e in examples), -1).T


def _tree(example: Example) -> Tree:
    return Tree(example.prompt, example.responses)


def _as_batch(items: list[StepBatch]) -> dict[str, StepBatch]:
    """The batch as the mapping that the Trainer expects."""
    return {"step": items[0]}
