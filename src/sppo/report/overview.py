"""The figures of the first screen of a run's page; the template puts them into words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sppo.report.run_figures import Iteration, RunFigures, is_number
from sppo.rundir import guard


@dataclass(frozen=True)
class Overview:
    """The figures of the first screen.

    Attributes:
        last: the last evaluated iteration.
        rate: the win rate of its policy against the base.
        by_oracle: the same by the oracle trained on, where a held-out oracle gives `rate`.
        gains: the change of the win rate in each iteration; it begins at one half.
        growth: the relative change of the mean response length since the base policy.
        trained: the number of responses that were trained on.
        sampled: the number of responses that were sampled for training.
    """

    last: Iteration | None = None
    rate: Mapping[str, float] | None = None
    by_oracle: Mapping[str, float] | None = None
    gains: Sequence[float] = ()
    growth: float | None = None
    trained: float = 0
    sampled: float = 0

    @property
    def standing(self) -> str:
        """A verdict on the last policy against the base, as far as the interval can tell."""
        assert self.rate is not None
        return guard.standing(self.rate)


def overview(run: RunFigures) -> Overview:
    """The first screen of a run, however far it has got."""
    if not run.evaluated:
        return Overview()
    last = run.evaluated[-1]
    rates = [
        iteration.measures["win_rate_vs_base"]["mean"]
        for iteration in run.evaluated
        if "win_rate_vs_base" in iteration.measures
    ]
    before, after = (policy.measures.get("response_tokens") for policy in (run.base, last))
    return Overview(
        last,
        last.measures.get("win_rate_vs_base"),
        last.measures.get("by_oracle", {}).get("win_rate_vs_base"),
        [after - before for before, after in pairwise([0.5, *rates])],
        after / before - 1 if before and after is not None else None,
        _total(run, "select", "trained_responses"),
        _total(run, "sample", "responses_drawn"),
    )


def _total(run: RunFigures, stage: str, name: str) -> float:
    counts = (iteration.records.get(stage, {}).get(name) for iteration in run.started)
    return sum(float(count) for count in counts if count is not None and is_number(count))
