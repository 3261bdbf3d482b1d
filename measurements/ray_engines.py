"""The seconds of stages on Ray that borrow a kept vLLM engine, and of stages that start one anew.

    .venv-vllm/bin/python measurements/ray_engines.py [--policy FOLDER] [--stages 3]

Its figures stand in docs/experiments.md under "The engine of vLLM on a CPU". Each stage draws two responses of at most 30 tokens to
each of eight prompts, in one worker of a cluster of one node, from the policy or from a copy of it with other weights by turns.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from safetensors.torch import load_file, save_file

from sppo.executors.ray import RayCluster
from sppo.progress import Terminal
from sppo.recipe import Recipe, parse
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import table
from sppo.rundir.tables import PROMPTS
from sppo.stages.jobs import ShardJob
from sppo.stages.models import Models
from sppo.stages.sample import DrawResponses
from sppo.tinyworld import POLICY


class Forgetful(RayCluster):
    """Ray whose workers start engines of their own."""

    def _keepers(self):
        return {}


def with_other_weights(policy: Path, folder: Path) -> Path:
    shutil.copytree(policy, folder)
    weights = load_file(folder / "model.safetensors")
    for weight in weights.values():
        weight += (0.01 * torch.randn(weight.shape)).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def job_of(run: RunFolder, recipe: Recipe, stage: int, policy: Path) -> ShardJob:
    chat = Models(recipe).chat
    conversations = [[{"role": "user", "content": f"Describe {number} foxes."}] for number in range(8)]
    rows = [
        {
            "prompt_id": str(number),
            "messages": messages,
            "prompt_token_ids": chat.render(messages).token_ids,
        }
        for number, messages in enumerate(conversations)
    ]
    (prompts,) = run.stage("prompts", stage, {}, [], folder="prompts").plan_shards([[]])
    prompts.write(table(rows, PROMPTS))
    shards = run.stage("sample", stage, {}, [], folder="responses").plan_shards([[prompts.path]])
    work = DrawResponses(policy, 2, ("sample", stage))
    return ShardJob(f"stage {stage}", "responses", "sample", work, shards, [16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--stages", type=int, default=3)
    options = parser.parse_args()
    recipe = parse(
        {
            "cpu_threads": 1,
            "policy": {"model": str(options.policy), "dtype": "float32"},
            "prompts": {"train": "tinyworld/train"},
            "sampling": {
                "engine": "vllm",
                "max_new_tokens": 30,
                "engine_args": {
                    "enforce_eager": True,
                    "kv_cache_memory_bytes": 100_000_000,
                    "max_model_len": 256,
                },
            },
            "oracle": {"type": "panel"},
        }
    )
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": os.cpu_count(), "include_dashboard": False}
    )
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere:
        folder = Path(name)
        policies = [options.policy, with_other_weights(options.policy, folder / "moved")]
        for place in (RayCluster, Forgetful):
            run = RunFolder(folder / place.__name__)
            with place(recipe, run.path, cluster.address) as executor:
                executor.check()
                for stage in range(options.stages):
                    job = job_of(run, recipe, stage + 1, policies[stage % 2])
                    begin = time.perf_counter()
                    executor.run([job], Models(recipe), Terminal(Console(file=nowhere)), lambda job: None)
                    print(
                        f"{place.__name__} stage {stage + 1}: {time.perf_counter() - begin:.1f} s", flush=True
                    )
    cluster.shutdown()


if __name__ == "__main__":
    main()
