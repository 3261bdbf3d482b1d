"""Each example of docs/extending.md, followed word by word: written, installed, and used by its name."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from plugins import install
from small_runs import RAY, digests, play, rows
from typer.testing import CliRunner

import sppo
from sppo import oracle
from sppo.cli.main import app
from sppo.recipe import RecipeError, parse, parse_oracle, read_value

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def blocks(section: str) -> dict[str, str]:
    """The code blocks of a section of the page by the file that each names in its first line."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the package that a section of the page describes, and return what it says of the recipe."""

    def follow(section: str) -> dict:
        files = blocks(section)
        project = tomllib.loads(files.pop("pyproject.toml"))["project"]
        recipe = read_value(files.pop("recipe.yaml", "{}"), name="the page's recipe")
        install(monkeypatch, tmp_path / "installed", files, project["entry-points"])
        return recipe

    return follow


def test_an_algorithm_trains_by_its_name(tmp_path, installed):
    recipe = parse(RAY | {"algorithm": {"type": "sppo"}} | installed("An algorithm"))
    assert (recipe.algorithm.type, recipe.algorithm.margin) == ("hinge", 0.5)
    summary = play(recipe, tmp_path / "run")
    assert summary["iterations"][0]["trained"]["trained_prompts"] > 0


def test_an_algorithms_keys_are_checked_like_any_other(installed):
    installed("An algorithm")
    with pytest.raises(RecipeError, match=r"algorithm\.margins: unknown key; did you mean `margin`\?"):
        parse(RAY | {"algorithm": {"type": "hinge", "margins": 1}})
    with pytest.raises(
        RecipeError, match=r"'hinges' is unknown; did you mean 'hinge'\? Known: sppo, .*, hinge"
    ):
        parse(RAY | {"algorithm": {"type": "hinges"}})


def test_an_oracle_compares_by_its_name(installed):
    section = installed("An oracle")["oracle"]
    matrix = oracle.load(section).compare(["Say a word."], [["short", "a good deal longer"]])
    np.testing.assert_allclose(matrix[0, 0, 1], 1 / (1 + np.exp((5 - 18) / 50)))
    assert oracle.identity(parse_oracle(section)) == {"type": "shorter", "scale": 50.0, "text": "prompt"}


def test_an_oracle_can_stand_inside_another(installed):
    around = {"type": "near_tie", "delta": 0.2, "oracle": installed("An oracle")["oracle"]}
    assert oracle.load({"type": "panel", "members": [around]}).compare(["x"], [["a", "bb"]]).shape == (
        1,
        2,
        2,
    )


@pytest.mark.slow
def test_a_sampler_draws_by_its_name(tmp_path, installed):
    recipe = parse(RAY | installed("A sampler"))
    assert (recipe.sampling.engine, recipe.sampling.top_p, recipe.sampling.cache) == (
        "generate",
        0.95,
        "dynamic",
    )
    (iteration,) = play(recipe, tmp_path / "run")["iterations"]
    # its log-probabilities are those that the trainer computes of the same tokens
    assert iteration["sampler_deviation"]["max_per_token"] < 1e-5
    drawn = [response for row in rows(tmp_path / "run/iter-1/responses") for response in row["responses"]]
    assert len(drawn) == 12 * 3
    assert {response["finish_reason"] for response in drawn} == {"stop", "length"}
    texts = [response["text"] for response in drawn]
    play(recipe, tmp_path / "again")
    again = [response for row in rows(tmp_path / "again/iter-1/responses") for response in row["responses"]]
    assert [response["text"] for response in again] == texts


def test_a_samplers_keys_are_checked_like_any_other(installed):
    installed("A sampler")
    with pytest.raises(RecipeError, match=r"sampling\.cache: must be 'dynamic' or 'static' \(got 'statc'\)"):
        parse(RAY | {"sampling": {"engine": "generate", "cache": "statc"}})
    with pytest.raises(
        RecipeError, match=r"sampling\.engine: 'generat' is unknown; did you mean 'generate'\?"
    ):
        parse(RAY | {"sampling": {"engine": "generat"}})


@pytest.mark.long
def test_a_place_computes_by_its_name(tmp_path, installed):
    installed("A place to compute")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RAY), encoding="utf-8")
    command = ["run", str(tmp_path / "recipe.yaml"), "--no-report", "--run-dir", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, [*command, "--on", "pool"])
    assert "--on pool:: give the number of processes, e.g. --on pool:2" in str(refused.exception)
    unknown = CliRunner().invoke(app, [*command, "--on", "pol:2"])
    assert "--on pol:2: 'pol' is unknown; did you mean 'pool'?" in unknown.output
    result = CliRunner().invoke(app, [*command, "--on", "pool:2"])
    assert result.exit_code == 0, result.output
    play(parse(RAY), tmp_path / "local")
    assert digests(tmp_path / "run") == digests(tmp_path / "local")


def test_a_benchmark_evaluates_by_its_name(tmp_path, installed):
    installed("A benchmark")
    answers = tmp_path / "answers.txt"
    answers.write_text("Yes.\nA good deal longer than twenty characters.\n", encoding="utf-8")
    command = ["evaluate", "short-answers", str(answers), "--limit", "20", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "answers: 50.0% of 2 answers are short" in result.output
    results = [{"name": "answers", "short_share": 0.5}]
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).output) == results
    assert (
        sppo.evaluate("short-answers", outputs=answers, limit=20, output=tmp_path / "o")["results"] == results
    )
    assert "Example: sppo evaluate short-answers" in CliRunner().invoke(app, [*command[:2], "--help"]).output
