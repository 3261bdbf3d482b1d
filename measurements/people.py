"""Oracles that are trained on people's votes, on prompts that they have not seen, beside length alone and GPT-4.

    python measurements/people.py [--data ../shared/data] [--output evaluations/people] [--only ORACLE ...] [--untrained]

People's votes are those of MT-Bench (first turns), PandaLM and llmfao. Their prompts are divided into three parts; for each
part `sppo train-oracle` trains a PairRM on the other two, so that each vote is predicted by a network that has not seen its
prompt. `preferences` is GPT-4's opinion of other instructions (AlpacaEval's), without those that people voted on. The table
stands in docs/experiments.md under "People's votes". Everything is kept in the output folder, so the same command continues
where it was interrupted.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from sppo import oracle, randomness
from sppo.oracle.training.measures import LengthBaseline
from sppo.oracle.training.pairs import JudgedPair
from sppo.oracle.training.results import predict
from sppo.progress import Terminal

PARTS, SEED, RESAMPLES = 3, 0, 2000
PREFERENCES = 4000
"""The judgments of GPT-4 that are added to people's votes; the oracle `GPT-4's judgments` has 10,000 and no votes."""
ORACLES = {  # people's votes, judgments of GPT-4, epochs
    "PairRM of votes and GPT-4's judgments": (True, PREFERENCES, 1.0),
    "PairRM of votes": (True, 0, 1.5),
    "PairRM of GPT-4's judgments": (False, 10_000, 0.6),
}
NETWORK = {
    "encoder": {
        "hidden_size": 64, "layers": 1, "heads": 4, "intermediate_size": 128, "vocabulary": 4000, "position_buckets": 64,
        "dropout": 0.1,
    },
    "source_maxlength": 256,
    "candidate_maxlength": 1200,
    "cpu_threads": 1,
}  # fmt: skip
"""The network that was above length on GPT-4's judgments (docs/experiments.md, "The same, stopped in time")."""
TRAINING = {"batch_pairs": 32, "learning_rate": 2e-3, "checkpoint_steps": 25}
Choices = list[str]


@dataclass(frozen=True)
class Voted:
    """A pair of responses with the votes of people (`a`, `b` or `tie`), and what the language model judge said."""

    source: str
    prompt: str
    a: str
    b: str
    votes: tuple[str, ...]
    judge: str

    def judged(self) -> JudgedPair:
        """The pair with the share of votes for a, a tie being half a vote."""
        share = sum({"a": 1.0, "b": 0.0, "tie": 0.5}[vote] for vote in self.votes) / len(self.votes)
        return JudgedPair(self.prompt, self.a, self.b, share)


def lines(path: Path) -> Iterator[Any]:
    """The rows of JSON lines."""
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


def mt_bench(data: Path) -> Iterator[Voted]:
    """First turns; votes on vicuna-13b-v1.2 are left out, whose answers were not released."""
    bench, votes = data / "mt_bench", data / "human_votes" / "mt_bench_human"
    prompts = {row["question_id"]: row["turns"][0] for row in lines(bench / "question.jsonl")}
    texts = {
        (row["question_id"], path.stem): row["choices"][0]["turns"][0]
        for path in (bench / "model_answer").glob("*.jsonl")
        for row in lines(path)
    }

    def choices(path: Path) -> dict[tuple[int, str, str], Choices]:
        found: dict[tuple[int, str, str], Choices] = {}
        for row in lines(path):
            models = sorted((row["model_a"], row["model_b"]))
            winner = row.get(row["winner"])  # a tie, and a verdict that depends on the order, names no model
            choice = "tie" if winner is None else "ab"[models.index(winner)]
            if row["turn"] == 1:
                found.setdefault((row["question_id"], *models), []).append(choice)
        return found

    judge = choices(votes / "gpt4_pair.jsonl")
    for (question, a, b), of_people in sorted(choices(votes / "human.jsonl").items()):
        if (question, a) in texts and (question, b) in texts:
            responses = texts[question, a], texts[question, b]
            yield Voted("MT-Bench", prompts[question], *responses, tuple(of_people), judge[question, a, b][0])


def pandalm(data: Path) -> Iterator[Voted]:
    """Three votes on each pair; the judge is GPT-3.5, of which an answer that cannot be read counts as a tie."""
    folder = data / "human_votes" / "pandalm"
    choice = {"1": "a", "2": "b"}
    judged = {
        row["idx"]: row["gpt_result"]
        for row in json.loads((folder / "gpt-3.5-turbo-testset-v1.json").read_text())
    }
    for row in json.loads((folder / "testset-v1.json").read_text()):
        prompt = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
        votes = tuple(choice.get(str(row[f"annotator{number}"]), "tie") for number in (1, 2, 3))
        first, second = (str(row[name]) for name in ("response1", "response2"))  # some are True and False
        yield Voted("PandaLM", prompt, first, second, votes, choice.get(judged[row["idx"]], "tie"))


def llmfao(data: Path) -> Iterator[Voted]:
    """Votes of crowd workers on 13 prompts."""
    folder = data / "human_votes" / "llmfao"
    choice = {"left": "a", "right": "b", "tie": "tie"}
    prompts = {row["id"]: row["text"] for row in lines(folder / "prompts.jsonl")}
    texts = {(row["prompt"], row["model"]): row["result"] for row in lines(folder / "results.jsonl")}
    votes: dict[tuple[int, int, int], Choices] = {}
    judge = {}
    for name in ("crowd", "gpt4-crowd"):
        with (folder / f"{name}-comparisons.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = int(row["prompt"]), int(row["model_x"]), int(row["model_y"])
                if name == "crowd":
                    votes.setdefault(key, []).append(choice[row["winner"]])
                else:
                    judge[key] = choice[row["winner"]]
    for key, of_people in votes.items():
        prompt, x, y = key
        responses = texts[prompt, x], texts[prompt, y]
        yield Voted("llmfao", prompts[prompt], *responses, tuple(of_people), judge[key])


def parts(pairs: Sequence[Voted]) -> dict[str, int]:
    """The part of each prompt; within a source the parts are as even as they can be."""
    found = {}
    for source in sorted({pair.source for pair in pairs}):
        prompts = {pair.prompt for pair in pairs if pair.source == source}
        order = sorted(prompts, key=lambda prompt: randomness.digest("people", SEED, prompt))
        found |= {prompt: number % PARTS for number, prompt in enumerate(order)}
    return found


def preferences(data: Path, pairs: Sequence[Voted], count: int) -> list[JudgedPair]:
    """A sample of GPT-4's judgments, without instructions that begin like a prompt that people voted on."""

    def begin(text: str) -> str:
        return " ".join(text.lower().split())[:40]

    known = {begin(pair.prompt) for pair in pairs}
    rows = [
        row
        for row in pq.read_table(data / "preferences" / "train.parquet").to_pylist()
        if begin(row["instruction"]) not in known
    ]
    order = randomness.generator("people", SEED).permutation(len(rows))[:count]
    return [
        JudgedPair(row["instruction"], row["output_2"], row["output_1"], row["preference"])
        for row in (rows[position] for position in sorted(order))
    ]


def train(name: str, pairs: Sequence[JudgedPair], epochs: float, output: Path) -> Path:
    """The folder of a PairRM that `sppo train-oracle` trains on pairs."""
    source, settings, folder = (output / kind / name for kind in ("pairs", "settings", "oracles"))
    source, settings = source.with_suffix(".jsonl"), settings.with_suffix(".yaml")
    for path in (source, settings, folder):
        path.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs), encoding="utf-8")
    # train-oracle holds prompts of its own out, which are not used here
    content = {"seed": SEED, "pairs": {"source": str(source), "held_out": 0.02}, **NETWORK}
    settings.write_text(yaml.safe_dump(content | {"training": {**TRAINING, "epochs": epochs}}))
    command = [sys.executable, "-m", "sppo", "train-oracle", str(settings), "-o", str(folder)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return folder


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """A value that is computed once and kept as JSON."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(compute()))
    return json.loads(path.read_text())


def by_pairrm(name: str, pairs: Sequence[Voted], data: Path, output: Path) -> list[float]:
    """P(a is preferred) of each pair by the PairRM that has not seen its prompt."""
    with_votes, count, epochs = ORACLES[name]
    of_prompt = parts(pairs)
    found = [float("nan")] * len(pairs)
    stem = name.lower().replace(" ", "-").replace("'", "")
    for part in range(PARTS if with_votes else 1):
        held_out = [n for n, pair in enumerate(pairs) if not with_votes or of_prompt[pair.prompt] == part]

        def answers(part: int = part, held_out: Sequence[int] = held_out) -> list[float]:
            seen = [pair.judged() for pair in pairs if with_votes and of_prompt[pair.prompt] != part]
            extra = preferences(data, pairs, count) if count else []
            folder = train(f"{stem}-{part}", [*seen, *extra], epochs, output)
            trained = oracle.load({"type": "pairrm", "model": str(folder), "probability": "calibrated"})
            predicted = predict(trained, [pairs[n].judged() for n in held_out], Terminal())
            return [float(value) for value in predicted]

        predicted = kept(output / "predictions" / f"{stem}-{part}.json", answers)
        for n, value in zip(held_out, predicted, strict=True):
            found[n] = value
    return found


def by_length(pairs: Sequence[Voted]) -> list[float]:
    """P(a is preferred) by the lengths alone, fitted to the votes on the prompts of the other parts."""
    of_prompt = parts(pairs)
    lengths = np.array([[len(pair.a), len(pair.b)] for pair in pairs], dtype=np.float64)
    target = np.array([pair.judged().probability for pair in pairs])
    part = np.array([of_prompt[pair.prompt] for pair in pairs])
    found = np.empty(len(pairs))
    for number in range(PARTS):
        aside = part == number
        found[aside] = LengthBaseline(lengths[~aside], target[~aside]).predict(lengths[aside])
    return found.tolist()


def choose(probabilities: Sequence[float], pairs: Sequence[Voted]) -> Choices:
    """The oracle's choice with ties: of its predictions it calls the closest ones ties, as many as people do.

    How close is found for each source and part on the predictions and the votes of the other parts.
    """
    of_prompt = parts(pairs)
    p = np.array(probabilities)
    place = [(pair.source, of_prompt[pair.prompt]) for pair in pairs]
    limits = {}
    for source, part in set(place):
        others = [n for n, (name, number) in enumerate(place) if name == source and number != part]
        ties = np.mean([vote == "tie" for n in others for vote in pairs[n].votes])
        limits[source, part] = np.quantile(np.abs(p[others] - 0.5), ties)
    return [
        "tie" if abs(value - 0.5) < limits[where] else "ab"[int(value < 0.5)]
        for value, where in zip(p, place, strict=True)
    ]


def agreement(
    pairs: Sequence[Voted], choices: Sequence[Sequence[tuple[str, str]]], *, with_ties: bool
) -> str:
    """The share of votes that a judge's choices agree with, with a bootstrap interval over prompts.

    Args:
        pairs: the pairs with people's votes.
        choices: for each pair its votes, each beside what it is compared with: the judge's choice, or another person's vote.
        with_ties: MT-Bench's setup 1, where a tie is a choice like others; else its setup 2, choices and votes that are none.
    """
    hits: Counter[str] = Counter()
    votes: Counter[str] = Counter()
    for pair, of_pair in zip(pairs, choices, strict=True):
        both = [(vote, choice) for vote, choice in of_pair if with_ties or "tie" not in (vote, choice)]
        hits[pair.prompt] += sum(vote == choice for vote, choice in both)
        votes[pair.prompt] += len(both)
    counts = np.array([[hits[prompt], votes[prompt]] for prompt in votes if votes[prompt]])
    drawn = np.random.default_rng(SEED).integers(len(counts), size=(RESAMPLES, len(counts)))
    sums = counts[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    total = counts.sum(0)
    return f"{100 * total[0] / total[1]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def with_each_vote(pairs: Sequence[Voted], choices: Choices) -> list[list[tuple[str, str]]]:
    """Every vote beside a judge's choice."""
    return [[(vote, choice) for vote in pair.votes] for pair, choice in zip(pairs, choices, strict=True)]


def show(pairs: Sequence[Voted], predictions: dict[str, list[float]]) -> None:
    """Print one table: agreement with people's votes in both of MT-Bench's setups, on each source."""
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    columns = [(source, with_ties) for source in sources for with_ties in (False, True)]
    rows: dict[str, dict[bool, list[list[tuple[str, str]]]]] = {}
    for name, values in predictions.items():
        decided = ["ab"[int(value < 0.5)] for value in values]
        chosen = choose(values, pairs)
        rows[name] = {False: with_each_vote(pairs, decided), True: with_each_vote(pairs, chosen)}
    judge = with_each_vote(pairs, [pair.judge for pair in pairs])
    people = [list(permutations(pair.votes, 2)) for pair in pairs]
    rows |= {"GPT-4 (GPT-3.5 on PandaLM)": dict.fromkeys((False, True), judge)}
    rows |= {"another person": dict.fromkeys((False, True), people)}
    heads = [f"{source}, {'all votes' if with_ties else 'decided'}" for source, with_ties in columns]
    print(f"| agrees with a vote, % | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for name, of_setup in rows.items():
        cells = []
        for source, with_ties in columns:
            chosen_pairs = [n for n, pair in enumerate(pairs) if pair.source == source]
            subset = [pairs[n] for n in chosen_pairs]
            cells.append(
                agreement(subset, [of_setup[with_ties][n] for n in chosen_pairs], with_ties=with_ties)
            )
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        "| GPT-4, published (first turn) | 85 | 66 | | | | |\n| another person, published | 81 | 63 | | | | |\n"
    )
    for source in sources:
        of_source = [pair for pair in pairs if pair.source == source]
        votes = [vote for pair in of_source for vote in pair.votes]
        prompts = len({pair.prompt for pair in of_source})
        print(
            f"{source}: {len(votes)} votes, {votes.count('tie')} of them ties, {len(of_source)} pairs, {prompts} prompts"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="the folder of votes and preferences")
    parser.add_argument("--output", type=Path, default=Path("evaluations/people"))
    parser.add_argument(
        "--only", action="append", choices=list(ORACLES), help="train this oracle only; may be repeated"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="train nothing; print the other rows of the table"
    )
    given = parser.parse_args()
    pairs = [*mt_bench(given.data), *pandalm(given.data), *llmfao(given.data)]
    wanted = [] if given.untrained else given.only or ORACLES
    predictions = {name: by_pairrm(name, pairs, given.data, given.output) for name in wanted}
    longer = [(1 + np.sign(len(pair.a) - len(pair.b))) / 2 for pair in pairs]
    show(pairs, predictions | {"length only": by_length(pairs), "the longer response": longer})


if __name__ == "__main__":
    main()
