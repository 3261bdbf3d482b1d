"""The memory of a pack's activations, as it is estimated before training and as a process needs it.

    python measurements/pack_memory.py MODEL [--tokens 512,1024,2048] [--gradient-checkpointing]

For each size of a pack a process of its own loads the model and passes one pack forward and backward; its peak is what Linux
says. The estimate is that of `training.pack_tokens: auto`. The figures stand in docs/experiments.md.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESPONSE_TOKENS = 128


def peak(model: str, tokens: int, gradient_checkpointing: bool) -> int:
    """Pass one pack of prompts with a response each forward and backward, and return this process's peak in bytes."""
    import torch

    from sppo.policy import load as policies
    from sppo.training.log_probs import Tree, measure_capabilities, response_log_probs
    from sppo.training.metrics import peak_memory

    policy = policies.load(Path(model), dtype="float32", device="cpu").train()
    if gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    capabilities = measure_capabilities(policy)
    token_ids = list(range(100, 100 + RESPONSE_TOKENS))
    trees = [Tree(token_ids, [token_ids]) for _ in range(tokens // (2 * RESPONSE_TOKENS))]
    response_log_probs(policy, trees, capabilities).sum().backward()
    return peak_memory(torch.device("cpu"))


def kept_bytes(model: Any, trees: Sequence[Any], capabilities: Any) -> int:
    """The bytes that autograd keeps for the backward pass of some trees, without the weights."""
    import torch

    from sppo.training.log_probs import response_log_probs

    weights = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def keep(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        values = response_log_probs(model, trees, capabilities)
        total = sum(storage.nbytes() for storage in kept.values())
    assert values.requires_grad
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder of transformers")
    parser.add_argument("--tokens", default="512,1024,2048")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(peak(arguments.model, arguments.one, arguments.gradient_checkpointing))
        return
    from sppo.policy.memory import activation_bytes
    from sppo.policy.model_files import read_configuration

    estimated = activation_bytes(
        read_configuration(Path(arguments.model) / "config.json"),
        "float32",
        gradient_checkpointing=arguments.gradient_checkpointing,
    )
    sizes = [int(size) for size in arguments.tokens.split(",")]
    peaks = []
    for size in sizes:
        command = [sys.executable, *sys.argv, "--one", str(size)]
        peaks.append(
            int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        )
        print(f"{size:6,} tokens: {peaks[-1] / 1e9:.2f} GB at the peak", flush=True)
    measured = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
    print(f"bytes per token: {measured:,.0f} measured, {estimated:,.0f} estimated")


if __name__ == "__main__":
    main()
