"""What people said in the arena of a run, beside what its oracle says."""

from pathlib import Path

from sppo.arena import votes as vote_files
from sppo.arena.votes import VotesError
from sppo.benchmarks.head_to_head.play import of_votes
from sppo.progress import printable
from sppo.report.charts import Table
from sppo.report.matrix import HeadToHead
from sppo.report.sections import Section
from sppo.rundir.folder import RunError


def section(run: Path, prefix: str, notes: list[str]) -> Section | None:
    """The votes of `sppo arena`; None where there are none."""
    path = run / "arena" / "votes.parquet"
    if not path.is_file():
        return None
    try:
        votes, found = vote_files.read(path), of_votes([path])
    except (VotesError, RunError) as error:
        notes.append(printable(str(error)))
        return None
    entries = [
        [
            None
            if i == j or found.payoff[i, j] != found.payoff[i, j]
            else {
                "mean": float(found.payoff[i, j]),
                "low": float(found.low[i, j]),
                "high": float(found.high[i, j]),
            }
            for j in range(len(found.names))
        ]
        for i in range(len(found.names))
    ]
    agreed = vote_files.agreement(votes)
    rows = [
        ["votes", str(len(votes))],
        ["of them ties", str(sum(vote["label"] == "tie" for vote in votes))],
        ["people", str(len({vote["voter"] for vote in votes}))],
        [
            "agreement with the oracle",
            "not asked"
            if agreed is None
            else f"{agreed['mean']:.1%} [{agreed['low']:.1%}, {agreed['high']:.1%}] of {agreed['votes']} votes",
        ],
    ]
    names = [printable(name) for name in found.names]
    return Section(
        f"{prefix}-people",
        "People",
        "What people preferred in the arena, blind; agreement leaves out ties on either side.",
        tables=[("Votes", Table(["", ""], rows))],
        matrices=[(f"Win rates by people, {found.prompts} prompts", HeadToHead(names, entries))],
    )
