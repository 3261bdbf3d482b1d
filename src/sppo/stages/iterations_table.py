"""The table of a run's iterations, as text of at most 80 columns."""

from collections.abc import Mapping
from typing import Any

_COLUMNS = (
    ("iter", 4),
    ("vs base", 11),
    ("vs previous", 11),
    ("by oracle", 11),
    ("tokens", 6),
    ("KL", 5),
    ("truncated", 9),
    ("seconds", 7),
)
_BY_ORACLE = 3


class IterationsTable:
    """The lines of the table.

    Args:
        by_oracle: whether there is a column of the win rates by the oracle that is learnt from.
    """

    def __init__(self, *, by_oracle: bool) -> None:
        self.by_oracle = by_oracle

    def head(self) -> str:
        """The names of the columns."""
        return self._line([name for name, _ in _COLUMNS])

    def base(self, record: Mapping[str, Any], seconds: float) -> str:
        """The row of the base policy, of which only the responses and the scores on watched tasks are measured."""
        figures = self._line(["base", "", "", "", *_of_responses(record, None), f"{seconds:.0f}"])
        return "\n".join([figures, *_scores(record)])

    def row(self, number: int, record: Mapping[str, Any], seconds: float) -> str:
        """The row of an iteration: a line of figures, and below it the intervals of the win rates, then the watched tasks.

        Args:
            number: the iteration.
            record: the measures of its policy, with what it was trained on.
            seconds: the time that its stages took.
        """
        rates = [
            record.get("win_rate_vs_base"),
            record.get("win_rate_vs_previous"),
            record.get("by_oracle", {}).get("win_rate_vs_base"),
        ]
        means = ["" if rate is None else f"{rate['mean']:.3f}" for rate in rates]
        figures = [str(number), *means, *_of_responses(record, record["kl_to_base"]), f"{seconds:.0f}"]
        trained = record["trained"]
        below = f"trained on {trained['trained_prompts']} of {trained['prompts']} prompts"
        intervals = ["" if rate is None else f"{rate['low']:.3f}-{rate['high']:.3f}" for rate in rates]
        return "\n".join([self._line(figures), self._line(["", *intervals, below]), *_scores(record)])

    def _line(self, cells: list[str]) -> str:
        padded = [cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=False)]
        if not self.by_oracle:
            del padded[_BY_ORACLE]
        return "  ".join(padded).rstrip()


def _of_responses(record: Mapping[str, Any], kl: float | None) -> list[str]:
    # the option z keeps a KL that rounds to zero from being shown as -0.00
    return [
        f"{record['response_tokens']:.1f}",
        "" if kl is None else f"{kl:z.2f}",
        f"{record['truncated_share']:.1%}",
    ]


def _scores(record: Mapping[str, Any]) -> list[str]:
    """A line for each watched task: the score with its interval, and its change from the base's."""
    lines = []
    for name, score in record.get("tasks", {}).items():
        known = f"{name}: {score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})"
        change = score.get("change")
        if change is not None:
            known += f", {change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] from the base's"
        lines.append(f"      {known}")
    return lines
