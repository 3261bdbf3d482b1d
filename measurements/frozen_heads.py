"""Heads on a frozen backbone, trained on people's votes and on GPT-4's preferences, beside length alone.

    python measurements/frozen_heads.py BACKBONE --pairs 200 --output runs/frozen-heads

MT-Bench's votes are joined with the models' answers to the first turn; PandaLM's file is read as it is; the preferences are AlpacaEval's
judgments of GPT-4 against other models. Pairs are drawn by the seed, a quarter of the prompts is held out, and for people each vote is a row.
"""

import argparse
import json
import random
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from sppo.oracle.training import train
from sppo.progress import Terminal
from sppo.recipe import load_oracle_training

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADS = ("reward_model", "general_preference")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mt_bench(data):
    prompts = {row["question_id"]: row["turns"][0] for row in lines(data / "mt_bench" / "question.jsonl")}
    answers = {
        (path.stem, row["question_id"]): row["choices"][0]["turns"][0]
        for path in (data / "mt_bench" / "model_answer").glob("*.jsonl")
        for row in lines(path)
    }
    pairs = {}
    for vote in lines(data / "human_votes" / "mt_bench_human" / "human.jsonl"):
        a, b = ((vote[side], vote["question_id"]) for side in ("model_a", "model_b"))
        if vote["turn"] == 1 and a in answers and b in answers:
            label = {"model_a": "a", "model_b": "b"}.get(vote["winner"], "tie")
            row = {"response_a": answers[a], "response_b": answers[b], "label": label}
            pair = (vote["question_id"], *sorted((vote["model_a"], vote["model_b"])))
            pairs.setdefault(pair, []).append({"prompt": prompts[vote["question_id"]], **row})
    return list(pairs.values())


def pandalm(data):
    rows = json.loads((data / "human_votes" / "pandalm" / "testset-v1.json").read_text(encoding="utf-8"))
    return [[row] for row in rows]  # three votes each, which the package's reader takes apart


def preferences(data):
    return [
        [{"prompt": row["instruction"], "response_a": row["output_2"], "response_b": row["output_1"],
          "probability": row["preference"]}]
        for row in pq.read_table(data / "preferences" / "train.parquet").to_pylist()
    ]  # fmt: skip


SOURCES = {"mt_bench": mt_bench, "pandalm": pandalm, "preferences": preferences}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument(
        "--pairs", type=int, default=None, help="drawn from each source; all of them by default"
    )
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/frozen-heads"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.sources.split(","):
        drawn = SOURCES[name](given.data)
        random.Random(given.seed).shuffle(drawn)
        drawn = drawn[: given.pairs]
        source = given.output / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for pair in drawn for row in pair), encoding="utf-8")
        for head in HEADS:
            settings = load_oracle_training(
                {
                    "seed": given.seed,
                    "pairs": {"source": str(source), "held_out": 0.25},
                    "head": {"type": head, "model": given.backbone, "max_tokens": given.max_tokens},
                    "cpu_threads": 1,
                }
            )
            result = train(settings, given.output / f"{name}-{head}", Terminal(Console(file=StringIO())))
            row = {"source": name, "head": head, "pairs": len(drawn), **result["data"], **result["cycles"]}
            for column in ("held_out", "length_only"):
                figures = ("accuracy", "auc", "log_loss", "calibration_error")
                row[column] = {figure: round(result[column][figure], 4) for figure in figures}
            print(json.dumps({**row, "l2": result["head"]["l2"]}), flush=True)


if __name__ == "__main__":
    main()
