"""`sppo init`, `sppo recipe`, and recipes by their name."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.recipe import PACKAGED, Recipe, RecipeError, load, parse, read_value, registry

RECIPES = sorted(PACKAGED.glob("*.yaml"))


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def test_what_init_writes_runs_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "to run them: sppo run own.yaml" in run("init")
    monkeypatch.syspath_prepend(tmp_path)
    small = ["--set", "iterations=1", "--set", "prompts.train.limit=12", "--set", "prompts.held_out=3"]
    run("run", "own.yaml", "--no-report", *small, "--set", "sampling.k=2", "--set", "evaluation.responses=1")
    assert Path("runs/own/iter-1/policy/model.safetensors").is_file()


def test_init_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "cd mine, then sppo run own.yaml" in run("init", "mine")
    Path("mine/own.yaml").unlink()
    result = CliRunner().invoke(app, ["init", "mine"])
    assert result.exit_code == 1
    assert "my_oracle.py exists already" in result.output
    assert not Path("mine/own.yaml").exists()


def test_a_recipe_of_the_package_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart") == load(PACKAGED / "quickstart.yaml")
    assert "tinyworld" in run("run", "quickstart", "--dry-run")
    Path("quickstart").write_text(
        "policy: {model: mine}\nprompts: {train: a.jsonl}\nalgorithm: {type: sft}\n"
    )
    with pytest.raises(RecipeError, match="demonstration"):  # the file here is meant
        load("quickstart")
    with pytest.raises(
        RecipeError, match=r"quickstrat: there is no such recipe; .* of the package: .*quickstart"
    ):
        load("quickstrat")


def test_the_defaults_are_those_of_the_recipe_and_described():
    text = run("recipe", "--defaults")
    written = read_value(text, name="defaults")
    written["policy"]["model"], written["prompts"]["train"] = "m", "a"
    smallest = {"policy": {"model": "m"}, "prompts": {"train": "a"}}
    oracle = {"oracle": {"type": "panel"}}
    assert parse({**written, **oracle}) == parse({**smallest, **oracle})
    assert "iterations: 3 # The number of iterations, T." in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_schema_knows_every_section_and_describes_its_keys():
    schema = json.loads(run("recipe", "--schema"))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    for kind in ("algorithms", "oracles"):
        for name in registry.names(kind):
            assert registry.load(kind, name).__name__ in schema["$defs"]
    assert schema["$defs"]["Training"]["properties"]["keep_epochs"]["description"].startswith(
        "Stop after this many"
    )
    assert schema["$defs"]["Training"]["additionalProperties"] is False


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_recipes_and_refuses_a_misspelt_key(path):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(run("recipe", "--schema")))
    recipe = json.loads(json.dumps(load(path).model_dump(mode="json")))
    validator.validate(recipe)
    recipe["training"]["learning_rat"] = 1
    assert not validator.is_valid(recipe)


def test_a_recipe_is_printed_as_it_is_resolved(tmp_path):
    (tmp_path / "again.yaml").write_text(run("recipe", "quickstart", "--set", "sampling.k=7"))
    assert load(tmp_path / "again.yaml") == load("quickstart", {"sampling.k": 7})
    for arguments in ([], ["quickstart", "--schema"], ["--schema", "--defaults"]):
        result = CliRunner().invoke(app, ["recipe", *arguments])
        assert result.exit_code == 1
        assert "name a recipe, or one of --defaults and --schema" in result.output
