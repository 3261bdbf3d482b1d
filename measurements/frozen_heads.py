"""Heads on a frozen backbone, trained on people's votes and on GPT-4's preferences, beside length alone.

    nice -n 5 env OMP_NUM_THREADS=1 python measurements/frozen_heads.py BACKBONE --dtype bfloat16 --output runs/frozen-heads
    nice -n 5 env OMP_NUM_THREADS=1 python measurements/frozen_heads.py BACKBONE --dtype bfloat16 --heads pairrm --sources pandalm
    nice -n 5 env OMP_NUM_THREADS=1 python measurements/frozen_heads.py BACKBONE --weights adapter --heads reward_model --sources pandalm

The files are read as they were published: MT-Bench's votes on first turns about the models whose answers lie there, PandaLM's test set,
llmfao's crowd, and AlpacaEval's judgments of GPT-4 against other models, of which --pairs pairs are drawn by the seed. A quarter of the
prompts of each source is held out. With `--weights adapter` or `all` the backbone is not frozen: an adapter or all of its weights are
trained for an epoch. The hidden states of a frozen backbone are kept as they are computed: the same command goes on where it was
interrupted, and reads what is finished.
"""

import argparse
import json
import random
import time
from pathlib import Path

import pyarrow.parquet as pq

from sppo.oracle.training import train
from sppo.progress import Terminal
from sppo.recipe import load_oracle_training

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADS = ("reward_model", "general_preference")  # and pairrm, whose pairs take more passes
FIGURES = ("accuracy", "auc", "log_loss", "calibration_error")


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mt_bench(given):
    votes = (given.data / "human_votes" / "mt_bench_human" / "human.jsonl").read_text(encoding="utf-8")
    first = [row for row in map(json.loads, votes.splitlines()) if row["turn"] == 1]
    source = written(given.output / "mt_bench.jsonl", first)
    return {"source": source, "texts": str(given.data / "mt_bench"), "without_text": "leave_out"}


def pandalm(given):
    return {"source": str(given.data / "human_votes" / "pandalm" / "testset-v1.json")}


def llmfao(given):
    return {"source": str(given.data / "human_votes" / "llmfao" / "crowd-comparisons.csv")}


def preferences(given):
    rows = pq.read_table(given.data / "preferences" / "train.parquet").to_pylist()
    drawn = random.Random(given.seed).sample(rows, min(given.pairs, len(rows)))
    columns = {"prompt": "instruction", "response_a": "output_2", "response_b": "output_1", "probability": "preference"}  # fmt: skip
    return {"source": written(given.output / "preferences.jsonl", drawn), **columns}


SOURCES = {"mt_bench": mt_bench, "pandalm": pandalm, "llmfao": llmfao, "preferences": preferences}


def trained(given, head):
    """The settings of what is trained."""
    if given.weights == "frozen":
        steps, frozen = {}, {"frozen": True, "dtype": given.dtype}
    else:
        adapter = {"adapter": {}} if given.weights == "adapter" else {}
        steps = {
            "training": {
                **adapter,
                "batch_pairs": 16,
                "epochs": 1.0,
                "mixed_precision": given.mixed_precision,
                "device_pairs": given.device_pairs,
            }
        }
        frozen = {"frozen": False}
    if head == "pairrm":
        half = given.max_tokens // 2
        limits = {"source_maxlength": half, "candidate_maxlength": half}
        return {"encoder": {"model": given.backbone, **frozen}, **limits, **steps}
    return {
        "head": {"type": head, "model": given.backbone, "max_tokens": given.max_tokens, **frozen},
        **steps,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--pairs", type=int, default=250, help="pairs that are drawn of GPT-4's")
    parser.add_argument(
        "--weights",
        choices=("frozen", "adapter", "all"),
        default="frozen",
        help="what is trained besides the head",
    )
    parser.add_argument("--mixed-precision", default="no", help="where the backbone is not frozen")
    parser.add_argument("--dtype", default="float32", help="of a frozen backbone")
    parser.add_argument("--device-pairs", type=int, help="where the backbone is not frozen")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/frozen-heads"))
    given = parser.parse_args()
    for name in given.sources.split(","):
        pairs = SOURCES[name](given)
        for head in given.heads.split(","):
            settings = load_oracle_training(
                {
                    "seed": given.seed,
                    "pairs": {**pairs, "held_out": 0.25},
                    **trained(given, head),
                    "cpu_threads": 1,
                }
            )
            began = time.process_time()
            result = train(settings, given.output / f"{name}-{head}-{given.weights}", Terminal())
            row = {
                "source": name,
                "head": head,
                "weights": given.weights,
                **result["data"],
                **result["cycles"],
            }
            for column in ("held_out", "length_only"):
                row[column] = {figure: round(result[column][figure], 4) for figure in FIGURES}
                row[column]["judgments"] = result[column]["pairs"]
            spent = round(time.process_time() - began)
            print(
                json.dumps({**row, "l2": result.get("head", {}).get("l2"), "cpu_seconds": spent}), flush=True
            )


if __name__ == "__main__":
    main()
