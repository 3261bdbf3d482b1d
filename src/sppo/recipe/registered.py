"""A section of the recipe in which one key, such as `type`, names a registered class, which checks the section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from sppo.recipe import registry
from sppo.recipe.section import Section


@dataclass(frozen=True)
class Registered:
    """Marks a field of the recipe as a section that a registered class describes.

    Only the class that the recipe names is imported, so a broken plug-in disturbs only those who use it.

    Attributes:
        kind: the registry's kind of classes.
        default: the name to use if the recipe gives none; None if a name must be given.
        key: the key of the section that holds the name.
    """

    kind: registry.Kind
    default: str | None = None
    key: str = "type"

    def section(self, value: Any) -> type[Section] | None:
        """The class that checks a mapping, or None if the mapping names no known class."""
        name = value.get(self.key, self.default) if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in registry.names(self.kind):
            return None
        section: type[Section] = registry.load(self.kind, name)
        return section

    def validate(self, value: Any) -> Section:
        """Make the section that a mapping describes; a value that is a section already is returned unchanged.

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
        context = {"discriminator": self.key, "expected_tags": ", ".join(registry.names(self.kind))}
        if self.key not in value:
            raise PydanticCustomError(
                "union_tag_not_found", "{discriminator}: missing; one of {expected_tags}", context
            )
        raise PydanticKnownError("union_tag_invalid", {**context, "tag": str(value[self.key])})

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Tell pydantic to validate with :meth:`validate` and to serialise each section by its own class."""
        return core_schema.no_info_plain_validator_function(self.validate)
