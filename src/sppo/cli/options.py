"""The arguments and options that several commands share, and how their values are read.

The modules of the command line import everything else inside their functions, so that `sppo --help` answers at once.
"""

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sppo.output_options import OutputOptions as OutputOptions
from sppo.output_options import expanded as expanded

if TYPE_CHECKING:
    from sppo.recipe import Recipe
    from sppo.rundir.folder import RunFolder

RUN, LOOK, MEASURE, STAGES = "Run a recipe", "Look at runs and policies", "Measure", "One stage at a time"
HEADINGS = (RUN, LOOK, MEASURE, STAGES)
"""The headings under which `sppo --help` lists the commands."""


def described_by_docstring(command: Callable[..., None]) -> Callable[..., None]:
    """Move the `Args:` of a command's docstring into the help texts of its options, and expand its option groups."""
    summary, _, descriptions = inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:\n")
    hints = typing.get_type_hints(command, include_extras=True)
    for name, description in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", descriptions, re.MULTILINE):
        text = " ".join(description.split())
        if typing.get_origin(hints[name]) is Annotated:
            hints[name].__metadata__[0].help = text
        else:
            hints[name] = Annotated[hints[name], typer.Option(help=text)]
    command.__doc__, command.__annotations__ = summary, hints
    return expanded(command)


def local(path: Any) -> Any:
    """Expand `~`, and replace the address of a run in remote storage by the folder of its working copy."""
    from sppo.rundir import storage

    if isinstance(path, list):
        return [local(item) for item in path]
    return storage.located(path.expanduser()) if isinstance(path, Path) else path


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A recipe (a YAML file), or a run folder to continue.", callback=local
    ),
]
RunFolderArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", callback=local)]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or the recipe of a run.", callback=local)
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="One or more run folders.", callback=local)]
PolicyArgument = Annotated[
    Path,
    typer.Argument(
        metavar="POLICY",
        help="A run folder, whose last accepted policy is taken; the folder of one of its iterations (RUN/iter-2), of a policy or of an adapter; or a hub name.",
        callback=local,
    ),
]
OtherRun = Annotated[
    Path | None, typer.Option("--run", help="Use the responses of this run.", callback=local)
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="The run's folder, or its address (s3://...). [default: runs/NAME, after the recipe's file]",
        callback=local,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value of the recipe, e.g. seed=1; may be repeated."
    ),
]
RedoStale = Annotated[
    bool,
    typer.Option(
        "--redo-stale",
        help="Remove and redo the stages that were computed from a different recipe or from different inputs.",
    ),
]
Iteration = Annotated[
    int | None,
    typer.Option(
        "--iteration", "-t", min=1, help="The iteration. [default: the first that lacks this stage]"
    ),
]
Clip = Annotated[
    float,
    typer.Option(help="Keep probabilities at least this far from 0 and 1 when log-odds are computed."),
]


def open_run(path: Path, run_dir: Path | None, overrides: list[str] | None) -> "tuple[Recipe, RunFolder]":
    """The recipe and the run folder that a command works on; a run folder brings its own recipe.

    Raises:
        RunError: the path is a folder without a recipe.
        RecipeError: the recipe or an override is wrong.
    """
    from sppo.api import read_recipe, run_folder
    from sppo.recipe import read_overrides
    from sppo.rundir.folder import RunFolder

    return read_recipe(path, read_overrides(overrides)), RunFolder(run_dir or run_folder(path))


def parse_numbers(text: str, option: str, count: int | None = None) -> list[float]:
    """Numbers that an option holds, separated by commas.

    Raises:
        typer.BadParameter: the text holds something else, or another count of numbers than expected.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or count not in (None, len(numbers)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise typer.BadParameter(f"{option} {text!r}: expected {wanted} separated by commas, such as 1,1,2.")
    return numbers
