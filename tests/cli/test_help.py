"""The help pages: whole summaries under headings, and examples that can be typed as they stand."""

import re
import shlex
import subprocess
import sys

import pytest
from commands import LEAVES, ROOT
from typer.testing import CliRunner

from sppo.cli.main import app


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


def test_help_loads_nothing_but_the_command_line():
    program = (
        "import runpy, sys; sys.argv = ['sppo', '--help']\n"
        "try: runpy.run_module('sppo', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pydantic', 'pyarrow', 'yaml', 'rich.progress', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_option_and_argument_is_described(names):
    for parameter in LEAVES[names].params:
        assert (parameter.help or "").endswith((".", "]")), parameter.name


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_the_first_line_of_a_help_page_has_each_mark_once(names):
    line = CliRunner().invoke(app, [*names, "--help"]).output.splitlines()[0]
    assert not re.search(r"\[\[|\]\]|\.{4}|\.{3}[\]}]|[a-z]}", line), line


def test_a_misspelt_benchmark_is_answered_with_the_nearest():
    done = CliRunner().invoke(app, ["evaluate", "head-to-hed", "runs/mine"])
    assert done.exit_code == 2
    assert "'head-to-hed' is unknown; did you mean 'head-to-head'?" in done.output
