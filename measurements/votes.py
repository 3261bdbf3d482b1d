"""Do people's and judges' majorities go in circles beyond chance, and could the test see it if they did?

    python measurements/votes.py [--only found,twice,size,power] [--figure docs/figures/votes-cycles.svg]

`found` inspects the files of votes in ../shared beside the checkout, people's and LLM judges'. `twice` looks at MT-Bench's
people again in other ways: each turn alone, and one vote of each voter on a prompt, drawn twenty times. `size` draws votes
from the transitive models that were fitted to MT-Bench's people and to the crowd of llmfao, and counts how often the test
rejects them. `power` adds a circle to each prompt of such votes. The figures stand in docs/experiments.md under "Circles
in votes".
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from sppo.cli.tables import show_table, show_votes
from sppo.compare import people
from sppo.game.transitive_votes import Transitive, cycle_test, fit_transitive
from sppo.game.votes import Votes
from sppo.progress import Terminal
from sppo.rundir.vote_files import Ballot, read

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MT_BENCH = SHARED / "human_votes" / "mt_bench_human" / "human.jsonl"
CROWD = SHARED / "human_votes" / "llmfao" / "crowd-comparisons.csv"


def sources(folder: Path) -> Iterator[Path]:
    """The files of votes under names that say what they are; PandaLM's annotators get a row for each vote."""
    people_and_judges = {
        "mt-bench, people": MT_BENCH,
        "mt-bench, gpt-4": MT_BENCH.with_name("gpt4_pair.jsonl"),
        "llmfao, crowd": CROWD,
        "llmfao, gpt-4": CROWD.with_name("gpt4-crowd-comparisons.csv"),
        "llmfao, gpt-3.5": CROWD.with_name("gpt3-crowd-comparisons.csv"),
        "mt-bench, six judges": SHARED / "games" / "mt_bench_llm_judges" / "pairwise_en.csv",
    }
    for name, path in people_and_judges.items():
        link = folder / f"{name}{path.suffix}"
        link.symlink_to(path)
        yield link
    rows = json.loads((SHARED / "human_votes" / "pandalm" / "testset-v1.json").read_text())
    winners = {0: "tie", 1: "a", 2: "b"}
    lines = [
        {
            "prompt": row["instruction"] + row["input"],
            "voter": voter,
            **dict(zip(("model_a", "model_b"), row["cmp_key"].split("_"), strict=True)),
            "winner": winners[row[voter]],
        }
        for row in rows
        for voter in ("annotator1", "annotator2", "annotator3")
    ]
    path = folder / "pandalm, three people.json"
    path.write_text(json.dumps(lines))
    yield path


def found(figure: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = list(sources(Path(folder)))
        terminal = Terminal(quiet=True)
        sides = []
        for path in files:
            sides += people.inspect([path], terminal, by_voter="judges" in path.stem, sets=1000, seed=0)
    show_votes(sides, Terminal())
    if figure is not None:
        people.draw(sides, figure)


def twice() -> None:
    ballots = read(MT_BENCH).ballots
    rows = []

    def row(name: str, votes: list[Ballot], count: int = 1) -> list[float]:
        test = cycle_test(Votes.of(votes), sets=1000)
        of = test.cyclic
        rows.append([name, test.triples, of.found, of.expected, f"{of.low:.4f} to {of.high:.4f}", of.p])
        return rows[-1]

    row("all votes", ballots)
    for turn in ("1", "2"):
        row(f"turn {turn}", [ballot for ballot in ballots if ballot.prompt.endswith(f"turn {turn}")])
    row("experts", [ballot for ballot in ballots if ballot.voter.startswith("expert")])
    singles = []
    for seed in range(20):
        chosen = {}
        for index in np.random.default_rng(seed).permutation(len(ballots)):
            chosen.setdefault((ballots[index].prompt, ballots[index].voter), ballots[index])
        singles.append(row("one vote of a voter on a prompt", list(chosen.values())))
        rows.pop()
    middle = sorted(singles, key=lambda of: of[-1])[9]
    rows.append(["one vote of a voter on a prompt, median p of 20 draws", *middle[1:]])
    show_table(
        Terminal(),
        "MT-Bench's people again",
        ["", "triples", "cycles", "of transitive votes", "95%", "p"],
        rows,
    )
    print(f"p below 0.05 in {sum(of[-1] <= 0.05 for of in singles)} of 20 draws")


def size(sets: int) -> None:
    rows = []
    for name, path in (("mt-bench, people", MT_BENCH), ("llmfao, crowd", CROWD)):
        votes = Votes.of(read(path).ballots)
        drawn = fit_transitive(votes).simulate(votes, sets, np.random.default_rng(5))
        tests = [cycle_test(replace(votes, wins=wins.astype(int)), sets=200) for wins in drawn]
        measures = [[test.cyclic.p, test.pooled_cyclic.p, test.lost.p] for test in tests]
        rows.append([name, sets, *(np.array(measures) <= 0.05).sum(0)])
    show_table(
        Terminal(),
        "Transitive votes with p up to 0.05",
        ["", "of", "within prompts", "over prompts", "lost"],
        rows,
    )


def power(sets: int) -> None:
    votes = Votes.of(read(MT_BENCH).ballots)
    model = fit_transitive(votes)
    rows = []
    for strength in (0.0, 0.5, 1.0, 1.5, 2.0):
        generator = np.random.default_rng(6)
        tests = []
        for _ in range(sets):
            wins = circular(votes, model, strength, generator)
            tests.append(cycle_test(replace(votes, wins=wins), sets=200).cyclic)
        rejected = sum(test.p <= 0.05 for test in tests)
        rows.append([f"{strength:g}", np.mean([test.found for test in tests]), rejected, sets])
    show_table(
        Terminal(),
        "MT-Bench's votes with a term of each prompt's pairs that no strength explains (nats)",
        ["its standard deviation", "cycles", "p up to 0.05", "of"],
        rows,
    )


def circular(votes: Votes, model: Transitive, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Victories with the model's strengths and a term of its own for each pair on each prompt."""
    own = model.spread * generator.standard_normal((votes.prompts, len(votes.items)))
    of_first, of_second = (
        model.strength[item] + own[votes.prompt, item] for item in (votes.first, votes.second)
    )
    term = strength * generator.standard_normal(len(votes.prompt))
    return generator.binomial(votes.decided, expit(of_first - of_second + term))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="found,twice,size,power")
    parser.add_argument("--figure", type=Path)
    parser.add_argument(
        "--sets", type=int, default=100, help="sets of votes in `size` and for each line of `power`"
    )
    given = parser.parse_args()
    for part in given.only.split(","):
        match part:
            case "found":
                found(given.figure)
            case "twice":
                twice()
            case "size":
                size(given.sets)
            case "power":
                power(given.sets)


if __name__ == "__main__":
    main()
