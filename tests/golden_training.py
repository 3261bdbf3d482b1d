"""The golden trajectory: what 20 optimiser steps on a tiny model did when it was last looked at.

    python tests/golden_training.py --write     # after a change that is meant to change it; say why in the commit

The model, the prompts and the responses come of seeds; nothing but the file of figures is stored.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import tiny_models

from sppo import recipe
from sppo.algorithms.sppo import SPPO
from sppo.policy import load as policies
from sppo.rundir.shards import table, write_shard
from sppo.rundir.tables import TRAINING
from sppo.training import TrainingJob, train
from sppo.training.log_probs import Tree, log_probs

FILE = Path(__file__).with_suffix(".json")
FIGURES = ("loss", "log_ratio_winners", "log_ratio_losers", "grad_norm")
PROMPTS, STEPS = 16, 20


def trajectory(folder: Path, **training) -> list[dict[str, float]]:
    """The figures of every step; settings of the recipe's section beside the trajectory's own."""
    model = policies.load(
        tiny_models.make("llama-3", folder / "model", seed=3), dtype="float32", device="cpu"
    )
    generator = np.random.default_rng(3)
    trees = [
        Tree(_ids(generator, 3, 12), [_ids(generator, 2, 15) for _ in range(2 + number % 3)])
        for number in range(PROMPTS)
    ]
    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt_token_ids": tree.prompt,
            "opponent": "pi_1",
            "log_partition": 1.5,
            "responses": [
                {"k": k, "token_ids": ids, "win_rate": rate, "opponent_log_prob": value}
                for k, (ids, rate, value) in enumerate(
                    zip(tree.responses, generator.uniform(size=len(tree.responses)).tolist(), values)
                )
            ],
        }
        for number, (tree, values) in enumerate(zip(trees, log_probs(model, trees, pack_tokens=1000)))
    ]
    write_shard(folder / "part.parquet", table(rows, TRAINING), {})
    job = TrainingJob(
        policy=str(folder / "model"),
        opponent="pi_1",
        shards=[str(folder / "part.parquet")],
        output=str(folder / "policy"),
        work=str(folder / "work"),
        metrics=str(folder / "metrics.jsonl"),
        prompts=PROMPTS,
        seed=3,
        dtype="float32",
        attn_implementation=None,
        trust_remote_code=False,
        chat_template=None,
        algorithm=SPPO(eta=3.0, reduction="mean"),
        settings=recipe.Training(
            **{"learning_rate": 3e-4, "batch_prompts": 4, "epochs": 5, "pack_tokens": 100, **training}
        ),
    )
    (folder / "work").mkdir()
    train(job)
    steps = [json.loads(line) for line in Path(job.metrics).read_text().splitlines()]
    assert len(steps) == STEPS
    return [{name: step[name] for name in FIGURES} for step in steps]


def _ids(generator: np.random.Generator, low: int, high: int) -> list[int]:
    return generator.integers(10, 390, generator.integers(low, high)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store what is computed now")
    with tempfile.TemporaryDirectory() as folder:
        args = parser.parse_args()
        steps = [{name: round(step[name], 6) for name in FIGURES} for step in trajectory(Path(folder))]
    text = "[\n" + ",\n".join(" " + json.dumps(step) for step in steps) + "\n]\n"
    print(text, end="")
    if args.write:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
