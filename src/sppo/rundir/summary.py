"""The figures of a run as they are read back: summary.json, seconds per stage, and what the oracle counted."""

import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sppo.recipe import Section
from sppo.rundir.folder import RunFolder

STAGES = ("sample", "annotate", "select", "train", "evaluate")


def seconds(run: RunFolder, iteration: int) -> dict[str, float]:
    """The seconds spent in each stage of an iteration, resumed work included; work that a kill interrupted is not counted."""
    spent = dict.fromkeys(STAGES, 0.0)
    for record in run.read_metrics(iteration):
        if record.get("stage") in spent and "seconds" in record:
            spent[record["stage"]] += record["seconds"]
    return {name: round(value, 2) for name, value in spent.items()}


def oracle_counts(run: RunFolder, iteration: int) -> dict[str, int]:
    """What the oracle counted while it annotated an iteration, such as truncated texts."""
    of_shards = {
        record["shard"]: record["oracle"]
        for record in run.read_metrics(iteration)
        if record.get("stage") == "annotate" and "oracle" in record
    }
    total: Counter[str] = Counter()
    for counts in of_shards.values():
        total.update(counts)
    return dict(total)


def versions() -> str:
    """The versions of the packages that a recipe is run with, as a comment line of YAML."""
    names = ("sppo", "torch", "transformers", "accelerate", "numpy", "pyarrow")
    installed = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"# {installed}, Python {platform.python_version()}\n"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
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
