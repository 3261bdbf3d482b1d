"""Published results, so that a reproduction is read off at a glance; each row says where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        model: as its source calls it.
        iteration: of self-play; 0: the base policy, None: another model.
        best_of: responses per prompt of which the best was taken.
        values: by the name of the measure.
        source: where it was published.
    """

    model: str
    iteration: int | None
    best_of: int
    values: Mapping[str, float]
    source: str

    @property
    def label(self) -> str:
        """For a table."""
        iteration = f" iteration {self.iteration}" if self.iteration else ""
        return f"{self.model}{iteration}" + (f", best of {self.best_of}" if self.best_of > 1 else "")

    def get(self, name: str, digits: int = 2) -> str | None:
        """A value with so many digits behind the point, if it was published."""
        return f"{self.values[name]:.{digits}f}" if name in self.values else None


@cache
def rows(benchmark: str) -> tuple[Published, ...]:
    """The published rows of `alpaca-eval`, `arena-hard`, `mt-bench` or `open-llm`, in their sources' order."""
    of: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))[benchmark]
    return tuple(
        Published(
            row["model"],
            row["iteration"],
            row["best_of"],
            {
                name: float(value)
                for name, value in row.items()
                if name not in ("model", "iteration", "best_of", "source")
            },
            row["source"],
        )
        for row in of
    )
