"""Turns the validation errors of a recipe into sentences that name the field, its value and the way out."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError

from sppo.recipe.registered import Registered
from sppo.recipe.registry import nearest, unknown
from sppo.recipe.trl_names import answer

_MAPPING = "a mapping of keys to values"
_EXPECTED = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "list_type": "a list",
    "string_type": "a string, in quotes if it looks like something else",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


def describe(error: ValidationError, root: Any, value: Any) -> Iterator[str]:
    """Yield a line for each wrong field, with its dotted name, what is wrong with it, its value and the way out.

    Args:
        error: the errors that pydantic found.
        root: the annotation by which the mapping was validated.
        value: the validated mapping, whose `type` keys tell which registered sections were meant.
    """
    mistakes = [(item, _place(item["loc"], root, value)) for item in error.errors(include_url=False)]
    # Pydantic reports an error for every member of a union. If the value matched one member in part, that member was
    # meant, and the errors of the others are left out; otherwise the line names all members as alternatives.
    entered = {
        place.path[: place.union] for _, place in mistakes if place.union not in (None, len(place.path))
    }
    top = _resolved(root, value)
    lines: dict[tuple[str, ...] | int, list[str]] = {}
    for number, (item, place) in enumerate(mistakes):
        at_union = place.union == len(place.path)
        if not (at_union and place.path in entered):
            lines.setdefault(place.path if at_union else number, []).append(_line(item, place, top, value))
    for first, *others in lines.values():
        name, shown = first.partition(": ")[0], first[first.rfind(" (got ") :] if others else ""
        alternatives = [other.removeprefix(f"{name}: must be ") for other in others]
        yield " or ".join([first.removesuffix(shown), *alternatives])


def _line(item: Any, place: "_Place", root: Any, value: Any) -> str:
    name, context = ".".join(place.path), item.get("ctx", {})
    dotted = f"{name}." if name else ""
    got = item["input"]
    hidden = isinstance(got, dict | BaseModel) or item["type"] == "hidden"  # the value may be a secret
    shown = "" if hidden else f" (got {_shorten(got)})"
    match item["type"]:
        case "extra_forbidden":
            return f"{name}: unknown key; {_right_key(place, root, value)}"
        case "missing":
            return f"{name}: missing; it has no default"
        case "union_tag_not_found":
            return f"{dotted}{context['discriminator']}: missing; one of {context['expected_tags']}"
        case "union_tag_invalid":
            return f"{dotted}{context['discriminator']}: {unknown(context['tag'], context['expected_tags'].split(', '))}"
        case "literal_error" if isinstance(got, str) and (near := nearest(got, _literals(place.annotation))):
            return f"{name}: must be {context['expected']}{shown}; did you mean {near!r}?"
        case kind if kind in _EXPECTED:
            return f"{name or 'recipe'}: must be {_EXPECTED[kind]}{shown}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if item["type"] == "value_error" and message.partition(":")[0].split(".")[0] in _fields(place.annotation):
        return f"{dotted}{message}"  # a check of several fields names the field to change itself
    return f"{name or 'recipe'}: {message}{shown}"


class _Place(typing.NamedTuple):
    """The place of an error in a recipe.

    Attributes:
        path: the keys and indices that lead to it.
        holder: the annotation of the section that the last key belongs to.
        annotation: the annotation of the value at this place.
        union: the length of the path to the innermost union of different types above it; None if there is no union.
    """

    path: tuple[str, ...]
    holder: Any
    annotation: Any
    union: int | None


def _place(location: tuple[int | str, ...], root: Any, value: Any) -> _Place:
    path: list[str] = []
    holder, annotation, union = None, _resolved(root, value), None
    for part in location:
        members = _members(annotation)
        if len(members) > 1:  # this part of pydantic's location names the member that it tried
            union = len(path)
            annotation = next((member for member in members if part in _labels(member)), None)
            continue
        path.append(str(part))
        holder = members[0]
        if typing.get_origin(holder) in (list, dict):
            annotation = typing.get_args(holder)[-1]
        else:
            annotation = _fields(holder).get(str(part))
        value = _inside(value, part)
        annotation = _resolved(annotation, value)
    return _Place(tuple(path), holder, annotation, union)


def _inside(value: Any, part: int | str) -> Any:
    """The value under a key or an index; None if it is missing."""
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) else None


def _resolved(annotation: Any, value: Any) -> Any:
    """The annotation; for a registered section, the class that the value's `type` names."""
    members = _members(annotation)
    marks = [mark for mark in getattr(members[0], "__metadata__", ()) if isinstance(mark, Registered)]
    return (marks[0].section(value) or annotation) if len(members) == 1 and marks else annotation


def _members(annotation: Any) -> list[Any]:
    """The members of a union, without None; of any other annotation, the annotation itself."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        registered = any(isinstance(mark, Registered) for mark in annotation.__metadata__)
        return [annotation] if registered else _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [
            member
            for part in typing.get_args(annotation)
            for member in _members(part)
            if part is not type(None)
        ]
    return [annotation]


def _labels(member: Any) -> set[str]:
    """The names that pydantic may give a member of a union in the location of an error."""
    labels = {str(getattr(member, "__name__", ""))}
    if typing.get_origin(member) is Literal:
        labels.add(f"literal[{','.join(map(repr, typing.get_args(member)))}]")
    elif typing.get_origin(member) is list:
        labels.add(f"list[{typing.get_args(member)[0].__name__}]")
    return labels


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(annotation: Any) -> dict[str, Any]:
    sections = [member for member in _members(annotation) if _is_section(member)]
    return {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for section in sections
        for name, field in section.model_fields.items()
    }


def _literals(annotation: Any) -> list[str]:
    literals = [member for member in _members(annotation) if typing.get_origin(member) is Literal]
    return [value for literal in literals for value in typing.get_args(literal)]


def _right_key(place: _Place, root: Any, value: Any) -> str:
    key, known = place.path[-1], _fields(place.holder)
    sections = {
        name: _resolved(annotation, _inside(value, name) or {}) for name, annotation in _fields(root).items()
    }
    elsewhere = [f"{name}.{key}" for name, section in sections.items() if key in _fields(section)]
    if place.holder is root and elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    near = nearest(key, known)
    foreign = answer(key, lambda dotted: _has_key(root, value, dotted))
    if foreign is not None:
        return foreign
    return f"did you mean `{near}`?" if near else f"known here: {', '.join(sorted(known))}"


def _has_key(root: Any, value: Any, dotted: str) -> bool:
    """Whether a recipe can hold a dotted key; the keys of a registered section depend on its type."""
    annotation = _resolved(root, value)
    for key in dotted.split("."):
        annotation = _fields(annotation).get(key)
        if annotation is None:
            return False
        value = _inside(value, key)
        annotation = _resolved(annotation, value or {})
    return True


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
