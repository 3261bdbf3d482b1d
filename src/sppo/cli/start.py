"""Commands to start with: `init` and `inputs` write what a run needs, `recipe` shows what can stand in a recipe."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from sppo.cli import options

app = typer.Typer()
OWN_FILES = ("own.yaml", "my_oracle.py")
REAL_INPUTS = Path("runs/real-inputs")


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo init mine")
@options.described_by_docstring
def init(folder: Annotated[Path, typer.Argument(metavar="[FOLDER]")] = Path()) -> None:
    """Write a commented recipe and an oracle of your own, which run at once on the embedded world.

    Args:
        folder: The folder to write own.yaml and my_oracle.py to. [default: this one]
    """
    from sppo.progress import Terminal
    from sppo.rundir.folder import RunError

    for name in OWN_FILES:
        if (folder / name).exists():
            raise RunError(f"{folder / name} exists already; name another folder, or move the file away")
    folder.mkdir(parents=True, exist_ok=True)
    for name in OWN_FILES:
        (folder / name).write_text(
            (files("sppo.cli.own") / name).read_text(encoding="utf-8"), encoding="utf-8"
        )
    enter = "" if folder == Path() else f"cd {folder}, then "
    Terminal().show(f"wrote {' and '.join(OWN_FILES)}; to run them: {enter}sppo run own.yaml")


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo inputs")
@options.described_by_docstring
def inputs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]")] = REAL_INPUTS,
    train: Annotated[int, typer.Option(min=1)] = 800,
    held_out: Annotated[int, typer.Option(min=1)] = 80,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write what `sppo run real` needs: SmolLM2-135M-Instruct, and prompts with verifiable constraints.

    Args:
        folder: The folder to write to; the recipe looks for it where it is by default.
        train: The number of training prompts.
        held_out: The number of held-out prompts.
        seed: Random seed of the prompts.
    """
    from sppo.instructions import prompts, smollm2
    from sppo.progress import Terminal

    terminal = Terminal()
    terminal.show(smollm2.write(folder / "policy"))
    prompts.write(folder, train=train, held_out=held_out, seed=seed)
    terminal.show(f"{train} training and {held_out} held-out prompts with constraints are in {folder}")


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo recipe quickstart --set sampling.k=8")
@options.described_by_docstring
def recipe(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]")] = None,
    set_: options.Overrides = None,
    defaults: Annotated[bool, typer.Option("--defaults")] = False,
    schema: Annotated[bool, typer.Option("--schema")] = False,
) -> None:
    """Print a recipe as it is resolved, every key with its default, or a JSON Schema for editors.

    Args:
        recipe: The recipe to print, with the values of its preset and all defaults.
        defaults: Print every key of a recipe with its default and its description.
        schema: Print the JSON Schema of recipes.
    """
    from sppo.recipe import Recipe, dump, load, read_overrides, reference
    from sppo.rundir.folder import RunError

    if sum((recipe is not None, defaults, schema)) != 1:
        raise RunError("name a recipe, or one of --defaults and --schema")
    if recipe is not None:
        text = dump(load(recipe, read_overrides(set_)))
    else:
        text = (
            reference.defaults(Recipe)
            if defaults
            else json.dumps(reference.json_schema(Recipe), indent=2) + "\n"
        )
    typer.echo(text, nl=False)
