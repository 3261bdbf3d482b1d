"""Recipe keys that were renamed. Their old names are still read, so that older recipes keep working."""

from collections.abc import Mapping
from typing import Any

from sppo.recipe.section import RecipeError

RENAMED = {
    "evaluation.judge": "evaluation.oracle",
    "guard.max_cut_rise": "guard.max_truncated_rise",
    "training.cut_responses": "training.truncated_responses",
}
"""The earlier dotted keys, each with its present name."""


def current_key(dotted: str) -> str:
    """Translate a dotted key to its present name; keys below a renamed section are translated with it."""
    for old, new in RENAMED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            return new + dotted[len(old) :]
    return dotted


def with_current_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Replace every earlier key of a recipe's mapping by its present name.

    Raises:
        RecipeError: the mapping holds a key under both names.
    """
    renamed = dict(mapping)
    for old, new in RENAMED.items():
        (section, old_key), new_key = old.split("."), new.split(".")[1]
        values = renamed.get(section)
        if isinstance(values, Mapping) and old_key in values:
            if new_key in values:
                raise RecipeError(f"{old} is the earlier name of {new}, and both are given; remove {old}")
            renamed[section] = {new_key if key == old_key else key: value for key, value in values.items()}
    return renamed


def with_comparisons(oracle: Mapping[str, Any]) -> dict[str, Any]:
    """Replace an oracle's `opponents: m`, wherever the oracle stands, by `comparisons: {type: random, opponents: m}`.

    Raises:
        ValueError: both are given.
    """
    renamed = dict(oracle)
    opponents = renamed.pop("opponents", None)
    if opponents is not None:
        if "comparisons" in renamed:
            raise ValueError(
                "opponents: the earlier name of comparisons: {type: random, opponents: ...}, and both are given; remove"
                " opponents"
            )
        renamed["comparisons"] = {"type": "random", "opponents": opponents}
    return renamed
