import json
from collections import Counter
from pathlib import Path

import pytest

from sppo import oracle
from sppo.benchmarks.ifeval import constraints
from sppo.instructions import prompts
from sppo.recipe import load

IFEVAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts" / "ifeval_input_data.jsonl"
NAMES = (
    prompts.TRAIN,
    prompts.HELD_OUT,
    prompts.TRAINED_CONSTRAINTS,
    prompts.HELD_OUT_CONSTRAINTS,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    prompts.write(folder, train=1200, held_out=96)
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_has_constraints_of_trained_kinds_that_can_be_checked(folder):
    stated = {
        prompt.text: prompt
        for prompt in constraints.read_prompts(folder / prompts.TRAINED_CONSTRAINTS)  # refuses duplicates
    }
    training = [row["prompt"] for row in rows(folder / prompts.TRAIN)]
    held_out = [row["prompt"] for row in rows(folder / prompts.HELD_OUT)]
    assert set(training) | set(held_out) == set(stated)
    assert len(training) == 1200
    assert len(held_out) == 96
    counts = Counter(len(stated[text].constraints) for text in training)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 60
    names = {constraint.name for prompt in stated.values() for constraint in prompt.constraints}
    assert names == set(prompts.kinds(held_out=False))
    assert len(names) >= 17


def test_held_out_kinds_are_stated_in_held_out_prompts_alone(folder):
    never_trained = constraints.read_prompts(folder / prompts.HELD_OUT_CONSTRAINTS)
    assert {prompt.text for prompt in never_trained} == {
        row["prompt"] for row in rows(folder / prompts.HELD_OUT)
    }
    names = {constraint.name for prompt in never_trained for constraint in prompt.constraints}
    assert names == set(prompts.kinds(held_out=True))
    assert not names & set(prompts.kinds(held_out=False))


def test_training_and_held_out_prompts_share_no_base_text():
    bases = prompts.base_texts(0)
    assert len(set(bases)) == len(bases)
    assert not any("{" in base for base in bases)


def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prompts.write(tmp_path / name, train=20, held_out=5, seed=seed)
    for name in NAMES:
        first, same, other = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert first == same != other


def test_more_prompts_do_not_change_the_first_ones(tmp_path):
    for name, train in (("few", 10), ("many", 30)):
        prompts.write(tmp_path / name, train=train, held_out=5)
    few, many = (rows(tmp_path / name / prompts.TRAIN) for name in ("few", "many"))
    assert many[:10] == few


def test_more_prompts_than_base_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2000 training and 96 held-out prompts, but there are 1"):
        prompts.write(tmp_path, train=2000, held_out=96)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", prompts.texts()["constraints"])
def test_a_constraint_is_stated_with_the_values_that_are_checked(kind):
    variants = prompts.texts()["constraints"][kind]["variants"]
    for variant in variants:
        constraint = constraints.Constraint(kind, {})
        assert constraint.name in constraints.CHECKS
        for wording in variant["say"]:
            named = {part.split("}")[0] for part in wording.split("{")[1:]}
            assert named == set(variant["values"]) - {"relation", "let_relation", "capital_relation"} - (
                {"language"} & set(variant["values"])
            )


def test_the_recipe_reads_the_files_that_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load("real")
    home = Path(recipe.prompts.train.source).parent
    prompts.write(home, train=10, held_out=4)
    assert Path(recipe.prompts.held_out.source).is_file()
    text = rows(home / prompts.TRAIN)[0]["prompt"]
    for section in (recipe.oracle, recipe.evaluation.oracle):
        asked = text if section is recipe.oracle else rows(home / prompts.HELD_OUT)[0]["prompt"]
        found = oracle.load(section).compare([asked], [["One response.", "Another response."]])
        assert found.shape == (1, 2, 2)


@pytest.mark.skipif(not IFEVAL.is_file(), reason="IFEval's prompts are not beside the checkout")
def test_no_prompt_and_no_wording_is_ifevals(folder):
    theirs = [row["prompt"].strip().lower() for row in rows(IFEVAL)]
    ours = [row["prompt"] for name in (prompts.TRAIN, prompts.HELD_OUT) for row in rows(folder / name)]
    assert not {text.strip().lower() for text in ours} & set(theirs)
    bases = prompts.base_texts(0)
    assert not [base for base in bases if any(base.lower() in text for text in theirs)]
    wordings = {
        wording
        for kind in prompts.texts()["constraints"].values()
        for variant in kind["variants"]
        for wording in variant["say"]
        if "{" not in wording and len(wording.split()) > 3
    }
    assert len(wordings) > 10
    assert not [wording for wording in wordings if any(wording.lower() in text for text in theirs)]
