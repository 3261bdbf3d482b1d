"""`sppo init`, `sppo recipe`, and recipes by their name."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.policy.chat_format import model_path
from sppo.recipe import PACKAGED, Recipe, RecipeError, load, parse, read_value, registry

RECIPES = sorted(PACKAGED.glob("*.yaml"))


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


SMALL = (
    "--set",
    "sampling.k=2",
    "--set",
    "evaluation.responses=1",
    "--set",
    "sampling.max_new_tokens=32",
    "--no-report",
)


def test_what_init_writes_runs_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "to run them: sppo run own.yaml" in run("init")
    monkeypatch.syspath_prepend(tmp_path)
    few = ["--set", "iterations=1", "--set", "prompts.train.limit=12", "--set", "prompts.held_out=3"]
    run("run", "own.yaml", *few, *SMALL)
    assert Path("runs/own/iter-1/policy/model.safetensors").is_file()


def test_what_init_writes_for_a_model_runs_at_once_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_path("tinyworld"), "a model: {1}")  # a name that YAML would read as something else
    assert "wrote own.yaml, my_oracle.py, prompts.jsonl;" in run("init", "mine", "--model", "a model: {1}")
    monkeypatch.chdir("mine")
    monkeypatch.syspath_prepend(Path.cwd())
    recipe = load("own.yaml")
    assert recipe.policy.model == str(tmp_path / "a model: {1}")
    assert recipe.prompts.held_out == len(Path("prompts.jsonl").read_text().splitlines()) // 4
    assert recipe.training.learning_rate == 5e-4
    few = ["--set", "prompts.train.limit=8", "--set", "prompts.held_out=2"]
    run("run", "own.yaml", *few, *SMALL)
    assert Path("runs/own/iter-1/policy/model.safetensors").is_file()


def test_init_takes_prompts_and_sizes_the_run_by_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": f"Describe the number {number}."}) for number in range(200)]
    for name, count in (("many.jsonl", 200), ("few.jsonl", 6)):
        Path(name).write_text("\n".join(lines[:count]))
    Path("mine").mkdir()
    Path("many.jsonl").rename("mine/many.jsonl")
    run("init", "mine", "--model", "own/model-7B", "--prompts", "mine/many.jsonl")
    recipe = load("mine/own.yaml")
    assert (recipe.prompts.train.source, recipe.prompts.train.limit) == ("many.jsonl", 120)
    assert (recipe.prompts.held_out, recipe.training.learning_rate) == (30, 5e-7)
    assert not Path("mine/prompts.jsonl").exists()
    run("init", "two", "--prompts", "few.jsonl")
    recipe = load("two/own.yaml")
    assert (recipe.prompts.train.source, recipe.prompts.train.limit) == (str(tmp_path / "few.jsonl"), None)
    assert (recipe.prompts.held_out, recipe.training.batch_prompts) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such"], "policy.model: there is no folder '/no/such' here, and no model"),
        (["--model", ""], "--model: it is empty"),
        (["--prompts", " "], "--prompts: it is empty"),
        (["--model", "one.txt"], "policy.model: 'one.txt' is a file; name the folder with config.json"),
        (["--model", "empty"], "policy.model: .*empty has no weights at all"),
        (["--prompts", "none.jsonl"], "prompts: 'none.jsonl' is neither a file here nor a data set"),
        (["--prompts", "one.txt"], "--prompts: one.txt has 1 prompt; a run needs one to learn from"),
        (["--prompts", "broken.jsonl"], "--prompts: broken.jsonl, line 2: malformed.*; mend it"),
    ],
)
def test_init_refuses_what_a_run_could_not_use_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("one.txt").write_text("Describe rain.\n")
    Path("broken.jsonl").write_text('{"prompt": "Describe rain."}\n{"prompt"\n')
    result = CliRunner().invoke(app, ["init", "mine", *arguments])
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output
    assert not Path("mine").exists()


def test_init_says_what_it_cannot_know_about_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "number of parameters of 'some/model' is not known" in run("init", "mine", "--model", "some/model")
    assert "machine has" in run("init", "large", "--model", "some/model-4000b")


def test_the_learning_rate_of_a_first_run_falls_with_the_size_of_the_model():
    from sppo.cli.own.files import learning_rate

    assert [learning_rate(size) for size in (1e5, 1e6, 1.35e8, 7e9, 7e10, None)] == [
        5e-4, 5e-4, 1e-4, 5e-7, 5e-7, 5e-7
    ]  # fmt: skip
    # half way between 135M and 7B on logarithmic scales: the root of 1e-4 x 5e-7
    assert learning_rate((1.35e8 * 7e9) ** 0.5) == 7e-6


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
        RecipeError,
        match=r"quickstrat: there is no such recipe; did you mean quickstart\? .* of the package: llama",
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
