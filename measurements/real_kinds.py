"""The share of verifiable constraints that the responses to a run's held-out prompts keep, by kind, over its iterations.

    python measurements/real_kinds.py runs/real [runs/real-seed-1 ...]

Several runs are averaged; they must have the same constraints. Kinds that no training prompt states come last, under
"held out". The figures stand in docs/experiments.md under "A real model on two cores".
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sppo.benchmarks.ifeval import constraints
from sppo.rundir.reader import RunReader

Kept = dict[str, dict[int, list[bool]]]
"""For each kind and iteration, whether each of its constraints was kept."""


def stated(file: str) -> dict[str, tuple[constraints.Constraint, ...]]:
    """The constraints of each prompt that an oracle's file states."""
    return {prompt.text: prompt.constraints for prompt in constraints.read_prompts(Path(file))}


def kept_by_kind(run: RunReader, by_prompt: dict[str, tuple[constraints.Constraint, ...]]) -> Kept:
    """Which constraints the responses to a run's held-out prompts keep."""
    kept: Kept = defaultdict(lambda: defaultdict(list))
    for iteration in run.evaluated:
        for prompt in run.held_out(iteration):
            asked = by_prompt[prompt.messages[-1]["content"]]
            for text in prompt.texts:
                for constraint, is_kept in zip(asked, constraints.kept(asked, text), strict=True):
                    kept[constraint.name][iteration].append(is_kept)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    runs = [RunReader(path) for path in options.runs]
    recipe: Any = runs[0].recipe
    iterations = runs[0].evaluated
    table = Table(box=box.MARKDOWN)
    for heading in ("kind", "constraints", *("base" if t == 0 else f"iteration {t}" for t in iterations)):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for title, oracle in (("trained on", recipe.oracle), ("held out", recipe.evaluation.oracle)):
        by_prompt = stated(oracle.constraints)
        together: Kept = defaultdict(lambda: defaultdict(list))
        for run in runs:
            for kind, of_iterations in kept_by_kind(run, by_prompt).items():
                for iteration, kept in of_iterations.items():
                    together[kind][iteration] += kept
                    together[f"all kinds that are {title}"][iteration] += kept
        for kind, of_iterations in sorted(together.items()):
            shares = (f"{sum(of_iterations[t]) / len(of_iterations[t]):.0%}" for t in iterations)
            table.add_row(kind, str(len(of_iterations[iterations[0]])), *shares)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
