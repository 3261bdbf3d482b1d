"""Fewer comparisons: the P^ and the best and worst responses that each type of `oracle.comparisons` finds, beside all pairs.

    python measurements/comparisons.py --panel [--prompts 240] [--work FOLDER]
    python measurements/comparisons.py --real ../shared/data
    python measurements/comparisons.py --runs 0 1 2 3 4

With --panel the base policy of tinyworld draws 64 responses to each prompt, and the panel compares all of them. They are four
groups of K = 16, and the 48 responses outside a group say what P(y > pi_t) of each response in it truly is. With --real the
matrices are those of people and judges, and each is played with 200 seeds. Results stand in docs/experiments.md.
"""

import argparse
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.csv
from rich.console import Console

from sppo import oracle, randomness, recipe, selfplay
from sppo.comparisons import Choice, count_pairs
from sppo.policy.chat_format import plain_text
from sppo.progress import Terminal
from sppo.rundir.folder import RunFolder
from sppo.rundir.tables import ResponsesRow, read_rows
from sppo.stages.single import run_stage
from sppo.winrates import Array, win_rates

DRAWN, K = 64, 16
SEEDS = 200


def play(choice: Choice, matrix: Array, *key: str | int) -> tuple[Array, int]:
    """P^ of each response, NaN where it is not settled, and the number of pairs that were asked about."""
    rounds = choice.rounds(randomness.generator("measure", *key), range(choice.k))
    asked = np.eye(choice.k, dtype=bool)
    try:
        wanted = next(rounds)
        while True:
            asked |= wanted
            wanted = rounds.send(np.where(asked, matrix, np.nan))
    except StopIteration as end:
        return win_rates(np.where(asked, matrix, np.nan), end.value), count_pairs(asked)


def choices(k: int) -> Iterator[Choice]:
    """All pairs, and every type at about 40% of them and at half of them, where it can do with so few."""
    every = k * (k - 1) // 2
    yield Choice("all", k)
    for share in (0.4, 0.5):
        for kind in ("random", "swiss", "elimination", "adaptive"):
            choice = Choice(kind, k, int(share * every))
            if choice.budget >= choice.least_budget:
                yield choice
    if int(0.5 * every) < Choice("adaptive", k).least_budget:
        yield from (Choice("elimination", k), Choice("adaptive", k))


def panel_matrices(prompts: int, folder: Path) -> Array:
    """[prompts, 64, 64] by the panel."""
    settings = {"iterations": 1, "sampling.k": DRAWN, "prompts.per_iteration": prompts}
    terminal = Terminal(Console(file=io.StringIO()))
    run_stage(recipe.load("quickstart", settings), RunFolder(folder), terminal, "sample")
    panel = oracle.load({"type": "panel"})
    matrices = []
    for shard in sorted((folder / "iter-1" / "responses").glob("part-*.parquet")):
        for row in read_rows(shard, ResponsesRow):
            matrices.append(panel.compare([plain_text(row.messages)], [row.texts])[0])
    return np.array(matrices)


def measure_panel(matrices: Array) -> None:
    """Print a row for each choice."""
    print(f"{len(matrices)} prompts, {DRAWN // K} groups of K = {K} responses each\n")
    print(
        "| comparisons | ordered pairs | of all | rms of P^ - P^(all) | rms of P^ - truth | best: truth lost | worst: truth lost |"
    )
    print("|---|---|---|---|---|---|---|")
    for choice in choices(K):
        found = [
            _group(choice, matrix, n, start)
            for n, matrix in enumerate(matrices)
            for start in range(0, DRAWN, K)
        ]
        values = np.array(found).reshape(len(matrices), DRAWN // K, -1)
        pairs, off_all, off_truth, best, worst = np.moveaxis(values, 2, 0)
        label = choice.type if choice.type == "all" else f"{choice.type}, budget {choice.most_pairs}"
        print(
            f"| {label} | {2 * pairs.mean():.1f} | {pairs.mean() / choice.every_pair:.1%} | {off_all.mean() ** 0.5:.4f} |"
            f" {off_truth.mean() ** 0.5:.4f} | {_interval(best.mean(1))} | {_interval(worst.mean(1))} |",
            flush=True,
        )


def _group(choice: Choice, matrix: Array, prompt: int, start: int) -> tuple[float, ...]:
    inside = slice(start, start + K)
    outside = np.delete(np.arange(DRAWN), inside)
    group, truth = matrix[inside, inside], matrix[inside][:, outside].mean(axis=1)
    whole = win_rates(group)
    rates, pairs = play(choice, group, prompt, start)
    chosen = [int(np.nanargmax(rates)), int(np.nanargmin(rates))]
    best, worst = int(whole.argmax()), int(whole.argmin())
    return (
        pairs,
        float(np.mean((rates[chosen] - whole[chosen]) ** 2)),
        float(np.mean((rates[chosen] - truth[chosen]) ** 2)),
        float(truth[best] - truth[chosen[0]]),
        float(truth[chosen[1]] - truth[worst]),
    )


def _interval(values: Array) -> str:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.4f} ({half:.4f})"


