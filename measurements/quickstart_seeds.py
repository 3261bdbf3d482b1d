"""The win rate of the quickstart against the base after each iteration, for several seeds.

    python measurements/quickstart_seeds.py [--seeds 0 1 2 3 4] [--set KEY=VALUE ...]

Its figures stand in docs/experiments.md under "The quickstart over five seeds". It prints a row for each seed, which shows
the last win rate by the optimised oracle as well if there is a held-out one, and at the end whether the win rate of every
seed rose at every iteration and reached 0.70.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"
GOAL = 0.70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of the recipe"
    )
    options = parser.parse_args()
    print(
        "seed  win rate against the base after each iteration, 95% interval of the last   optimised  tokens  KL    seconds"
    )
    finals, rising = [], True
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            run = Path(folder) / str(seed)
            begin = time.perf_counter()
            command = [sys.executable, "-m", "sppo.cli.main", "run", str(RECIPE), "--run-dir", str(run)]
            # every seed is played to its end, so that a failed one is seen and not cut off
            for value in [f"seed={seed}", "guard.on_failure=keep", *options.set]:
                command += ["--set", value]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows = json.loads((run / "summary.json").read_text())["iterations"]
            rates = [row["win_rate_vs_base"]["mean"] for row in rows]
            last = rows[-1]
            interval = last["win_rate_vs_base"]
            optimised = last["by_oracle"]["win_rate_vs_base"]["mean"] if last.get("by_oracle") else rates[-1]
            print(
                f"{seed:4d}  {'  '.join(f'{rate:.3f}' for rate in rates)}"
                f"  [{interval['low']:.3f}, {interval['high']:.3f}]".ljust(79),
                f"{optimised:9.3f}  {last['response_tokens']:6.1f}  {last['kl_to_base']:.2f}  {time.perf_counter() - begin:.0f}",
                flush=True,
            )
            finals.append(rates[-1])
            rising &= all(after > before for before, after in zip([0.5, *rates], rates, strict=False))
    print(f"rising at every iteration with every seed: {'yes' if rising else 'no'}")
    print(
        f"at least {GOAL:.2f} after the last with every seed: {'yes' if min(finals) >= GOAL else 'no'}",
        end="",
    )
    print(f" (lowest {min(finals):.3f}, mean {sum(finals) / len(finals):.3f})")


if __name__ == "__main__":
    main()
