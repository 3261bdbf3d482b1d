"""Groups of options: what every command prints, and how a command's group becomes options of its own."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sppo.progress import Terminal


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The options of every command: results go to the standard output, progress and warnings to the standard error."""

    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, only results, warnings and errors.")
    ] = False

    @property
    def terminal(self) -> "Terminal":
        """The terminal for progress and results."""
        from sppo.progress import Terminal

        return Terminal(quiet=self.quiet, as_json=self.as_json)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of option groups are shown to typer as the groups' single options.

    A parameter that is annotated with a dataclass, such as :class:`OutputOptions`, receives an instance of it, made of the
    values that were given on the command line for its fields. What is printed stands last in the help.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter)
            continue
        groups[parameter.name] = parameter.annotation
        for field in fields(parameter.annotation):
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=field.type,
                )
            )
    last = {field.name for field in fields(OutputOptions)}
    parameters.sort(key=lambda parameter: parameter.name in last)

    @functools.wraps(command)
    def from_single_options(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    vars(from_single_options).update(
        __signature__=inspect.Signature(keyword_only),
        __annotations__={parameter.name: parameter.annotation for parameter in parameters},
    )
    return from_single_options
