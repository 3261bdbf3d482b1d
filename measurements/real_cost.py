"""The cost model's seconds for one run by the rates of another, beside what was measured.

    python measurements/real_cost.py runs/real-64 runs/real --parameters 134515008 --iterations 2 3

The rates are those of the first run, averaged over the iterations that are named (one that other programs slowed down would
spoil them). Its figures stand in docs/scaling.md.
"""

import argparse
from pathlib import Path

from sppo import cost

STAGES = ("sample", "select", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("known", type=Path)
    parser.add_argument("predicted", type=Path)
    parser.add_argument("--parameters", type=float, required=True)
    parser.add_argument("--iterations", type=int, nargs="+", required=True)
    options = parser.parse_args()
    loads, seconds = (
        cost.loads_of_run(options.known, options.parameters),
        cost.measured_seconds(options.known),
    )
    rates = {
        stage: sum(loads[t].flops()[stage] for t in options.iterations)
        / sum(seconds[t][stage] for t in options.iterations)
        for stage in STAGES
    }
    print("GFLOP/s", {stage: round(rate / 1e9, 1) for stage, rate in rates.items()})
    rates["annotate"] = rates["select"]
    measured = cost.measured_seconds(options.predicted)
    for number, load in cost.loads_of_run(options.predicted, options.parameters).items():
        estimated = load.seconds(rates)
        pairs = (
            f"{stage} {estimated[stage]:.0f}, {measured[number][stage]:.0f}"
            for stage in (*STAGES, "evaluate")
        )
        print(f"iteration {number}: estimate, measured:", "; ".join(pairs))


if __name__ == "__main__":
    main()
