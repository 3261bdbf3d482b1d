"""The number of torch's threads on a CPU, found by timing a policy's operations for about a second.

More threads make large matrix products faster. Small ones get slower, because the threads wait for each other after every
operation, and several times slower on a machine with other work, where a thread that waits may not be running at all.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sppo.policy import load as policies

_SECONDS = 0.8
# Fewer threads are preferred to more that save less than a tenth of the time.
_NEAR = 1.1
# Beyond the first number of threads that needs so many times the least time, none is tried, nor is this one again.
_HOPELESS = 4
# One step of the sampler, and one pack of the trainer, in tokens.
_SAMPLED, _TRAINED = 64, 128
# Larger policies are measured at these sizes, where every thread helps already, so that the time is kept.
_WIDTH, _INNER, _VOCABULARY = 768, 2048, 8192


def cores() -> int:
    """The number of cores that this process may use; OMP_NUM_THREADS bounds it, as it bounds torch's own choice."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(here, int(bound)) if bound.isdigit() and int(bound) > 0 else here


def measure(folder: Path, dtype: str, most: int, *, trust_remote_code: bool = False) -> dict[int, float]:
    """Time a policy's operations with 1, 2, 4, ... threads and with the most.

    One layer's matrix products, activation and attention are timed in the shapes of a step of the sampler, forward, and of
    a pack of the trainer, forward and backward; so is a part of the output head. Each counts as often as the policy has it.
    The numbers of threads take turns, so that they meet the same other work, until 0.8 seconds are over; each gets one turn at
    least, up to the first that is several times slower than another. Policies of the same sizes are measured once in a process.

    Args:
        folder: the policy's folder, of which only the configuration is read.
        dtype: the data type of the weights.
        most: the largest number of threads.
        trust_remote_code: read the configuration with Python code that comes with the model.

    Returns:
        For each number of threads that was tried, the median over its turns of the geometric mean of both times, in seconds.
    """
    config = policies.text_config(folder, trust_remote_code)
    width = getattr(config, "hidden_size", None) or _WIDTH
    inner = getattr(config, "intermediate_size", None) or 4 * width
    layers = getattr(config, "num_hidden_layers", None) or 1
    return dict(_measure(width, inner, layers, config.vocab_size, dtype, most))


def fewest_near_the_fastest(seconds: Mapping[int, float]) -> int:
    """The fewest threads that need at most a tenth more time than the fastest number of threads."""
    limit = _NEAR * min(seconds.values())
    return min(threads for threads, taken in seconds.items() if taken <= limit)


@cache
def _measure(
    width: int, inner: int, layers: int, vocabulary: int, dtype: str, most: int
) -> Mapping[int, float]:
    import torch

    sample, train = _operations(width, inner, layers, vocabulary, getattr(torch, dtype))

    def turn(threads: int) -> float:
        torch.set_num_threads(threads)
        torch.ones(1 << 18).add_(1)  # starts the threads, which does not count
        return math.sqrt(sample() * train())

    before = torch.get_num_threads()
    try:
        turn(1)  # fills the caches, which does not count either
        end = time.monotonic() + _SECONDS
        times: dict[int, list[float]] = {}
        for threads in _candidates(most):
            times[threads] = [turn(threads)]
            if not _is_hopeful(threads, times):
                break
        while time.monotonic() < end:
            for threads in times:
                if _is_hopeful(threads, times):
                    times[threads].append(turn(threads))
    finally:
        torch.set_num_threads(before)
    return _medians(times)


def _candidates(most: int) -> list[int]:
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted({*powers, most})


def _medians(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {threads: statistics.median(taken) for threads, taken in times.items()}


def _is_hopeful(threads: int, times: Mapping[int, Sequence[float]]) -> bool:
    medians = _medians(times)
    return medians[threads] < _HOPELESS * min(medians.values())


def _operations(
    width: int, inner: int, layers: int, vocabulary: int, dtype: Any
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Two functions that run a policy's operations once and return their seconds: the sampler's and the trainer's."""
    import torch
    from torch.nn import functional as F

    width, inner = min(width, _WIDTH), min(inner, _INNER)
    rows, head_dim = min(vocabulary, _VOCABULARY), 64
    heads = max(1, width // head_dim)
    # The values do not matter for the speed, as long as none is so small that it is handled apart.
    square, up, down, output = (
        torch.full(shape, 0.01, dtype=dtype, requires_grad=True)
        for shape in ((width, width), (inner, width), (width, inner), (rows, width))
    )

    def layer(states: Any) -> Any:
        query = F.linear(states, square)[:, : heads * head_dim].reshape(1, heads, len(states), -1)
        seen = F.scaled_dot_product_attention(query, query, query, is_causal=True)
        mixed = seen.reshape(len(states), -1)
        states = states + F.linear(F.pad(mixed, (0, width - mixed.shape[1])), square)
        normed = F.layer_norm(states, (width,))
        return states + F.linear(F.silu(F.linear(normed, up)) * F.linear(normed, up), down)

    def head(states: Any) -> Any:
        return F.linear(states, output).log_softmax(dim=-1)

    def seconds_of(compute: Callable[[Any], Any], tokens: int, *, backward: bool) -> float:
        states = torch.full((tokens, width), 0.1, dtype=dtype)
        begin = time.perf_counter()
        with torch.set_grad_enabled(backward):
            result = compute(states)
        if backward:
            result.sum().backward()
        return time.perf_counter() - begin

    def both(tokens: int, *, backward: bool) -> float:
        one_layer, one_head = (seconds_of(part, tokens, backward=backward) for part in (layer, head))
        return layers * one_layer + vocabulary / rows * one_head

    return (lambda: both(_SAMPLED, backward=False)), (lambda: both(_TRAINED, backward=True))
