"""YAML in which 1e3 is a number and a key given twice is an error; no tags, and no more than a recipe needs."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from sppo.progress import shortened
from sppo.recipe.section import RecipeError


def read_value(text: str, *, name: str) -> Any:
    """Read a YAML value.

    Raises:
        RecipeError: the text is not valid YAML; `name` is the place that the message names.
    """
    if len(text) > _LONGEST_TEXT:
        raise RecipeError(f"{name}: it has {len(text):,} characters; at most {_LONGEST_TEXT:,} are read")
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except Exception as error:  # values like 2024-13-01 raise errors of Python's own, of several classes
        raise RecipeError(f"{name}: not valid YAML: {shortened(str(error))}") from error


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


_LONGEST_TEXT, _MOST_VALUES, _MOST_LEVELS, _LARGEST = 1 << 18, 10_000, 50, 1 << 63


class _RecipeLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, reads 1e3 as a number, and is bounded in time and memory.

    An alias counts as all the values that it stands for, so that a few lines cannot stand for a billion values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._levels = 0
        self._sizes: dict[int, int] = {}  # by the id of a composed node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"the tag {event.tag!r} (line {line}): recipes have no tags; remove it")
        if isinstance(event, yaml.ScalarEvent) and re.search("[\0\ud800-\udfff]", event.value):
            raise yaml.YAMLError(f"line {line}: a text has a character that no file can hold")
        before, self._levels = self._values, self._levels + 1
        self._values += 1
        self._limit(line)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise yaml.YAMLError(f"the alias *{event.anchor} (line {line}) stands inside of itself")
            self._values += self._sizes[id(node)]
            self._limit(line)
        else:
            self._sizes[id(node)] = self._values - before
        self._levels -= 1
        return node

    def fetch_flow_collection_start(self, token: Any) -> None:
        # PyYAML looks a thousand characters ahead, before it composes the first of these nodes.
        self._limit(self.line + 1)
        super().fetch_flow_collection_start(token)

    def _limit(self, line: int) -> None:
        levels = max(self._levels, self.flow_level)
        if self._values > _MOST_VALUES or levels > _MOST_LEVELS:
            raise yaml.YAMLError(
                f"line {line}: a recipe has at most {_MOST_VALUES:,} values in at most {_MOST_LEVELS} levels"
            )

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
    """A YAML dumper whose output :class:`_RecipeLoader` reads back to the same values."""


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float | int:
    value: float = loader.construct_yaml_float(node)
    # somebody who writes 1e4 prompts means a whole number
    return int(value) if "." not in node.value and value.is_integer() and abs(value) < _LARGEST else value


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if abs(value) >= _LARGEST:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {node.value[:20]}... is too large a number")
    return value


# YAML 1.1 reads 1e3 and 5e-7 as strings, because it requires a dot and a signed exponent in a number.
for _yaml in (_RecipeLoader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )
_RecipeLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