def measure_real(name: str, matrices: Sequence[Array], seeds: int) -> None:
    """Print a row for each choice, against P^ from all pairs that were ever answered."""
    k = matrices[0].shape[-1]
    answered = np.mean([np.isfinite(matrix).mean() for matrix in matrices])
    print(
        f"\n{name}: {len(matrices)} of {k} x {k}, {answered:.0%} of the entries answered, {seeds} seeds each\n"
    )
    print(
        "| comparisons | pairs | of all | rms of P^ - P^(all) | best: lost | worst: lost | same best | same worst |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for choice in choices(k):
        rows = []
        for number, matrix in enumerate(matrices):
            whole = win_rates(matrix)
            for seed in range(seeds):
                rates, pairs = play(choice, matrix, number, seed)
                best, worst = int(np.nanargmax(rates)), int(np.nanargmin(rates))
                lost = (np.nanmax(whole) - whole[best], whole[worst] - np.nanmin(whole))
                off = (rates[[best, worst]] - whole[[best, worst]]) ** 2
                rows.append((pairs, off.mean(), *lost, lost[0] < 1e-12, lost[1] < 1e-12))
        pairs, off, best, worst, same_best, same_worst = np.mean(rows, axis=0)
        label = choice.type if choice.type == "all" else f"{choice.type}, budget {choice.most_pairs}"
        print(
            f"| {label} | {pairs:.1f} | {pairs / choice.every_pair:.1%} | {off**0.5:.4f} | {best:.4f} | {worst:.4f} |"
            f" {same_best:.1%} | {same_worst:.1%} |",
            flush=True,
        )


def majority(votes: Iterable[tuple[str, str, float]]) -> Array:
    """P_ij as the mean of the votes on a pair; NaN where there is none."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for first, second, score in votes:
        scores[first, second].append(score)
        scores[second, first].append(1 - score)
    names = sorted({name for pair in scores for name in pair})
    matrix = np.array([[np.mean(scores.get((i, j)) or [np.nan]) for j in names] for i in names])
    matrix[np.diag_indices(len(names))] = 0.5
    return matrix


def real_matrices(data: Path) -> Iterator[tuple[str, list[Array], int]]:
    """The matrices of the shared data, with the number of seeds for each."""
    yield "soccer10", [np.loadtxt(data / "games/soccer10/soccer.txt")], SEEDS
    score = {"tie": 0.5, "tie (inconsistent)": 0.5}
    lines = map(json.loads, (data / "human_votes/mt_bench_human/human.jsonl").read_text().splitlines())
    yield (
        "MT-Bench, people",
        [
            majority(
                (
                    line["model_a"],
                    line["model_b"],
                    score.get(line["winner"], float(line["winner"] == "model_a")),
                )
                for line in lines
            )
        ],
        SEEDS,
    )
    by_question: dict[tuple[str, int], list[tuple[str, str, float]]] = defaultdict(list)
    for row in pyarrow.csv.read_csv(data / "games/mt_bench_llm_judges/pairwise_en.csv").to_pylist():
        for verdict, wins in ((row["winner_order_ab"], "A"), (row["winner_order_ba"], "B")):
            if verdict != "error":
                value = 0.5 if verdict == "tie" else float(verdict == wins)
                by_question[row["judge"], row["question_id"]].append((row["model_a"], row["model_b"], value))
    judged = [majority(votes) for votes in by_question.values()]
    yield "LLM judges, by judge and question", [matrix for matrix in judged if len(matrix) == 6], 5
    votes = pyarrow.csv.read_csv(data / "human_votes/llmfao/crowd-comparisons.csv").to_pylist()
    people = majority(
        (row["left"], row["right"], score.get(row["winner"], float(row["winner"] == "left"))) for row in votes
    )
    yield "llmfao, people, all models", [people], 20
    while len(people) > K:  # the model that has met the fewest of the others leaves
        fewest = int(np.isfinite(people).sum(axis=1).argmin())
        people = np.delete(np.delete(people, fewest, 0), fewest, 1)
    yield f"llmfao, people, {K} models that have met most of each other", [people], SEEDS


RUNS = {
    "iterations": 2,
    "sampling.k": K,
    "prompts": {
        "train": {"source": "tinyworld/train", "limit": 96},
        "held_out": {"source": "tinyworld/held-out", "limit": 120},
    },
    "oracle": {"type": "panel"},
    "evaluation.responses": 1,
    "evaluation.resamples": 100,
    "guard.on_failure": "keep",
}


def measure_runs(seeds: Sequence[int]) -> None:
    """Print the last win rate against the base policy of two small runs for each seed, with all pairs and with few."""
    print("| seed | all | adaptive |\n|---|---|---|")
    lasts = []
    for seed in seeds:
        found = []
        for kind in ("all", "adaptive"):
            of = recipe.load("quickstart", {**RUNS, "seed": seed, "oracle.comparisons": {"type": kind}})
            with tempfile.TemporaryDirectory() as folder:
                summary = selfplay.run(
                    of, RunFolder(Path(folder) / "run"), Terminal(Console(file=io.StringIO()))
                )
            found.append(summary["iterations"][-1]["win_rate_vs_base"]["mean"])
        print(f"| {seed} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)
        lasts.append(found)
    every, few = np.mean(lasts, axis=0)
    spread = np.std([few - every for every, few in lasts], ddof=1) / len(lasts) ** 0.5
    print(f"| mean | {every:.3f} | {few:.3f} |\n\ndifference {few - every:+.3f}, standard error {spread:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", action="store_true")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument(
        "--work", type=Path, help="a folder for the responses, which another call goes on from"
    )
    parser.add_argument("--real", type=Path, help="the folder of the shared data")
    parser.add_argument("--runs", type=int, nargs="+", help="seeds of small runs")
    parser.add_argument("--only", default="", help="matrices whose name holds this")
    arguments = parser.parse_args()
    if arguments.panel:
        with tempfile.TemporaryDirectory() as folder:
            measure_panel(panel_matrices(arguments.prompts, arguments.work or Path(folder)))
    if arguments.runs:
        measure_runs(arguments.runs)
    if arguments.real:
        for name, matrices, seeds in real_matrices(arguments.real):
            if arguments.only in name:
                measure_real(name, matrices, seeds)


if __name__ == "__main__":
    main()
