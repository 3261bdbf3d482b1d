"""Whether checks of models, templates and data slow the usual path: two versions of this package, in alternating repeats.

    git worktree add --detach ../before 703f712
    OMP_NUM_THREADS=1 python measurements/usual_path.py ../before MODEL [--repeats 3]

Its figures stand in docs/experiments.md under "What measuring a model costs when it is loaded". Each repeat plays one iteration
with each version twice, with one shard and one optimiser step and with three of each, so that the cost of a shard and of a step
is half the difference; two equal numbers play one size only. All figures are seconds of the processor. The checks themselves are also timed inside a run of this
version, because a difference of 1% between two runs is below what other programs on the machine change.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SHARD = 4
WORDS = [
    "a fox",
    "a lamp",
    "rain",
    "a tram",
    "soup",
    "a drum",
    "snow",
    "tea",
    "a hat",
    "a bee",
    "a kite",
    "moss",
    "a saw",
    "salt",
]
RECIPE = {
    "seed": 0,
    "cpu_threads": 1,
    "iterations": 1,
    "sampling": {"k": 4, "temperature": 0.7, "max_new_tokens": 48, "dtype": "bfloat16"},
    "selection": "best_worst",
    "algorithm": {"type": "sppo", "eta": 30},
    "evaluation": {"responses": 1},
    "guard": {"on_failure": "keep"},
    "training": {
        "learning_rate": 5e-5,
        "schedule": "constant",
        "batch_prompts": SHARD,
        "mixed_precision": "bf16",
        "pack_tokens": 2048,
        "truncated_responses": "train",
    },
    "shard_prompts": SHARD,
}
ORACLE = """
import numpy as np

def prefer(prompts, responses):
    lengths = np.array([[len(text) / (1 + text.count(" ")) for text in texts] for texts in responses])
    return 1 / (1 + np.exp(lengths[:, None, :] - lengths[:, :, None]))
"""
# Stages state their seconds by `time.perf_counter`, which is made to count the processor's.
CHILD = (
    "import sys, time; time.perf_counter = time.process_time; from sppo.cli.main import app; sys.exit(app())"
)
# The same, and the seconds within the functions that check a model.
TIMED = """
import atexit, importlib, json, sys, time
time.perf_counter = time.process_time
seconds = {}
def timed(name, attribute):
    module = importlib.import_module(name)
    function = getattr(module, attribute)
    def wrapper(*args, **kwargs):
        begin = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[attribute] = seconds.get(attribute, 0.0) + time.process_time() - begin
    setattr(module, attribute, wrapper)
timed("sppo.sampling.decoding", "fastest_right_way")
timed("sppo.training.log_probs", "_measure_capabilities")
timed("sppo.training.trainer", "measure_noise")
timed("sppo.policy.model_files", "refuse_non_finite")
timed("sppo.policy.load", "_name_unused_weights")
timed("sppo.policy.model_files", "check")
timed("sppo.stages.models", "load_chat")
atexit.register(lambda: print("SECONDS", json.dumps(seconds), file=sys.stderr))
from sppo.cli.main import app
sys.exit(app())
"""


def play(checkout: Path, model: Path, shards: int, code: str) -> tuple[dict[str, float], str]:
    """Seconds of the processor of each stage of a run, and of the whole process; and what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "longer_words.py").write_text(ORACLE, encoding="utf-8")
        sizes = {"train": shards * SHARD, "held_out": 2}
        for part, count in sizes.items():
            rows = [
                json.dumps({"prompt": f"Describe {word} in one sentence, for the {part} set."})
                for word in WORDS[:count]
            ]
            (folder / f"{part}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        recipe = RECIPE | {
            "policy": {"model": str(model), "dtype": "float32"},
            "prompts": {part: str(folder / f"{part}.jsonl") for part in sizes}
            | {"per_iteration": sizes["train"]},
            "oracle": {"type": "function", "function": "longer_words:prefer"},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "run",
                str(folder / "recipe.yaml"),
                "--run-dir",
                str(folder / "run"),
            ],
            env=os.environ | {"PYTHONPATH": f"{checkout / 'src'}:{folder}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            sys.exit(result.stdout + result.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))
        seconds = dict(summary["iterations"][0]["seconds"])
        seconds["run"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, result.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, nargs=2, default=[1, 3])
    options = parser.parse_args()
    now = Path(__file__).resolve().parents[1]
    whole, written = play(now, options.model, max(options.shards), TIMED)
    checks = json.loads(written.rpartition("SECONDS ")[2].splitlines()[0])
    print(
        f"a run of {max(options.shards)} shards: {whole['run']:.1f} s, of which {sum(checks.values()):.2f} s are checks:",
        flush=True,
    )
    for check, seconds in sorted(checks.items(), key=lambda item: -item[1]):
        print(f"  {check}: {seconds:.2f}")
    few, many = options.shards
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(options.repeats):
        for shards in dict.fromkeys(options.shards):
            for version, checkout in (("before", options.before), ("now", now)):
                found = play(checkout, options.model, shards, CHILD)[0]
                print(f"{shards} shards, {version}: {found}", flush=True)
                for stage, value in found.items():
                    seconds.setdefault((stage, version, shards), []).append(value)
    print(
        f"before, now; the least of the repeats, with {many} shards and for one more shard, and the medians"
    )
    for stage in dict.fromkeys(stage for stage, *_ in seconds):
        parts = []
        for version in ("before", "now"):
            values = seconds[stage, version, many]
            slope = (min(values) - min(seconds[stage, version, few])) / max(1, many - few)
            parts.append(f"{min(values):.2f} ({slope:.2f}; {statistics.median(values):.2f})")
        print(f"{stage}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
