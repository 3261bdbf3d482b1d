"""The help pages: whole summaries under headings, and examples that can be typed as they stand."""

import shlex

import pytest
import typer.main
from typer.testing import CliRunner

from sppo.cli.main import app


def leaves(command, names=()):
    """Every command that does something, with its words on the command line."""
    children = getattr(command, "commands", None)
    if children is None:
        return {names: command}
    return {
        path: leaf for name, child in children.items() for path, leaf in leaves(child, (*names, name)).items()
    }


ROOT = typer.main.get_command(app)
LEAVES = leaves(ROOT)


def test_every_command_stands_under_a_heading_with_its_whole_summary():
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for name, command in ROOT.commands.items():
        assert f" {name} {' '.join(command.help.split())}" in text.replace("log- prob", "log-prob"), name
    assert "..." not in text.replace("[ARGS]...", "")


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_command_has_an_example_that_it_understands(names):
    command = LEAVES[names]
    example = shlex.split(command.epilog.removeprefix("Example: "))
    if names == ("evaluate", "stage"):
        names = ("evaluate",)  # the run alone says which command is meant
    assert tuple(example[: len(names) + 1]) == ("sppo", *names)
    context = command.make_context(names[-1], example[len(names) + 1 :])
    assert not context.args


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_option_and_argument_is_described(names):
    for parameter in LEAVES[names].params:
        assert (parameter.help or "").endswith((".", "]")), parameter.name
