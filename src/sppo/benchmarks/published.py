"""Published results, which stand below one's own in the tables; each row names its source."""

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
        model: the model's name in the source.
        iteration: the iteration of self-play; 0: the base policy, None: another model.
        best_of: the number of responses to each prompt, the best of which was judged.
        values: the figures by the names of their measures.
        source: where the row was published.
    """

    model: str
    iteration: int | None
    best_of: int
    values: Mapping[str, float]
    source: str

    @property
    def label(self) -> str:
        """The row's name in a table."""
        iteration = f" iteration {self.iteration}" if self.iteration else ""
        return f"{self.model}{iteration}" + (f", best of {self.best_of}" if self.best_of > 1 else "")

    def get(self, name: str, digits: int = 2) -> str | None:
        """A value with this many decimals; None where it was not published."""
        return f"{self.values[name]:.{digits}f}" if name in self.values else None


@cache
def rows(benchmark: str) -> tuple[Published, ...]:
    """The published rows of a benchmark such as `alpaca-eval`, in the order of their sources."""
    content: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))[benchmark]
    named = ("model", "iteration", "best_of", "source")
    return tuple(
        Published(
            row["model"],
            row["iteration"],
            row["best_of"],
            {name: float(value) for name, value in row.items() if name not in named},
            row["source"],
        )
        for row in content
    )
