"""The figures that are logged for training steps: means over the prompts, speed, and memory.

| figure | unit | meaning |
|---|---|---|
| `loss` | the algorithm's | the mean over the prompts |
| `log_ratio_winners`, `..._losers` | nats | log pi_theta(y|x) - log pi_t(y|x) of each prompt's best and worst response |
| `target_winners`, `..._losers` | nats | the log-ratio at which the loss is least; only for losses that have such a target |
| `log_prob_winners`, `..._losers` | nats | log pi_theta(y|x) |
| `win_rate_winners`, `..._losers` | - | P^(y > pi_t | x) |
| `kl` | nats | half the mean squared log-ratio of the responses that are trained on |
| `response_tokens` | tokens | the response tokens in a step |
| `response_tokens_per_second` | tokens/s | the speed since the last line of the log, including the optimiser's time |
| `mfu` | - | the model's FLOP/s divided by those of a plain matrix product on the same device; GPU only |
| `peak_memory_gb` | 10^9 bytes | the peak of one process: allocated on the GPU, or resident in the machine's memory |

`kl` is the second-order estimate of KL(pi_t || pi_theta), E_{y ~ pi_t}[(log pi_theta/pi_t)^2] / 2, which is never negative
and does not overflow. It is computed on the selected responses, not on a fresh sample, so it only serves to compare steps;
the KL that a run reports is measured on held-out prompts.
"""

import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sppo.objectives import Responses
from sppo.training.forest import Forest, Tree

SIDES = ("winners", "losers")
_BY_SIDE = ("log_ratio", "target", "log_prob", "win_rate")
_TOTALS = ("loss", "prompts", "responses", "kl", "response_tokens", "flops")
_SUMS = (*_TOTALS, *(f"{what}_{side}" for what in _BY_SIDE for side in SIDES))


@dataclass(frozen=True)
class Size:
    """The number of weights of a model, for the usual estimate of its FLOPs; counted before the model is sharded.

    Attributes:
        body: the number of weights that process every token.
        head: the number of weights of the output head, which processes response tokens only.
    """

    body: int
    head: int

    @classmethod
    def measure(cls, model: Any) -> "Size":
        """Count the weights of a causal language model of transformers."""
        inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
        total = sum(_entries(parameter) for parameter in model.parameters())
        head_size = 0 if head is None else _entries(head.weight)
        tied = head is not None and head.weight is inputs.weight
        return cls(total - _entries(inputs.weight) - (0 if tied else head_size), head_size)

    def flops(self, trees: Sequence[Tree]) -> int:
        """6 FLOPs per weight and token, forward and backward, not counting attention and recomputation.

        Tokens that the trees share count once, as they do for a model that can share them.
        """
        responses = sum(len(response) for tree in trees for response in tree.responses)
        return 6 * (self.body * Forest(trees).tokens + self.head * responses)


def _entries(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # DeepSpeed shards weights while loading


@dataclass
class StepSums:
    """Sums over the packs of a step on one process; adding them up over processes and steps gives the totals."""

    values: Tensor = field(default_factory=lambda: torch.zeros(len(_SUMS), dtype=torch.float64))

    def add(self, responses: Responses, log_probs: Tensor, targets: Tensor | None, loss: Tensor) -> None:
        """Add a pack.

        Args:
            responses: the pack's responses.
            log_probs: log pi_theta(y|x) of each response, in nats.
            targets: the log-ratio of each response at which the loss is least; None if the loss has no such targets.
            loss: the pack's share of the step's loss.
        """
        log_ratio = responses.log_ratio.detach()
        self._add("loss", loss.detach())
        self._add("prompts", len(responses.log_partition))
        self._add("responses", len(log_ratio))
        self._add("kl", log_ratio.double().square().sum() / 2)
        per_response = {"log_ratio": log_ratio, "log_prob": log_probs, "win_rate": responses.win_rate}
        per_response["target"] = torch.full_like(log_ratio, torch.nan) if targets is None else targets
        for side, index in zip(SIDES, (responses.winner, responses.loser), strict=True):
            for what, value in per_response.items():
                self._add(f"{what}_{side}", value.detach()[index].double().sum())

    def add_work(self, trees: Sequence[Tree], size: "Size") -> None:
        """Add the response tokens and FLOPs of a pack."""
        self._add("response_tokens", sum(len(response) for tree in trees for response in tree.responses))
        self._add("flops", size.flops(trees))

    def _add(self, name: str, value: Tensor | float) -> None:
        self.values[_SUMS.index(name)] += value.cpu() if isinstance(value, Tensor) else value

    @property
    def loss(self) -> float:
        """The loss of the step, once the sums of all processes have been added up."""
        return float(self.values[0])


class StepMetrics:
    """Accumulates the sums of steps until the next line of the log.

    Args:
        device: the device that the model is on.
        dtype: the data type of its matrix products.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        self.steps = 0
        self.since = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, sums: StepSums) -> None:
        """Add a step's sums over all processes."""
        self.sums += sums.values
        self.steps += 1

    def take(self, processes: int) -> dict[str, float]:
        """Return the figures of the steps since the last call, and start anew; empty if there was no step."""
        if self.steps == 0:
            return {}
        sums = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        prompts, responses = max(1.0, sums["prompts"]), max(1.0, sums["responses"])
        by_side = {f"{what}_{side}": sums[f"{what}_{side}"] / prompts for what in _BY_SIDE for side in SIDES}
        figures = {
            "loss": sums["loss"] / self.steps,
            **{name: value for name, value in by_side.items() if value == value},
            "kl": sums["kl"] / responses,
            "response_tokens": sums["response_tokens"] / self.steps,
            "response_tokens_per_second": sums["response_tokens"] / seconds,
            "peak_memory_gb": peak_memory(self.device) / 1e9,
        }
        if self.device.type == "cuda":
            rate = matmul_rate(self.device, self.dtype)
            figures["mfu"] = sums["flops"] / seconds / processes / rate
        self.sums = torch.zeros_like(self.sums)
        self.steps = 0
        self.since = time.perf_counter()
        return figures


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on the GPU since training began, or resident since this process started.

    On Linux it is read from /proc, because getrusage includes the memory of the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float:
    """Measure the FLOP/s of a square matrix product on a device: the best of several repeats, after a warm-up.

    Args:
        device: the device to measure.
        dtype: the data type of the matrices.
        size: the number of rows and columns.
        repeats: the number of timed products.
    """
    matrix = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(matrix)
    best = float("inf")
    for number in range(repeats + 2):
        _synchronise(device)
        begin = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        _synchronise(device)
        if number >= 2:
            best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
