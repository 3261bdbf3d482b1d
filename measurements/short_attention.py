"""Attention of short sequences in bfloat16 on a CPU: computed in float32, as training does it, beside bfloat16.

    OMP_NUM_THREADS=1 python measurements/short_attention.py [--repeats 15]

One layer of SmolLM2-135M's shape (nine heads of 64, which share three keys), eight prompts with two responses each, forward and
backward; medians over repeats that alternate, in milliseconds of processor time. The figures stand in docs/experiments.md under
"In bfloat16 on a CPU".
"""

import argparse
import statistics
import time

import torch

from sppo.training import tree_attention
from sppo.training.forest import Tree
from sppo.training.layout import Layout

HEADS, KEY_HEADS, WIDTH = 9, 3, 64
PROMPTS, RESPONSES = 8, 2
LENGTHS = ((30, 30), (60, 65), (120, 130), (180, 300))
"""Tokens of a prompt and of each of its responses."""


def milliseconds(layout: Layout) -> float:
    """The processor time of a forward and a backward pass."""
    columns = layout.ids.shape[1]
    states = [
        torch.randn(1, heads, columns, WIDTH, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    mask = tree_attention._pieces(layout, None)
    begin = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # A rotation leaves queries and keys in float32, and the values come from a product in bfloat16.
        found, _ = tree_attention._attend(None, states[0], states[1], states[2].bfloat16(), mask)
    found.float().sum().backward()
    return 1e3 * (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for prompt, response in LENGTHS:
        tree = Tree(list(range(prompt)), [list(range(response))] * RESPONSES)
        layout = Layout([tree] * PROMPTS, in_one_row=True)
        times: dict[int, list[float]] = {0: [], 1 << 20: []}
        for _ in range(options.repeats + 1):
            for most, found in times.items():
                tree_attention._SHORT = most
                found.append(milliseconds(layout))
        narrow, wide = (statistics.median(found[1:]) for found in times.values())
        print(
            f"prompts of {prompt}, responses of {response}: bfloat16 {narrow:.1f} ms, float32 {wide:.1f} ms,"
            f" {narrow / wide:.2f} times"
        )


if __name__ == "__main__":
    main()
