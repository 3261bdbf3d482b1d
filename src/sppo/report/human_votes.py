"""The section about the votes of people in the arena of a run, and whether the run's oracle agrees with them."""

from pathlib import Path

from sppo.arena.votes import agreement
from sppo.benchmarks.head_to_head.play import of_votes
from sppo.progress import printable
from sppo.report.charts import Table
from sppo.report.head_to_head import HeadToHead
from sppo.report.sections import Section, counted
from sppo.rundir.folder import RunError
from sppo.rundir.votes import VotesError, read
from sppo.rundir.votes import counted as counted_votes


def section(run: Path, prefix: str, notes: list[str]) -> Section | None:
    """The votes that `sppo arena` has collected; None where there are none."""
    path = run / "arena" / "votes.parquet"
    if not path.is_file():
        return None
    try:
        votes, games = counted_votes(read(path)), of_votes([path])
    except (VotesError, RunError) as error:
        notes.append(printable(str(error)))
        return None
    agreed = agreement(votes)
    in_words = "the oracle was not asked"
    if agreed is not None:
        ends = f"[{agreed['low']:.1%}, {agreed['high']:.1%}]"
        in_words = f"{agreed['mean']:.1%} {ends} of {counted(int(agreed['votes']), 'vote')}"
    rows = [
        ["votes", str(len(votes))],
        ["ties among them", str(sum(vote["label"] == "tie" for vote in votes))],
        ["people", str(len({vote["voter"] for vote in votes}))],
        ["agreement with the oracle", in_words],
    ]
    names = [printable(name) for name in games.names]
    matrix = HeadToHead.from_matrices(names, [games.payoff.tolist(), games.low.tolist(), games.high.tolist()])
    return Section(
        f"{prefix}-people",
        "People",
        "What people preferred in the arena, without knowing the policies. Agreement leaves out ties on either side.",
        tables=[("Votes", Table(["", ""], rows))],
        matrices=[(f"Win rates by people's votes on {counted(games.prompts, 'prompt')}", matrix)],
    )
