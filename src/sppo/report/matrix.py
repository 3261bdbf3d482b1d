"""Every policy of a run against every other: what the evaluations have measured, and the rest where it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppo import randomness
from sppo.benchmarks.head_to_head import score as head_to_head
from sppo.compare import game as run_games
from sppo.report.run_figures import RunFigures, is_interval, is_number, names
from sppo.rundir.folder import RunError, write_json
from sppo.rundir.reader import read_mapping

FILE = "head-to-head.json"

Entry = Mapping[str, float]
"""`mean`, `low` and `high` of a win rate."""


@dataclass(frozen=True)
class HeadToHead:
    """A matrix of win rates; :class:`ValueError` where it is none.

    Attributes:
        names: of the policies.
        entries: [row][column]; None where two have not been compared.
        winner: weights of the von Neumann winner, where it was solved for.
    """

    names: Sequence[str]
    entries: Sequence[Sequence[Entry | None]]
    winner: Sequence[float] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        if [len(row) for row in self.entries] != [count] * count:
            raise ValueError(f"the win rates of {count} policies are no {count} x {count} matrix")
        if not all(entry is None or is_interval(entry) for row in self.entries for entry in row):
            raise ValueError("a win rate has no mean, low and high")
        if self.winner is not None and not (
            isinstance(self.winner, Sequence)
            and len(self.winner) == count
            and all(map(is_number, self.winner))
        ):
            raise ValueError(f"the von Neumann winner is no {count} numbers")

    @property
    def is_whole(self) -> bool:
        """Whether every pair was compared."""
        return all(
            entry is not None for i, row in enumerate(self.entries) for j, entry in enumerate(row) if i != j
        )


def of_run(run: RunFigures, notes: list[str]) -> HeadToHead | None:
    """What is known of a run's policies; None before two are evaluated.

    Args:
        run: its figures.
        notes: is told when what :func:`compare_all` kept cannot be read.
    """
    policies = [run.base, *run.evaluated]
    if len(policies) < 2:
        return None
    place = {one.number: index for index, one in enumerate(policies)}
    entries: list[list[Entry | None]] = [[None] * len(policies) for _ in policies]

    def put(row: int, column: int, found: Any) -> None:
        if is_interval(found) and row != column:
            entries[row][column] = found
            entries[column][row] = {
                "mean": 1 - found["mean"],
                "low": 1 - found["high"],
                "high": 1 - found["low"],
            }

    try:
        computed = _computed(run)
    except (TypeError, LookupError) as error:
        notes.append(f"It is left out, as of another version: {run.path / FILE}: {error!r}")
        computed = []
    for row, column, found in computed:
        put(row, column, found)
    for one in run.evaluated:
        put(place[one.number], 0, one.measured.get("win_rate_vs_base"))
        if one.number in run.previous:
            before = place[run.previous[one.number]]
            put(place[one.number], before, one.measured.get("win_rate_vs_previous"))
    return HeadToHead(names(run), entries)


def compare_all(run: RunFigures) -> None:
    """Ask the run's oracle, or its held-out judge, about all pairs of policies and keep the answer in the run folder.

    Raises:
        RunError: no policy has been evaluated.
    """
    from sppo import oracle

    if run.recipe is None:
        raise RunError(f"{run.path}: its recipe cannot be read, so its oracle cannot be asked")
    if _known(run) is not None:
        return
    judge = run.recipe.evaluation.oracle
    judging = run_games.oracle_of(run.path) if judge is None else oracle.load(judge.model_dump())
    found, payoff, _, _ = run_games.policies([run.path], judging.compare)
    of = run.recipe.evaluation
    seed = randomness.seed("bootstrap", run.recipe.seed)
    low, high = head_to_head.intervals(payoff, confidence=of.confidence, resamples=of.resamples, seed=seed)
    content = {
        "policies": found,
        "evaluations": _fingerprints(run),
        "mean": payoff.mean(axis=0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }
    write_json(run.path / FILE, content)


def _computed(run: RunFigures) -> list[tuple[int, int, Entry]]:
    found = _known(run)
    if found is None:
        return []
    count = len(found["policies"])
    return [
        (i, j, {name: found[name][i][j] for name in ("mean", "low", "high")})
        for i in range(count)
        for j in range(i)
    ]


def _known(run: RunFigures) -> dict[str, Any] | None:
    """What :func:`compare_all` kept, if it is of these very evaluations."""
    found = read_mapping(run.path / FILE)
    return found if found is not None and found.get("evaluations") == _fingerprints(run) else None


def _fingerprints(run: RunFigures) -> list[str]:
    return [str(one.measured.get("fingerprint")) for one in (run.base, *run.evaluated)]
