"""Commands to start with: `init` and `inputs` write what a run needs, `recipe` shows what can stand in a recipe."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.cli import options
from sppo.instructions import INPUTS

app = typer.Typer()


@app.command(
    rich_help_panel=options.RUN,
    epilog="Example: sppo init mine --model HuggingFaceTB/SmolLM2-135M-Instruct",
)
@options.described_by_docstring
def init(
    common: options.OutputOptions,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)] = Path(),
    model: Annotated[str, typer.Option(metavar="MODEL")] = "tinyworld",
    prompts: Annotated[str | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Write a commented recipe and an oracle of your own, which run at once on the embedded world or your model.

    Args:
        folder: The folder to write own.yaml, my_oracle.py and, for a model without prompts, prompts.jsonl to. [default: this one]
        model: The policy to begin with: a folder, or a name on the hub.
        prompts: Your prompts: a file such as prompts.jsonl, a folder, or a data set on the hub. [default: some to begin with]
    """
    from sppo.cli.own import files

    written, said, warnings = files.write(folder, model, prompts)
    enter = "" if folder == Path() else f"cd {shlex.quote(str(folder))}, then "
    names = ", ".join(path.name for path in written)
    common.terminal.show("\n".join([f"wrote {names}; to run them: {enter}sppo run {files.RECIPE}", *said]))
    for warning in warnings:
        common.terminal.warn(f"WARNING: {warning}")
    common.terminal.show_json({"files": list(map(str, written)), "warnings": warnings})


@app.command(rich_help_panel=options.RUN, epilog="Example: sppo inputs")
@options.described_by_docstring
def inputs(
    common: options.OutputOptions,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")] = INPUTS,
    train: Annotated[int, typer.Option(min=1)] = 1300,
    held_out: Annotated[int, typer.Option(min=1)] = 200,
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
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE")] = None,
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
