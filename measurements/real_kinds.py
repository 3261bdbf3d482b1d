"""The share of verifiable constraints that responses keep, by kind, over the iterations of a run.

    python measurements/real_kinds.py runs/real [runs/real-seed-1 ...] [--training]

The responses are those to the held-out prompts; with --training they are those to the training prompts of each iteration, which
the policy that answers has not been trained on. Several runs are averaged; they must have the same constraints. Kinds that no
training prompt states come last, under "held out". The figures stand in docs/experiments.md under "A real model on two cores".
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sppo.benchmarks.ifeval import constraints
from sppo.rundir.reader import PromptResponses, RunReader, label

Kept = dict[str, dict[int, list[bool]]]
"""For each kind and policy, by its iteration, whether each constraint was kept."""


def answered(run: RunReader, training: bool) -> Iterator[tuple[int, PromptResponses]]:
    """Prompts with their responses, and the iteration that trained the policy which gave them."""
    for iteration in run.iterations if training else run.evaluated:
        rows = run.responses(iteration) if training else run.held_out(iteration)
        yield from ((iteration - training, prompt) for prompt in rows)


def count(run: RunReader, oracle: Any, all_kinds: str, training: bool, kept: Kept) -> None:
    """Add which constraints of an oracle the responses keep, by kind and under the name that stands for all kinds."""
    by_prompt = oracle.load().by_prompt
    for iteration, prompt in answered(run, training):
        asked = by_prompt[prompt.messages[-1]["content"]]
        for text in prompt.texts:
            for constraint, is_kept in zip(asked, constraints.kept(asked, text), strict=True):
                kept[constraint.name][iteration].append(is_kept)
                kept[all_kinds][iteration].append(is_kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    runs = [RunReader(path) for path in options.runs]
    recipe: Any = runs[0].recipe
    oracles = {"trained on": recipe.oracle}
    if not options.training:  # no training prompt states a constraint of the held-out oracle
        oracles["held out"] = recipe.evaluation.oracle
    table: Table | None = None
    for title, oracle in oracles.items():
        kept: Kept = defaultdict(lambda: defaultdict(list))
        for run in runs:
            count(run, oracle, f"all kinds that are {title}", options.training, kept)
        iterations = sorted({iteration for of_kind in kept.values() for iteration in of_kind})
        if table is None:
            table = Table("kind", "constraints", *map(label, iterations), box=box.MARKDOWN)
        for kind, found in sorted(kept.items()):
            numbers = [f"{len(found[t]):,}" for t in iterations]
            counts = numbers[0] if len(set(numbers)) == 1 else "; ".join(numbers)
            shares = (f"{sum(found[t]) / len(found[t]):.0%}" if found[t] else "" for t in iterations)
            table.add_row(kind, counts, *shares)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
