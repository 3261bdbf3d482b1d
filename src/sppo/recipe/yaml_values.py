"""YAML in which 1e3 is a number and a key given twice is an error."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from sppo.recipe.section import RecipeError


def read_value(text: str, *, name: str) -> Any:
    """Read a YAML value.

    Raises:
        RecipeError: the text is not valid YAML; `name` is the place that the message names.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # dates like 2024-13-01, numbers of 5,000 digits and deep nesting raise Python's own errors
        raise RecipeError(f"{name}: not valid YAML: {error}") from error


def read_overrides(items: Iterable[str] | None) -> dict[str, Any]:
    """The values of ``--set KEY=VALUE`` on a command line, by their dotted keys.

    Raises:
        RecipeError: an item is not written as KEY=VALUE, or its value is not valid YAML.
    """
    values: dict[str, Any] = {}
    for item in items or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"--set {item}: write it as KEY=VALUE, for example --set training.learning_rate=1e-4"
            )
        values[key] = read_value(text, name=f"--set {item}")
    return values


def write_value(value: Any) -> str:
    """Write YAML that :func:`read_value` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice and reads 1e3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} (line {line}) is not a string; put it in quotes")
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} is given twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper whose output :class:`_UniqueKeyLoader` reads back to the same values."""


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float | int:
    value: float = loader.construct_yaml_float(node)
    # somebody who writes 1e4 prompts means a whole number
    return int(value) if "." not in node.value and value.is_integer() else value


# YAML 1.1 reads 1e3 and 5e-7 as strings, because it requires a dot and a signed exponent in a number.
for _yaml in (_UniqueKeyLoader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )
_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
