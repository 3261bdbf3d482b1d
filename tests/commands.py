"""Every command of the command line, as its parser has it."""

import typer.main

from sppo.cli.main import app


def _leaves(command, names=()):
    if not hasattr(command, "list_commands"):
        return {names: command}
    children = {name: command.get_command(None, name) for name in command.list_commands(None)}
    return {
        path: leaf
        for name, child in children.items()
        for path, leaf in _leaves(child, (*names, name)).items()
    }


ROOT = typer.main.get_command(app)
LEAVES = _leaves(ROOT)
"""The commands that do something, by their words on the command line."""
