"""Where the CPU time of one step of the sampler goes: its operations alone, on one thread.

    python measurements/sampling_step.py [--dtype bfloat16] [--rows 96] [--columns 200]

The shapes are those of SmolLM2-135M-Instruct. Its figures stand in docs/experiments.md under "SmolLM2 beside vLLM".
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

LAYERS, WIDTH, INNER, HEADS, SHARED, VOCABULARY = 30, 576, 1536, 9, 3, 49152
LINEAR = [(WIDTH, WIDTH)] * 2 + [(WIDTH, 64 * SHARED)] * 2 + [(WIDTH, INNER)] * 2 + [(INNER, WIDTH)]


def least(function: Callable[[], Any], repeats: int = 30) -> float:
    """The least CPU seconds of a call, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        begin = time.thread_time()
        function()
        seconds.append(time.thread_time() - begin)
    return min(seconds[2:])


def products(rows: int, shapes: list[tuple[int, int]], dtype: torch.dtype) -> dict[str, float]:
    """Seconds of products with weights as they are and, in bfloat16, with weights packed for oneDNN beforehand."""
    found = {"as they are": 0.0, "packed": 0.0}
    for inputs, outputs in shapes:
        x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        found["as they are"] += least(lambda x=x, weight=weight: functional.linear(x, weight))
        if dtype == torch.bfloat16:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            found["packed"] += least(
                lambda x=x, packed=packed: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            )
    return found


def attention(rows: int, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one layer's attention as the sampler computes it, of another way, and of copying its keys and values."""
    room = columns + columns // 2
    keys, values = (torch.randn(rows, SHARED, room, 64).to(dtype)[:, :, :columns] for _ in range(2))
    query = torch.randn(rows, SHARED, HEADS // SHARED, 64).to(dtype)
    transposed = torch.randn(rows, SHARED, 64, room).to(dtype)[..., :columns]
    return {
        "as it is": least(lambda: functional.scaled_dot_product_attention(query, keys, values)),
        "transposed keys": least(lambda: ((query @ transposed) / 8).softmax(-1) @ values),
        "copying": least(lambda: (keys.clone(), values.clone())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--columns", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    square = torch.randn(2048, 2048).to(dtype)
    print(f"a square product: {2 * 2048**3 / least(lambda: square @ square, 3) / 1e9:.0f} GFLOP/s")
    for name, shapes, times in (("layers", LINEAR, LAYERS), ("head", [(WIDTH, VOCABULARY)], 1)):
        for how, seconds in products(options.rows, shapes, dtype).items():
            if seconds:
                operations = 2 * options.rows * sum(a * b for a, b in shapes)
                print(
                    f"products of the {name}, weights {how}: {1e3 * times * seconds:.0f} ms,"
                    f" {operations / seconds / 1e9:.0f} GFLOP/s"
                )
    for how, seconds in attention(options.rows, options.columns, dtype).items():
        print(f"attention of {LAYERS} layers, {how}: {1e3 * LAYERS * seconds:.0f} ms")


if __name__ == "__main__":
    main()
