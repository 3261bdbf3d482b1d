"""A held-out judge for runs of the recipe `real`: a length-matched PairRM that has learnt from GPT-4's judgments of real responses.

    python measurements/real_pairrm.py runs/real [runs/real-seed-1 ...] [--data FOLDER] [--output oracles/real-pairrm]

It trains the PairRM once, on ../shared/data/preferences (docs/experiments.md, "The same, stopped in time: above length"), then
asks it about the responses that each run's evaluations have sampled: those of the base and of the last policy to the same
held-out prompts. Pairs in which one response has more than 1.5 times the characters of the other count as ties. The figures
stand in docs/experiments.md under "A real model on two cores".
"""

import argparse
import sys
from pathlib import Path

import yaml
from real_comparison import outputs, sppo

TRAINING = {
    "pairs": {
        "prompt": "instruction",
        "response_a": "output_2",
        "response_b": "output_1",
        "probability": "preference",
        "group": "model_2",
        "held_out": 0.1,
    },
    "encoder": {
        "hidden_size": 64,
        "layers": 1,
        "heads": 4,
        "intermediate_size": 128,
        "vocabulary": 4000,
        "position_buckets": 64,
        "dropout": 0.1,
    },
    "source_maxlength": 256,
    "candidate_maxlength": 1200,
    "training": {"epochs": 0.6, "batch_pairs": 32, "learning_rate": 2e-3},
}


def main() -> None:
    from sppo.rundir.reader import RunReader

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="the folder with preferences/train.parquet")
    parser.add_argument("--output", type=Path, default=Path("oracles/real-pairrm"))
    options = parser.parse_args()
    source = options.data / "preferences" / "train.parquet"
    if not source.is_file():
        sys.exit(f"{source}: no such file; name the folder of the data with --data")
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {**TRAINING, "pairs": {"source": str(source), **TRAINING["pairs"]}}
    file = options.output / "training.yaml"
    file.write_text(yaml.safe_dump(settings))
    sppo("train-oracle", file, "--output", options.output / "oracle")
    judge = f"{{type: length_matched, oracle: {{type: pairrm, model: {options.output / 'oracle'}, probability: calibrated}}}}"
    for run in options.runs:
        folder = options.output / run.name
        folder.mkdir(exist_ok=True)
        last = RunReader(run).evaluated[-1]
        given = [
            outputs(run, iteration, name, folder)
            for iteration, name in ((0, "base"), (last, f"iteration-{last}"))
        ]
        sppo("evaluate", "head-to-head", *given, "--oracle", judge, "--output", folder)


if __name__ == "__main__":
    main()
