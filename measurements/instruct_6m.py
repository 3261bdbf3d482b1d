"""Self-play of a small instruct model on AlpacaEval's instructions, with an oracle that counts words.

    python measurements/instruct_6m.py [--run-dir runs/instruct-6m] [--set KEY=VALUE ...]

Its figures stand in docs/experiments.md under "Real input: a small instruct model on AlpacaEval's instructions". The run
trains on the 644 instructions that the model was trained on and is measured on the other 161 (../shared/models/instruct-6m
and ../shared/data/alpacaeval, beside the checkout). The oracle is the function `prefer` of this file, which prefers
responses of about forty words on the prompt's topic without repetitions.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
WORDS = 40
COMMON = """
    a about an and are as at be but by can could do does for from give has have how i if in into is it its make me
    my no not of on or please should so some than that the their them then there these they this those to use was
    what when where which who why will with would write you your
"""
STOP = frozenset(COMMON.split())


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[a-z0-9']+", text.lower())


def stems(text: str) -> set[str]:
    """The content words of a text, reduced to five letters so that their forms agree."""
    return {word[:5] for word in words(text) if word not in STOP and len(word) > 2}


def utility(prompt: str, response: str) -> float:
    """The utility of a response in nats: it rewards the wanted length, the prompt's topic, and the lack of repetition."""
    said = words(response)
    if not said:
        return -6.0
    length = -abs(np.log(len(said) / WORDS))
    topic = stems(prompt)
    on_topic = len(topic & stems(response)) / max(1, min(len(topic), 6))
    trigrams = list(zip(said, said[1:], said[2:], strict=False))
    fresh = len(set(trigrams)) / len(trigrams) if trigrams else 1.0
    return 2.0 * length + 2.0 * min(1.0, on_topic) + 4.0 * (fresh - 1.0)


def prefer(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """P(y_i > y_j | x) = sigma(u_i - u_j), [N, K, K]."""
    scores = np.array(
        [[utility(p, y) for y in of_prompt] for p, of_prompt in zip(prompts, responses, strict=True)]
    )
    return 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))


def recipe(work: Path) -> dict:
    """The recipe, with the two prompt files written beside it."""
    import pyarrow.parquet as pq

    instructions = pq.read_table(SHARED / "data/alpacaeval/common/instructions.parquet").to_pylist()
    unseen = set(json.loads((SHARED / "models/instruct-6m/unseen_instructions.json").read_text()))
    for name, wanted in (("seen", False), ("unseen", True)):
        with (work / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in instructions:
                if (row["index"] in unseen) == wanted:
                    line = {"prompt_id": str(row["index"]), "prompt": row["instruction"]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {
        "seed": 0,
        "cpu_threads": 1,
        "iterations": 3,
        "policy": {"model": str(SHARED / "models/instruct-6m"), "dtype": "float32"},
        "prompts": {
            "train": str(work / "seen.jsonl"),
            "held_out": str(work / "unseen.jsonl"),
            "invalid": "skip",
        },
        "sampling": {"k": 5, "max_new_tokens": 320},
        "oracle": {"type": "function", "function": "instruct_6m:prefer"},
        "selection": "all",
        "algorithm": {"type": "sppo", "eta": 30},
        "training": {"learning_rate": 1.5e-4, "batch_prompts": 8, "epochs": 1, "pack_tokens": 4096},
        "evaluation": {"responses": 2},
        "shard_prompts": 64,
    }


def main() -> None:
    import yaml

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/instruct-6m"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is not there: this measurement needs its model and instructions")
    run = options.run_dir.resolve()
    run.parent.mkdir(parents=True, exist_ok=True)
    work = run.with_name(run.name + "-input")
    work.mkdir(exist_ok=True)
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(work), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "sppo", "run", str(path), "--run-dir", str(run)]
    for value in options.set:
        command += ["--set", value]
    os.chdir(HERE)  # where the oracle's module is found
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
