"""Small runs on the embedded model, and what tests read of a run's folder."""

import hashlib
import io
import os

import pyarrow.parquet as pq
from rich.console import Console

from sppo import selfplay
from sppo.progress import Terminal
from sppo.recipe import parse
from sppo.rundir.folder import RunFolder

SMALL = {
    "seed": 3,
    "iterations": 2,
    "cpu_threads": 1,
    "shard_prompts": 4,
    "policy": {"model": "tinyworld"},
    "prompts": {
        "train": {"source": "tinyworld/train", "limit": 24},
        "held_out": {"source": "tinyworld/held-out", "limit": 10},
    },
    "sampling": {"k": 3, "max_new_tokens": 40},
    "oracle": {"type": "panel"},
    "algorithm": {"type": "sppo", "eta": 10},
    "training": {"learning_rate": 1e-4, "batch_prompts": 4, "truncated_responses": "train"},
    "evaluation": {"responses": 2, "resamples": 200},
    "guard": {"on_failure": "keep"},
}


RAY = SMALL | {
    "iterations": 1,
    "shard_prompts": 3,
    "prompts": {
        "train": {"source": "tinyworld/train", "limit": 12},
        "held_out": {"source": "tinyworld/held-out", "limit": 4},
    },
    "sampling": {"k": 3, "max_new_tokens": 30},
}
del RAY["algorithm"]
"""Still smaller, for clusters and remote storage."""


SHORTEST_ORACLE = """
import time
import numpy as np

def prefer(prompts, responses):
    time.sleep(PAUSE)
    lengths = np.array([[len(text) for text in of_prompt] for of_prompt in responses], dtype=float)
    return 1 / (1 + np.exp((lengths[:, :, None] - lengths[:, None, :]) / 20))
"""
"""The source of an oracle function that prefers the shorter response, after PAUSE seconds."""


def small(**changes):
    return parse(SMALL, changes)


def play(recipe, folder, **options):
    with open(os.devnull, "w") as nowhere:
        return selfplay.run(recipe, RunFolder(folder), Terminal(Console(file=nowhere)), **options)


def play_aloud(recipe, folder, **options):
    """Play a recipe, and return its summary and what the terminal showed."""
    console = Console(file=io.StringIO(), width=200)
    summary = selfplay.run(recipe, RunFolder(folder), Terminal(console), **options)
    return summary, console.file.getvalue()


def digests(run):
    """Every table and every weight of a run."""
    files = [*run.glob("iter-*/**/*.parquet"), *run.glob("iter-*/**/*.safetensors")]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
    }


def rows(folder):
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
