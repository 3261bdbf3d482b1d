"""Every policy of a run against every other: what the evaluations measured, and the other pairs on request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppo import randomness
from sppo.benchmarks.head_to_head import score
from sppo.compare import game as run_games
from sppo.report.run_figures import RunFigures, is_interval, is_number
from sppo.rundir.folder import RunError, write_json
from sppo.rundir.reader import RunReader, with_run_policies
from sppo.rundir.records import read_record

FILE = "head-to-head.json"
ENDS = ("mean", "low", "high")

WinRate = Mapping[str, float]
"""The `mean`, `low` and `high` of a win rate."""


@dataclass(frozen=True)
class HeadToHead:
    """A matrix of win rates.

    Attributes:
        names: the names of the policies.
        entries: [row][column] the win rate of the row against the column; None where they were not compared.
        winner: the weights of the von Neumann winner, where it was computed.

    Raises:
        ValueError: the entries are no square matrix of win rates, or the weights are not one number for each policy.
    """

    names: Sequence[str]
    entries: Sequence[Sequence[WinRate | None]]
    winner: Sequence[float] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        if [len(row) for row in self.entries] != [count] * count:
            raise ValueError(f"the win rates of {count} policies must be a {count} x {count} matrix")
        if not all(entry is None or is_interval(entry) for row in self.entries for entry in row):
            raise ValueError("a win rate lacks its mean, low or high")
        if self.winner is not None and not (len(self.winner) == count and all(map(is_number, self.winner))):
            raise ValueError(f"the von Neumann winner must have {count} weights")

    @classmethod
    def from_matrices(cls, names: Sequence[str], matrices: Sequence[Any], winner: Any = None) -> "HeadToHead":
        """Makes the matrix from those of the means and of the ends of their intervals; NaN: not compared."""

        def entry(i: int, j: int) -> WinRate | None:
            values = [matrix[i][j] for matrix in matrices]
            return None if i == j or values[0] != values[0] else dict(zip(ENDS, values, strict=True))

        indices = range(len(names))
        return cls(names, [[entry(i, j) for j in indices] for i in indices], winner)

    @property
    def is_whole(self) -> bool:
        """Whether every pair was compared."""
        return all(
            i == j or entry is not None for i, row in enumerate(self.entries) for j, entry in enumerate(row)
        )


def of_run(run: RunFigures, notes: list[str]) -> HeadToHead | None:
    """The recorded win rates between a run's policies; None before two are evaluated.

    Args:
        run: the run's figures.
        notes: receives a note when the file that :func:`compare_all` wrote cannot be read.
    """
    policies = run.policies
    if len(policies) < 2:
        return None
    entries: list[list[WinRate | None]] = [[None] * len(policies) for _ in policies]

    def put(row: int, column: int, rate: Any) -> None:
        if is_interval(rate) and row != column:
            entries[row][column] = rate
            entries[column][row] = {
                "mean": 1 - rate["mean"],
                "low": 1 - rate["high"],
                "high": 1 - rate["low"],
            }

    try:
        for row, column, rate in _all_pairs(run):
            put(row, column, rate)
    except (TypeError, LookupError) as error:
        notes.append(f"This file is left out, because another version wrote it: {run.path / FILE}: {error!r}")
    place = {policy.number: index for index, policy in enumerate(policies)}
    for policy in run.evaluated:
        put(place[policy.number], 0, policy.measures.get("win_rate_vs_base"))
        if policy.number in run.previous:
            previous = place[run.previous[policy.number]]
            put(place[policy.number], previous, policy.measures.get("win_rate_vs_previous"))
    return HeadToHead([policy.label for policy in policies], entries)


def compare_all(run: RunFigures) -> None:
    """Asks the held-out oracle, or else the run's oracle, about all pairs of policies, and keeps the win rates.

    Raises:
        RunError: no policy has been evaluated, or the recipe cannot be read.
    """
    from sppo import oracle

    if run.recipe is None:
        raise RunError(f"{run.path}: its recipe cannot be read, so its oracle cannot be asked")
    if _kept(run) is not None:
        return
    evaluation = run.recipe.evaluation
    held_out = evaluation.oracle
    if held_out is None:
        judging = run_games.oracle_of(run.path)
    else:
        judging = oracle.load(with_run_policies(RunReader(run.path), held_out).model_dump())
    names, payoff, _, _ = run_games.policies([run.path], judging.compare)
    low, high = score.intervals(
        payoff,
        confidence=evaluation.confidence,
        resamples=evaluation.resamples,
        seed=randomness.seed("bootstrap", run.recipe.seed),
    )
    content = {"policies": names, "evaluations": _fingerprints(run), "mean": payoff.mean(axis=0).tolist()}
    write_json(run.path / FILE, {**content, "low": low.tolist(), "high": high.tolist()})


def _all_pairs(run: RunFigures) -> list[tuple[int, int, WinRate]]:
    kept = _kept(run) or {"policies": []}
    pairs = [(i, j) for i in range(len(kept["policies"])) for j in range(i)]
    return [(i, j, {end: kept[end][i][j] for end in ENDS}) for i, j in pairs]


def _kept(run: RunFigures) -> dict[str, Any] | None:
    """The comparisons that :func:`compare_all` kept; None if they belong to other evaluations."""
    kept = read_record(run.path / FILE)
    return kept if kept is not None and kept.get("evaluations") == _fingerprints(run) else None


def _fingerprints(run: RunFigures) -> list[str]:
    return [str(policy.measures.get("fingerprint")) for policy in run.policies]
