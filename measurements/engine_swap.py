"""The seconds that a vLLM engine takes to start, and to take another policy of the same shape in place.

    .venv-vllm/bin/python measurements/engine_swap.py POLICY [--repeats 3]

Its figures stand in docs/experiments.md under "One vLLM engine for a run". POLICY is a transformers folder. Each repeat loads a
copy of it whose weights were moved by noise, and back.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sppo.sampling.vllm_engine import EngineRequest, VllmEngine


def swap(engine: VllmEngine, policy: Path) -> float:
    """The seconds in which an engine takes another policy."""
    begin = time.perf_counter()
    engine.load_weights(policy)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    arguments = {"dtype": options.dtype, "enforce_eager": True, "kv_cache_memory_bytes": 500_000_000}
    with tempfile.TemporaryDirectory() as name:
        moved = Path(name, "moved")
        shutil.copytree(options.policy, moved)
        weights = load_file(moved / "model.safetensors")
        for weight in weights.values():
            weight += (0.01 * torch.randn(weight.shape)).to(weight.dtype)
        save_file(weights, moved / "model.safetensors", {"format": "pt"})
        begin = time.perf_counter()
        engine = VllmEngine(EngineRequest.of(arguments, options.policy))
        print(f"start {time.perf_counter() - begin:.1f} s", flush=True)
        for _ in range(options.repeats):
            for folder in (moved, options.policy):
                print(f"another policy in place {swap(engine, folder):.2f} s", flush=True)
        engine.end()


if __name__ == "__main__":
    main()
