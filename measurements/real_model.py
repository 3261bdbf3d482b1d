"""A real instruct model, SmolLM2-135M-Instruct, on the benchmarks, by the commands that a user would type.

    python measurements/real_model.py MODEL [--data FOLDER] [--output evaluations/real-model] [--only NAME ...]

MODEL is the folder that ../shared/tools/smollm2 makes. The figures stand in docs/experiments.md under "A real model on the
benchmarks". Each benchmark takes a sample that is stated below and that a seed draws, in bfloat16 with one thread; the
script prints the CPU time of each. It goes on after an interruption, because `sppo evaluate` does. The data are those of
../shared/data beside the checkout, or of another folder with the same files.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SEED = 0
ITEMS = {"winogrande": 200, "mmlu": 100, "truthfulqa": 50, "hellaswag": 50, "arc": 30, "gsm8k": 12}
"""The items of each task of the Open LLM Leaderboard."""
IFEVAL, ALPACA_EVAL, MT_BENCH = 180, 8, 16
"""The prompts of IFEval, the instructions of AlpacaEval and the questions of MT-Bench (two of each category)."""


def draw(rows: list[Any], count: int) -> list[Any]:
    """A sample of the rows in their order."""
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:count]
    return [rows[position] for position in sorted(chosen)]


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Any]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples(data: Path, folder: Path) -> dict[str, list[str]]:
    """The arguments of `sppo evaluate` for each benchmark; samples of the benchmarks' files are written to the folder."""
    prompts = draw(read(data / "prompts" / "ifeval_input_data.jsonl"), IFEVAL)
    ifeval = write(folder / "ifeval.jsonl", prompts)
    questions = read(data / "mt_bench" / "question.jsonl")
    by_category: dict[str, list[Any]] = {}
    for question in questions:
        by_category.setdefault(question["category"], []).append(question)
    of_each = MT_BENCH // len(by_category)
    chosen = [question for rows in by_category.values() for question in draw(rows, of_each)]
    write(folder / "mt_bench" / "question.jsonl", chosen)
    judged = pq.read_table(
        data / "preferences" / "train.parquet", columns=["instruction", "dataset", "output_1"]
    )
    outputs = {row["instruction"]: row for row in judged.to_pylist()}
    baseline = [
        {
            "instruction": row["instruction"],
            "output": row["output_1"],
            "dataset": row["dataset"],
            "generator": "gpt4_1106_preview",
        }
        for row in draw(list(outputs.values()), ALPACA_EVAL)
    ]
    (folder / "alpaca_eval.json").write_text(json.dumps(baseline))
    tasks = {
        name: ["open-llm", "--data", str(data / "open_llm"), "--task", name, "--limit", str(count)]
        for name, count in ITEMS.items()
    }
    short, long = "{max_new_tokens: 256, temperature: 0.7}", "{max_new_tokens: 512}"
    return {
        **tasks,
        "ifeval": ["ifeval", "--data", str(ifeval), "--sampling", long],
        "mt-bench": [
            "mt-bench", "--data", str(folder / "mt_bench"), "--responses-only", "--sampling", short,
        ],
        "alpaca-eval": [
            "alpaca-eval", "--baseline", str(folder / "alpaca_eval.json"), "--responses-only", "--sampling", short,
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="the folder of SmolLM2-135M-Instruct")
    parser.add_argument("--output", type=Path, default=Path("evaluations/real-model"))
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="the folder of the benchmarks' data")
    parser.add_argument("--only", action="append", help="run this benchmark only; may be repeated")
    given = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for name, arguments in samples(given.data, given.output / "samples").items():
        if given.only and name not in given.only:
            continue
        home = given.output / name
        command = [sys.executable, "-m", "sppo", "evaluate", *arguments, f"smollm2={given.model}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([*command, "--dtype", "bfloat16", "-o", str(home)], env=environment, check=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(f"{name}: {seconds:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
