"""Commands to start with: `init` and `inputs` write what a run needs, `recipe` shows what can stand in a recipe."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.cli import options

app = typer.Typer()
OWN_FILES = ("own.yaml", "my_oracle.py")
REAL_INPUTS = Path("runs/real-inputs")


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo init mine")
@options.described_by_docstring
def init(
    common: options.OutputOptions,
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]")] = Path(),
) -> None:
    """Write a commented recipe and an oracle of your own, which run at once on the embedded world.

    Args:
        folder: The folder to write own.yaml and my_oracle.py to. [default: this one]
    """
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
    common.terminal.show(f"wrote {' and '.join(OWN_FILES)}; to run them: {enter}sppo run own.yaml")
    common.terminal.show_json({"files": [str(folder / name) for name in OWN_FILES]})


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo inputs")
@options.described_by_docstring
def inputs(
    common: options.OutputOptions,
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

    said = smollm2.write(folder / "policy")
    prompts.write(folder, train=train, held_out=held_out, seed=seed)
    common.terminal.show(
        f"{said}\n{train} training and {held_out} held-out prompts with constraints are in {folder}"
    )
    common.terminal.show_json({"folder": str(folder), "policy": said, "train": train, "held_out": held_out})


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo recipe quickstart --set sampling.k=8")
@options.described_by_docstring
def recipe(
    common: options.OutputOptions,
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]")] = None,
    set_: options.Overrides = None,
    defaults: Annotated[bool, typer.Option("--defaults")] = False,
    schema: Annotated[bool, typer.Option("--schema")] = False,
) -> None:
    """Print a recipe as it is resolved, every key with its default, or a JSON Schema for editors.

    Args:
        recipe: The recipe to print, with the values of its preset and all defaults.
        defaults: Print every key of a recipe with its default and its description.
        schema: Print the JSON Schema of recipes, which is JSON with or without --json.
    """
    from sppo.recipe import Recipe, dump, load, read_overrides, read_value, reference
    from sppo.rundir.folder import RunError

    if sum((recipe is not None, defaults, schema)) != 1:
        raise RunError("name a recipe, or one of --defaults and --schema")
    values: Mapping[str, Any]
    if recipe is not None:
        resolved = load(recipe, read_overrides(set_))
        text, values = dump(resolved), resolved.model_dump(mode="json")
    elif defaults:
        text = reference.defaults(Recipe)
        values = read_value(text, name="--defaults")
    else:
        values = reference.json_schema(Recipe)
        text = json.dumps(values, indent=2)
    common.terminal.show(text.rstrip("\n"))
    common.terminal.show_json(values)
