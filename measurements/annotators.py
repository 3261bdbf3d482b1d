"""The win rate of the last policy by each of the panel's annotators, for SPPO on the panel's mean and for `blackwell`.

    python measurements/annotators.py [--seeds 0 1 2 3 4] [--work FOLDER] [--only NAME ...] [--set KEY=VALUE ...]

The quickstart is played on the panel itself, with each update and seed. The responses of its base and of its last policy to the
held-out prompts are then compared by each annotator alone: the mean over prompts of P_a(y > y') over the policy's responses y and
the base's y'. Runs in FOLDER that are finished are not played again. Results stand in docs/experiments.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sppo.oracle import load
from sppo.policy.chat_format import plain_text
from sppo.rundir.reader import RunReader
from sppo.tinyworld.annotators import ANNOTATORS
from sppo.winrates import Array

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"
PANEL = ["oracle={type: panel}", "evaluation.oracle=null", "guard.on_failure=keep"]
UPDATES = {
    "sppo": [],
    "sppo, all K": ["selection=all"],
    "rebel, win rates": ["selection=all", "algorithm={type: rebel, eta: 30, reward: win_rate}"],
    "blackwell": ["selection=all", "algorithm={type: blackwell, eta: 30}"],
}
"""The keys that each update changes in the quickstart; REBEL is SPPO by the loss that `blackwell` has."""


def win_rates(run: Path, iteration: int) -> Array:
    """[annotators, prompts] the policy's win rate against the base."""
    reader = RunReader(run)
    base = {row.prompt_id: row.texts for row in reader.held_out(0)}
    policy = list(reader.held_out(iteration))
    prompts = [plain_text(row.messages) for row in policy]
    texts = [row.texts + base[row.prompt_id] for row in policy]
    k = len(policy[0].texts)
    rates = []
    for annotator in ANNOTATORS:
        oracle = load({"type": "function", "function": f"sppo.tinyworld.annotators:{annotator}"})
        rates.append(oracle.compare(prompts, texts)[:, :k, k:].mean((1, 2)))
    return np.array(rates)


def play(run: Path, settings: Sequence[str]) -> None:
    """Play a run to its end, as `sppo run` does."""
    command = [
        sys.executable,
        "-m",
        "sppo.cli.main",
        "run",
        str(RECIPE),
        "--run-dir",
        str(run),
        "--no-report",
    ]
    for value in settings:
        command += ["--set", value]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, help="a folder for the runs; a temporary one if left out")
    parser.add_argument("--only", nargs="+", choices=list(UPDATES), default=list(UPDATES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other keys of the recipe")
    options = parser.parse_args()
    worst: dict[str, list[float]] = {}
    print(f"| update | seed | {' | '.join(ANNOTATORS)} | worst | of each prompt | mean | KL | tokens |")
    print("|---|---|" + "---|" * (len(ANNOTATORS) + 5))
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only:
            for seed in options.seeds:
                run = (
                    options.work or Path(temporary)
                ) / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
                play(run, [*PANEL, *UPDATES[name], f"seed={seed}", *options.set])
                last = json.loads((run / "summary.json").read_text())["iterations"][-1]
                by_prompt = win_rates(run, last["iteration"])
                rates = by_prompt.mean(1)
                worst.setdefault(name, []).append(float(rates.min()))
                figures = " | ".join(
                    f"{rate:.3f}" for rate in [*rates, rates.min(), by_prompt.min(0).mean(), rates.mean()]
                )
                print(
                    f"| {name} | {seed} | {figures} | {last['kl_to_base']:.2f} | {last['response_tokens']:.1f} |",
                    flush=True,
                )
    for name, values in worst.items():
        differences = np.array(values) - np.array(worst[options.only[0]])
        print(
            f"{name}: worst annotator {np.mean(values):.3f} (lowest seed {min(values):.3f}),"
            f" {differences.mean():+.3f} beside {options.only[0]}, by seed"
            f" {' '.join(f'{difference:+.3f}' for difference in differences)}"
        )


if __name__ == "__main__":
    main()
