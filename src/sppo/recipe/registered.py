"""A part of the recipe whose `type` names a registered class: that class checks the part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from sppo.recipe import registry
from sppo.recipe.section import Section


@dataclass(frozen=True)
class Registered:
    """Marks a field of the recipe as one of the registered sections of a kind.

    Only the class that is named is imported, so that a broken plug-in disturbs nobody who does not use it.

    Attributes:
        kind: of the registry.
        default: the name where the recipe gives none; None: a name must be given.
    """

    kind: registry.Kind
    default: str | None = None

    def section(self, value: Any) -> type[Section] | None:
        """The class that checks a mapping; None where it names none that is known."""
        name = value.get("type", self.default) if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in registry.names(self.kind):
            return None
        found: type[Section] = registry.load(self.kind, name)
        return found

    def validate(self, value: Any) -> Section:
        """The section that a mapping describes; a section that has been made before is taken as it is.

        Raises:
            ValueError: pydantic's errors, which name every wrong field of the section.
        """
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_attributes_type")
        section = self.section(value)
        if section is not None:
            return section.model_validate(dict(value))
        context = {"discriminator": "'type'", "expected_tags": ", ".join(registry.names(self.kind))}
        if "type" not in value:
            raise PydanticCustomError("union_tag_not_found", "type: missing; one of {expected_tags}", context)
        raise PydanticKnownError("union_tag_invalid", {**context, "tag": str(value["type"])})

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Pydantic's hook: validation is this object's, serialisation that of whichever section it is."""
        return core_schema.no_info_plain_validator_function(self.validate)
