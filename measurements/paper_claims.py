"""Which of the SPPO paper's claims hold on tinyworld, with intervals.

    python measurements/paper_claims.py [--only a,b,...] [--home DIR] [--processes 2] [--minutes M] [--iterations 3]

Its figures stand in docs/experiments.md under "The paper's claims on tinyworld". Every cell (a setting and a seed) is a
run folder in DIR. Questions share cells, and a command that is started again continues them; `--minutes` begins no
further cell after that time. Questions whose cells are all finished are answered, and for the others the number of
missing cells is printed. The command also writes DIR/paper_claims.json and DIR/paper_claims.svg.

(a) does the win rate rise over three iterations of SPPO?
(b) does the winner's log-probability rise under SPPO and fall under DPO?
(c) SPPO against DPO and IPO after three iterations, each at its best setting of a grid, chosen on other held-out prompts
(d) K = 2 against K = 5
(e) eta from 1 to 1e4, and the log-partition
(f) best and worst against all K
(g) pairwise probabilities against sums of scores
(h) at which learning rate does each algorithm collapse?
(i) the effect of length control, length matching and shrunken near ties on win rate and length
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paper_claims_answers
from paper_claims_answers import Answer, Results, chosen
from paper_claims_cells import Setting, play_cells, wanted_cells
from paper_claims_figure import draw

from sppo.rundir.folder import write_json

TITLES = dict(line[1:].split(") ", 1) for line in (__doc__ or "").splitlines() if line.startswith("("))
ANSWERS: dict[str, Callable[[Results, Any], Answer]] = {
    letter: getattr(paper_claims_answers, f"answer_{letter}") for letter in TITLES
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", default=",".join(TITLES), help="the questions to answer, separated by commas"
    )
    parser.add_argument(
        "--iterations", type=int, default=3, help="number of iterations for (d), (f), (g) and (i)"
    )
    parser.add_argument("--home", type=Path, default=Path("runs/paper-claims"))
    parser.add_argument("--processes", type=int, default=2, help="number of processes, of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="minutes after which no further cell begins"
    )
    options = parser.parse_args()
    questions = options.only.split(",")
    if unknown := set(questions) - TITLES.keys():
        parser.error(f"--only {','.join(sorted(unknown))}: one or more of {','.join(TITLES)}")
    home, deadline = options.home.resolve(), time.time() + 60 * options.minutes
    (home / "runs").mkdir(parents=True, exist_ok=True)
    runs = Results(home, options.iterations)

    def play_wanted(best: dict[str, Setting] | None) -> None:
        cells = [cell for one in questions for cell in wanted_cells(one, best, options.iterations)]
        play_cells(home, cells, options.processes, deadline)

    best = chosen(runs)
    play_wanted(best)
    if best is None and (best := chosen(runs)) is not None:  # what depends on the grid is known now
        play_wanted(best)
    answers: dict[str, Any] = {}
    for question in questions:
        missing = sum(not cell.is_done(home) for cell in wanted_cells(question, best, options.iterations))
        print(f"\n({question}) {TITLES[question]}")
        if missing:
            more = " and those at the best of the grid" if best is None and question in "bch" else ""
            print(f"  not answered: {missing} of its cells{more} are missing")
            continue
        answers[question] = ANSWERS[question](runs, best)
    kept = home / "paper_claims.json"
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    write_json(kept, before | answers)
    draw(before | answers, home / "paper_claims.svg")
    show_seconds(home)


def show_seconds(home: Path) -> None:
    """Print the time that all cells together have taken."""
    path = home / "seconds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    wall, cpu = (sum(line[kind] for line in lines) for kind in ("wall", "cpu"))
    print(
        f"\n{len(lines)} cells in this folder took {wall / 60:.1f} minutes of a process, {cpu / 60:.1f} of a CPU"
    )


if __name__ == "__main__":
    sys.path.insert(
        0, str(Path(__file__).resolve().parent)
    )  # runs find the oracles by the name of their module
    main()
