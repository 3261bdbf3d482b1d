"""What a training step tells of itself: means over its prompts, speed, and memory.

| figure | unit | of |
|---|---|---|
| `loss` | the algorithm's | mean over the prompts |
| `log_ratio_winners`, `..._losers` | nats | log pi_theta(y|x) - log pi_t(y|x) of each prompt's best and worst |
| `target_winners`, `..._losers` | nats | where the loss wants that log-ratio; only of losses that say so |
| `log_prob_winners`, `..._losers` | nats | log pi_theta(y|x) |
| `win_rate_winners`, `..._losers` | - | P^(y > pi_t | x) |
| `kl` | nats | half the mean squared log-ratio of the responses trained on |
| `response_tokens` | tokens | of a step |
| `response_tokens_per_second` | tokens/s | over the steps since the last line, the optimiser's time included |
| `mfu` | - | model FLOPs used over those of a plain matrix product, both on this device; GPU only |
| `peak_memory_gb` | 10^9 bytes | per process: allocated on the GPU, or resident on a CPU |

`kl` is the second-order estimate of KL(pi_t || pi_theta), E_{y ~ pi_t}[(log pi_theta/pi_t)^2] / 2: it has no sign to
lose and does not overflow. The responses are the selected ones, not a fresh sample, so it is a yardstick between steps;
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
from sppo.training.log_probs import Tree

SIDES = ("winners", "losers")
_BY_SIDE = ("log_ratio", "target", "log_prob", "win_rate")
_TOTALS = ("loss", "prompts", "responses", "kl", "response_tokens", "flops")
_SUMS = (*_TOTALS, *(f"{what}_{side}" for what in _BY_SIDE for side in SIDES))


@dataclass(frozen=True)
class Size:
    """How many weights a model has, for the usual estimate of its FLOPs; taken before it is sharded.

    Attributes:
        body: weights that every token goes through.
        head: of the output head, which response tokens alone go through.
    """

    body: int
    head: int

    @classmethod
    def of(cls, model: Any) -> "Size":
        """Of a causal language model of transformers."""
        inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
        total = sum(_entries(parameter) for parameter in model.parameters())
        of_head = 0 if head is None else _entries(head.weight)
        tied = head is not None and head.weight is inputs.weight
        return cls(total - _entries(inputs.weight) - (0 if tied else of_head), of_head)

    def flops(self, trees: Sequence[Tree]) -> int:
        """6 for each weight and token, forward and backward; attention and recomputation are not counted."""
        responses = sum(len(response) for tree in trees for response in tree.responses)
        return 6 * (self.body * sum(tree.tokens for tree in trees) + self.head * responses)


def _entries(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # DeepSpeed has taken it apart on loading


@dataclass
class StepSums:
    """Sums over one process's packs of a step, which add up over processes and steps."""

    values: Tensor = field(default_factory=lambda: torch.zeros(len(_SUMS), dtype=torch.float64))

    def add(self, responses: Responses, log_probs: Tensor, targets: Tensor | None, loss: Tensor) -> None:
        """Add a pack.

        Args:
            responses: of the pack.
            log_probs: log pi_theta(y|x) of each, nats.
            targets: where the loss wants their log-ratios, if it says.
            loss: the pack's share of the step's.
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
        """Add what a pack costs: its response tokens and FLOPs."""
        self._add("response_tokens", sum(len(response) for tree in trees for response in tree.responses))
        self._add("flops", size.flops(trees))

    def _add(self, name: str, value: Tensor | float) -> None:
        self.values[_SUMS.index(name)] += value.cpu() if isinstance(value, Tensor) else value

    @property
    def loss(self) -> float:
        """Of the step, once the processes' sums are added up."""
        return float(self.values[0])


class StepMetrics:
    """Gathers steps until the next line of the log.

    Args:
        device: that the model is on.
        dtype: of its matrix products.
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
        """One step, added up over the processes."""
        self.sums += sums.values
        self.steps += 1

    def take(self, processes: int) -> dict[str, float]:
        """The figures of the steps since the last call; nothing if there were none."""
        if self.steps == 0:
            return {}
        found = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        prompts, responses = max(1.0, found["prompts"]), max(1.0, found["responses"])
        by_side = {f"{what}_{side}": found[f"{what}_{side}"] / prompts for what in _BY_SIDE for side in SIDES}
        figures = {
            "loss": found["loss"] / self.steps,
            **{name: value for name, value in by_side.items() if value == value},
            "kl": found["kl"] / responses,
            "response_tokens": found["response_tokens"] / self.steps,
            "response_tokens_per_second": found["response_tokens"] / seconds,
            "peak_memory_gb": peak_memory(self.device) / 1e9,
        }
        if self.device.type == "cuda":
            rate = matmul_rate(self.device, self.dtype)
            figures["mfu"] = found["flops"] / seconds / processes / rate
        self.sums = torch.zeros_like(self.sums)
        self.steps = 0
        self.since = time.perf_counter()
        return figures


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU since training began, or resident of this process since its start.

    Linux's getrusage counts what the process that started this one held; its /proc does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float:
    """FLOP/s of a square matrix product on a device: the best of some repeats, after a warm-up.

    Args:
        device: to measure on.
        dtype: of the matrices.
        size: rows and columns.
        repeats: timed products.
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
