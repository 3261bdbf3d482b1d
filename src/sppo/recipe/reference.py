"""Every key of a recipe with its default and its description: as a JSON Schema, or as YAML with comments."""

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sppo.recipe import registry
from sppo.recipe.registered import Registered
from sppo.recipe.section import Section
from sppo.recipe.yaml_values import write_value


def json_schema(recipe: type[Section]) -> dict[str, Any]:
    """A JSON Schema of recipes, by which editors complete and check their keys."""
    schema = recipe.model_json_schema(schema_generator=_generator())
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of sppo"}
    sections = {section.__name__: section for section in _subclasses(Section)}
    for name, definition in {**schema["$defs"], recipe.__name__: schema}.items():
        for key, text in _descriptions(sections[name]).items():
            definition["properties"][key].setdefault("description", text)
    return schema


def _generator() -> Any:
    """A schema generator that lists the registered classes where a recipe names one of them."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        entered: typing.ClassVar[list[str]] = []

        def function_plain_schema(self, schema: Any) -> dict[str, Any]:
            registered = schema["function"]["function"].__self__
            if registered.kind in self.entered:  # an oracle within an oracle
                return {"type": "object"}
            self.entered.append(registered.kind)
            sections = [registry.load(registered.kind, name) for name in registry.names(registered.kind)]
            schemas = [self.generate_inner(section.__pydantic_core_schema__) for section in sections]
            self.entered.remove(registered.kind)
            return {"anyOf": schemas}

    return Generator


def defaults(recipe: type[Section]) -> str:
    """Every key of a recipe with its default as YAML; a comment describes it."""
    return "\n".join(_lines(recipe, "")) + "\n"


def markdown(recipe: type[Section]) -> str:
    """Every key of a recipe as tables: those of all recipes, then those of each algorithm, oracle and sampler."""
    tables = ["\n".join([_TABLE, *_rows(recipe, "")])]
    for kind, section, key in _KINDS:
        shared: set[str] = set()
        for name in registry.BUILT_IN[kind]:
            registered = registry.load(kind, name)
            rows = [row for row in _rows(registered, f"{section}.") if row not in shared]
            if name == registered.model_fields[key].default and _is_default(recipe, section, registered):
                shared.update(rows)
                continue
            title = f"With `{section}: {{{key}: {name}}}`"
            rows = [row for row in rows if not row.startswith(f"| `{section}.{key}`")]
            tables.append(
                "\n".join([f"{title}\n", _TABLE, *rows]) if rows else f"{title} there are no further keys."
            )
    return "\n\n".join(tables) + "\n"


_TABLE = "| key | default | |\n|---|---|---|"
_KINDS: tuple[tuple[registry.Kind, str, str], ...] = (
    ("samplers", "sampling", "engine"),
    ("algorithms", "algorithm", "type"),
    ("oracles", "oracle", "type"),
)
"""The kinds of registered sections, with the section and the key that name them in a recipe."""


def _is_default(recipe: type[Section], section: str, registered: type[BaseModel]) -> bool:
    return _inner_section(recipe.model_fields[section]) is registered


def _rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    descriptions = _descriptions(section)
    for key, field in section.model_fields.items():
        inner = _inner_section(field)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{key}.")
            continue
        value = field.get_default(call_default_factory=True)
        shown = (
            "required" if field.is_required() else f"`{write_value({key: value}).strip().partition(': ')[2]}`"
        )
        text = descriptions.get(key, "").replace("|", "\\|")
        yield f"| `{prefix}{key}` | {shown} | {text} |"


def _lines(section: type[BaseModel], indent: str) -> Iterator[str]:
    descriptions = _descriptions(section)
    for key, field in section.model_fields.items():
        text = descriptions.get(key, "")
        inner = _inner_section(field)
        if inner is not None:
            yield from (f"{indent}# {line}" for line in textwrap.wrap(text, 100))
            yield f"{indent}{key}:"
            yield from _lines(inner, indent + "  ")
            continue
        required = field.is_required()
        value = "" if required else write_value({key: field.get_default(call_default_factory=True)}).strip()
        line = f"{indent}{key}: # required" if required else f"{indent}{value}"
        comment = f"{'.' if required else ' #'} {text}" if text else ""
        if len(line + comment) <= 120:
            yield line + comment
        else:
            yield from (f"{indent}# {part}" for part in textwrap.wrap(text, 110 - len(indent)))
            yield line


def _inner_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that stands under a key by default, if one does."""
    marks = [mark for mark in field.metadata if isinstance(mark, Registered)]
    if marks:
        default = marks[0].default
        section: type[BaseModel] | None = None if default is None else registry.load(marks[0].kind, default)
        return section
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _descriptions(section: type[BaseModel]) -> dict[str, str]:
    """The descriptions of a section's fields, which stand as docstrings below them."""
    found: dict[str, str] = {}
    for ancestor in reversed(section.__mro__):
        if not (issubclass(ancestor, BaseModel) and ancestor.__module__.split(".")[0] != "pydantic"):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        body = typing.cast(ast.ClassDef, definition).body
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = getattr(getattr(below, "value", None), "value", None)
                if isinstance(below, ast.Expr) and isinstance(text, str):
                    found[field.target.id] = " ".join(text.split())
    named = {key: field.description for key, field in section.model_fields.items() if field.description}
    return {key: text for key, text in {**found, **named}.items() if key in section.model_fields}


def _subclasses(section: type[Section]) -> Iterator[type[Section]]:
    for subclass in section.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
