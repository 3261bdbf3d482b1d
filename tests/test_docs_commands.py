"""Every command and every piece of a recipe on a page is one that this version understands."""

import re
import shlex
import tomllib

import pytest
from commands import ROOT as SPPO
from docs_commands import PAGES, ROOT, blocks, commands

from sppo.recipe import (
    Recipe,
    load,
    load_oracle_training,
    parse,
    parse_endpoint,
    parse_sampling,
    read_overrides,
    read_value,
)

COMMANDS = list(dict.fromkeys(commands()))
SMALLEST = {
    "policy": {"model": "tinyworld"},
    "prompts": {"train": "tinyworld/train"},
    "oracle": {"type": "panel"},
}
PLUGGED_IN = {"short-answers"}
"""Names of what a page writes itself."""


def parsed(words, is_whole):
    """The command that words on a command line mean, and its parameters; None where a sentence names it in part."""
    command = SPPO
    while hasattr(command, "list_commands"):
        if not words or words[0].isupper() or words[0] in {"--help", *PLUGGED_IN}:
            return None, {}
        name = words[0]
        if command.name == "evaluate" and name not in command.list_commands(None):
            name, words = "stage", ["stage", *words]  # `sppo evaluate RUN`
        command, words = command.get_command(None, name), words[1:]
        assert command is not None, f"there is no command {name}"
    try:
        return command, command.make_context(command.name, words).params
    except Exception as error:
        if is_whole or type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            raise
        return None, {}


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command.line.startswith("sppo ")],
    ids=lambda command: f"{command.page}: {command.line}",
)
def test_a_command_of_a_page_is_one_that_the_command_line_understands(command):
    """By the real parser: it exists and takes these arguments and options; and its --set name keys of a recipe."""
    line = re.sub(r"s3://[\w/]+", "runs/remote", command.line).replace(" ...", "").removesuffix(" --set")
    found, values = parsed(shlex.split(line)[1:], command.whole)
    if found is None:
        return
    if isinstance(values.get("sampling"), str):
        parse_sampling(read_value(values["sampling"], name="--sampling"))
    overrides = read_overrides(values.get("set_"))
    named = str(values.get("recipe") or values.get("settings") or "")
    packaged = ROOT / "recipes" / f"{named.removeprefix('recipes/').removesuffix('.yaml')}.yaml"
    if found.name == "train-oracle":
        if packaged.parent.name == "oracles" and packaged.is_file():
            load_oracle_training(packaged, overrides)
    elif found.name == "compare":
        variants = {part.partition("=")[0] for part in values["algorithms"].split(",")}
        for variant in variants:
            own = {key.removeprefix(f"{variant}."): value for key, value in overrides.items()}
            kept = {key: value for key, value in own.items() if key.split(".")[0] in Recipe.model_fields}
            assert len(kept) == len(overrides) - sum(
                key.split(".")[0] in variants - {variant} for key in overrides
            )
            parse({**SMALLEST, "algorithm": {"type": variant if variant == "dpo" else "sppo"}}, kept)
    elif packaged.is_file():
        load(packaged, overrides)
    else:
        parse(SMALLEST, overrides)


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if not command.line.startswith("sppo ")],
    ids=lambda command: f"{command.page}: {command.line}",
)
def test_what_else_a_page_calls_is_there_with_its_options(command):
    program, *words = command.line.split()
    if words[0] == "-c":
        return
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[0]}:", makefile, flags=re.M)
    elif program == "pip":
        extras = re.search(r"\[(.*)\]", words[-1])
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install" and (extras is None or extras[1] in known)
    elif words[:2] == ["-m", "pytest"]:
        assert (ROOT / words[2]).is_file()
    else:
        module = words[0] == "-m"
        script = ROOT / (f"src/{words[1].replace('.', '/')}.py" if module else words[0])
        if module and not script.is_file():
            script = script.with_suffix("") / "__main__.py"
        source = script.read_text(encoding="utf-8")
        for word in words[1 + module :]:
            option = word.strip("[]").partition("=")[0]
            assert not option.startswith("--") or f'"{option}"' in source, option


def pieces():
    """Every YAML text on a page with the page's name."""
    for page in PAGES:
        if (
            page.name == "extending.md"
        ):  # its recipes name what the page writes itself; tests/test_extending.py runs them
            continue
        for language in ("yaml", ""):
            for text in blocks(page, language):
                if language or re.match(r"[a-z_]+:( *\{| *\n)", text):
                    yield page.name, text


@pytest.mark.parametrize(("page", "text"), list(pieces()), ids=lambda value: value[:60])
def test_the_yaml_on_a_page_is_of_the_kind_that_it_belongs_to(page, text):
    """A piece of a recipe, the settings of `train-oracle`, or a judge's: every key is known, every value allowed."""
    values = read_value(text, name=page)
    if "url" in values:
        parse_endpoint(values)
    elif "pairs" in values:
        load_oracle_training(values)
    else:
        parse(SMALLEST | values)
