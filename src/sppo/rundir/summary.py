"""Figures of a run that are read back from its metrics, and settings in words."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sppo.recipe import Section
from sppo.rundir.folder import RunFolder

STAGES = ("sample", "annotate", "select", "train", "evaluate")


def seconds(run: RunFolder, iteration: int) -> dict[str, float]:
    """The seconds spent in each stage of an iteration: resumed work counts, work that a kill interrupted does not."""
    spent = dict.fromkeys(STAGES, 0.0)
    for record in run.read_metrics(iteration):
        if record.get("stage") in spent and "seconds" in record:
            spent[record["stage"]] += record["seconds"]
    return {name: round(value, 2) for name, value in spent.items()}


def oracle_counts(run: RunFolder, iteration: int) -> dict[str, int]:
    """The oracle's counts while it annotated an iteration, such as truncated texts."""
    by_shard = {
        record["shard"]: record["oracle"]
        for record in run.read_metrics(iteration)
        if record.get("stage") == "annotate" and "oracle" in record
    }
    total: Counter[str] = Counter()
    for counts in by_shard.values():
        total.update(counts)
    return dict(total)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def settings_text(section: Section) -> str:
    """A section of the recipe that has a type, in one line."""
    values = section.model_dump(exclude={"type"}, exclude_none=True)
    shown = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    ]
    kind: str = section.model_dump()["type"]
    return f"{kind} ({', '.join(shown)})" if shown else kind
