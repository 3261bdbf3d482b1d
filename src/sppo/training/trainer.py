"""One iteration's training on `transformers.Trainer`: an optimiser step is so many prompts.

One batch of the Trainer is this process's share of a step's prompts. `training_step` walks its packs,
weights each prompt by the whole step's count and lets gradients be reduced once, with the last pack; so
packing, processes and memory never change the mathematics.
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

from sppo.algorithms import Algorithm, Responses
from sppo.training.examples import Example, StepShare, StepShares, TrainingError
from sppo.training.log_probs import Tree, capabilities, packs, precision, response_log_probs
from sppo.training.metrics import Size, StepMetrics, StepSums
from sppo.training.schedule import Steps


class SelfPlayTrainer(Trainer):  # type: ignore[misc]
    """Fits the policy to its training examples.

    Args:
        model: pi_theta, initialised with the weights of pi_t.
        args: with `max_steps` = `steps.kept`.
        shares: the optimiser steps' prompts.
        algorithm: one loss per prompt; the step minimises their mean.
        pack_tokens: tokens computed side by side.
        mixed_precision: `no` or `bf16`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        shares: StepShares,
        algorithm: Algorithm,
        pack_tokens: int,
        mixed_precision: str,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._algorithm = algorithm
        self._pack_tokens = pack_tokens
        self._mixed_precision = mixed_precision
        self._shares = shares
        self._steps: Steps = shares.steps
        dtype = torch.bfloat16 if mixed_precision == "bf16" else model.dtype
        self._metrics = StepMetrics(args.device, dtype)
        self._size = Size.of(model)
        # a sharded model computes in all processes at once: it is measured at the first step
        self._capabilities = None if args.fsdp or args.deepspeed else capabilities(model)
        super().__init__(model=model, args=args, train_dataset=shares, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[StepShare]:
        """One item a step; not sharded by accelerate, since each process draws its own share."""
        return DataLoader(self._shares, batch_size=1, collate_fn=_as_batch)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule spans `steps.scheduled` steps, of which only the first `steps.kept` are taken."""
        del num_training_steps
        return super().create_scheduler(self._steps.scheduled, optimizer)

    def floating_point_ops(self, inputs: dict[str, StepShare]) -> int:
        """Of the forward and backward pass of this process's share."""
        return self._size.flops([_tree(example) for example in inputs["share"].examples])

    def training_step(
        self, model: Any, inputs: dict[str, StepShare], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of the step's loss, averaged over its prompts; returns the loss."""
        del num_items_in_batch
        self._capabilities = self._capabilities or capabilities(model, self._mixed_precision)
        model.train()
        self._share = inputs["share"]
        passes = self._passes(self._share)
        sums = StepSums()
        for number, (examples, weight) in enumerate(passes, 1):
            last = number == len(passes)
            # DeepSpeed reads here which backward pass completes the step
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = self._pack_loss(model, examples, weight, sums)
                # gradients are averaged over the processes, and the loss is a sum over them
                self.accelerator.backward(loss * self.accelerator.num_processes)
        sums.values = self._over_processes(sums.values)
        self._metrics.add(sums)
        return torch.tensor(sums.loss, device=self.args.device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The Trainer's, called before the optimiser steps: what is not finite never gets into the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)}, {self._culprits(model)}; the"
                " step was not applied. Lower training.learning_rate, or look at these prompts' responses"
            )
        return norm

    def _culprits(self, model: Any) -> str:
        """Which prompts of the step have gradients that are not finite, computed one at a time."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # each pass would need all processes
            return "over the step's prompts"
        wrong = []
        for example in self._share.examples:
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

    def _passes(self, share: StepShare) -> list[tuple[list[Example], float]]:
        """The packs of a share, each with its prompts' weight in the step's mean.

        All processes reduce gradients together, so that each needs one pass; where weights are sharded they gather
        them together as well, so that each needs as many as any other. What is missing is made up with a weight of 0.
        """
        assert self._capabilities is not None
        trees = [_tree(example) for example in share.examples]
        passes = [
            ([share.examples[index] for index in pack.indices], 1 / share.step_prompts)
            for pack in packs(trees, self._pack_tokens, self._capabilities)
        ]
        needed = max(1, len(passes))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            counts = self.accelerator.gather(torch.tensor([needed], device=self.args.device))
            needed = int(counts.max())
        return passes + [([self._shares.any_example()], 0.0)] * (needed - len(passes))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's figures and the step's own; `epoch` counts passes over the prompts."""
        if "loss" in logs:
            logs = {**logs, **self._metrics.take(self.accelerator.num_processes)}
        super().log(logs, start_time)
        for record in (logs, self.state.log_history[-1]):
            record["epoch"] = self.state.global_step / self._steps.per_epoch

    def _over_processes(self, sums: Tensor) -> Tensor:
        """Figures added up over the processes; in single precision where the device has no other."""
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        total: Tensor = self.accelerator.reduce(sums.to(self.args.device, dtype), reduction="sum")
        return total.cpu().double()

    def _pack_loss(self, model: Any, examples: Sequence[Example], weight: float, sums: StepSums) -> Tensor:
        device = self.args.device
        with precision(self._mixed_precision, device):
            trees = [_tree(example) for example in examples]
            assert self._capabilities is not None
            log_probs = response_log_probs(model, trees, self._capabilities)
        opponent = torch.tensor([value for example in examples for value in example.opponent_log_probs])
        opponent = opponent.to(device)
        responses = _responses(log_probs - opponent, opponent, examples)
        loss: Tensor = self._algorithm.loss(responses) * weight
        total = loss.sum()
        if not torch.isfinite(total):
            wrong = [examples[row].prompt_id for row in (~torch.isfinite(loss)).nonzero().flatten()]
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite for the prompts {_named(wrong)}; the"
                " step was not applied."
                " Lower training.learning_rate, or look at these prompts' responses"
            )
        if weight > 0:
            sums.add(responses, log_probs, self._algorithm.targets(responses), total)
            sums.add_work(trees, self._size)
        return total


def _named(prompts: Sequence[str]) -> str:
    return f"{', '.join(prompts[:5])}{' and more' if len(prompts) > 5 else ''}"


def _responses(log_ratio: Tensor, opponent: Tensor, examples: Sequence[Example]) -> Responses:
    """The responses of some examples in a row, as :func:`response_log_probs` puts them."""
    device = log_ratio.device
    sizes = [len(example.responses) for example in examples]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    ends = [
        tuple(start + number for number in example.best_and_worst())
        for start, example in zip(starts, examples, strict=True)
    ]
    given = [flag for e in examples for flag in (e.demonstrations or [False] * len(e.responses))]
    return Responses(
        log_ratio=log_ratio,
        opponent=opponent,
        demonstration=torch.tensor(given, device=device),
        references=_references(examples, device) - opponent,
        reward=torch.tensor([reward for example in examples for reward in example.rewards], device=device),
        win_rate=torch.tensor([rate for example in examples for rate in example.win_rates], device=device),
        prompt=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device),
        log_partition=torch.tensor([example.log_partition for example in examples], device=device),
        winner=torch.tensor([winner for winner, _ in ends], device=device),
        loser=torch.tensor([loser for _, loser in ends], device=device),
    )


def _references(examples: Sequence[Example], device: torch.device) -> Tensor:
    """log pi(y|x) of each response under each reference policy, [policies, responses]."""
    each = [values for example in examples for values in example.reference_log_probs]
    return torch.tensor(each, device=device).reshape(sum(len(e.responses) for e in examples), -1).T


def _tree(example: Example) -> Tree:
    return Tree(example.prompt, example.responses)


def _as_batch(items: list[StepShare]) -> dict[str, StepShare]:
    """The Trainer looks for names in a batch: it is a mapping."""
    return {"share": items[0]}
