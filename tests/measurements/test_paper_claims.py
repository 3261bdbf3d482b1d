"""The arithmetic of measurements/paper_claims.py; what it measures is measured by running it."""

import json
import time

import numpy as np
import paper_claims as claims
import paper_claims_answers as answers
import paper_claims_cells as claim_cells
import paper_claims_oracles as oracles
import pytest

from sppo.compare.results import Played
from sppo.oracle import checked
from sppo.recipe import parse
from sppo.tinyworld.annotators import CYCLE


def test_every_cell_is_a_recipe_and_every_setting_a_folder_of_its_own(tmp_path):
    best = {name: claim_cells.grid(name)[0] for name in claim_cells.GRID}
    cells = [cell for question in claims.TITLES for cell in claim_cells.wanted_cells(question, best, 3)]
    recipes = {cell: parse(cell.setting.recipe(cell.seed, cell.iterations)) for cell in set(cells)}
    assert {recipe.iterations for recipe in recipes.values()} == {1, 3}
    settings = {cell.setting for cell in cells}
    assert len({one.name for one in settings}) == len(settings)
    for letter in ("a", "d", "e", "f", "g", "i"):
        assert {cell.seed for cell in claim_cells.fixed_cells(letter, 3)} == set(claim_cells.SEEDS)
    assert {cell.seed for cell in claim_cells.grid_cells()} == {claim_cells.CHOOSING_SEED}
    assert claim_cells.CHOOSING_SEED not in claim_cells.SEEDS
    assert all(
        claim_cells.DEFAULT in {cell.setting for cell in claim_cells.fixed_cells(letter, 3)}
        for letter in "adefgi"
    )


def test_what_the_oracles_of_sums_learn_from_is_not_what_judges_them():
    recipe = parse(claim_cells.Setting(oracle="majority_sums").recipe(0, 1))
    assert recipe.oracle.function == "paper_claims_oracles:majority_sums"
    assert recipe.evaluation.oracle.function == "paper_claims_oracles:majority"
    assert parse(claim_cells.Setting(oracle="majority").recipe(0, 1)).evaluation.oracle is None


def test_what_stands_around_the_panel_is_judged_by_the_panel():
    for name in claim_cells.AROUND:
        recipe = parse(claim_cells.Setting(oracle=name).recipe(0, 1))
        assert recipe.oracle.type == name
        assert (
            recipe.oracle.oracle == recipe.evaluation.oracle == parse(claim_cells.DEFAULT.recipe(0, 1)).oracle
        )


def test_oracles_answer_with_preferences_and_sums_do_not_go_round():
    prompt, texts = CYCLE
    for name in claim_cells.ORACLES:
        matrix = checked(getattr(oracles, name)([prompt], [list(texts)]), [prompt], 3)[0]
        round_trip = matrix[0, 1] > 0.5 and matrix[1, 2] > 0.5 and matrix[2, 0] > 0.5
        assert round_trip == ("sums" not in name)


def test_sums_of_scores_by_hand():
    matrix = np.array([[0.5, 0.8, 1.0], [0.2, 0.5, 0.5], [0.0, 0.5, 0.5]])
    odds = np.log(0.99 / 0.01)
    score = np.array([np.log(4) + odds, -np.log(4), -odds]) / 2
    found = oracles.sums_of_scores(matrix)
    assert found[0, 2] == pytest.approx(1 / (1 + np.exp(score[2] - score[0])))
    assert found[1, 0] == pytest.approx(1 / (1 + np.exp(score[0] - score[1])))


def test_choosing_and_reporting_prompts_share_none():
    rates = [{name: float(n) for n, name in enumerate("dbcae")}]
    choosing, reporting = (answers.half(rates, which)[0] for which in ("choosing", "reporting"))
    assert sorted(choosing) == ["a", "c", "e"]
    assert sorted(reporting) == ["b", "d"]


def test_differences_are_paired():
    ours, theirs = [{"a": 0.9, "b": 0.5}, {"a": 0.8, "b": 0.4}], [{"a": 0.7, "b": 0.3}, {"a": 0.6, "b": 0.2}]
    found = answers.measured(answers.differences(ours, theirs))
    assert found["mean"] == pytest.approx(0.2)
    # each prompt and each seed says the same, however far prompts lie from each other
    for over in ("prompts", "seeds"):
        assert found[over] == pytest.approx({"low": 0.2, "high": 0.2})
    assert answers.verdict(found) == "yes"


@pytest.mark.parametrize(
    ("prompts", "seeds", "word"),
    [
        ((0.1, 0.3), (0.05, 0.4), "yes"),
        ((0.1, 0.3), (-0.05, 0.4), "not decided"),
        ((-0.3, -0.1), (-0.2, -0.1), "no, the other way"),
        ((-0.3, 0.1), (-0.2, -0.1), "not decided"),
    ],
)
def test_a_verdict_needs_both_intervals(prompts, seeds, word):
    found = {"prompts": dict(zip(("low", "high"), prompts)), "seeds": dict(zip(("low", "high"), seeds))}
    assert answers.verdict(found).startswith(word)


class Stored(answers.Results):
    """Results that are made up: a win rate for each setting and iteration."""

    def __init__(self, rates):
        super().__init__(None, 3)
        self.rates_of = rates

    def played(self, cell):
        rates = self.rates_of[cell.setting]
        by_prompt = [{f"{n}": rate for n in range(4)} for rate in rates]
        rows = [
            {"alarms": ["it loses"] if rate < 0.4 else [], "iteration": n} for n, rate in enumerate(rates)
        ]
        return Played(rows, by_prompt, [[] for _ in rates])


def test_the_best_of_a_grid_is_chosen_after_three_iterations_or_where_the_guard_stopped():
    rates = {one: [0.6, 0.7, 0.7] for name in claim_cells.GRID for one in claim_cells.grid(name)}
    rates[claim_cells.grid("sppo")[2]] = [0.5, 0.6, 0.8]
    rates[claim_cells.grid("dpo")[1]] = [0.9, 0.3]
    rates[claim_cells.grid("dpo")[4]] = [0.6, 0.75, 0.71]
    best, scores = answers.best_of_grids(Stored(rates))
    assert best["sppo"] == claim_cells.grid("sppo")[2]
    assert best["dpo"] == claim_cells.grid("dpo")[4]
    assert scores[claim_cells.grid("dpo")[1].name] == 0.3


def test_a_learning_rate_at_which_most_seeds_collapse(capsys):
    best = {"sppo": claim_cells.DEFAULT}
    rates = {cell.setting: [0.7] for cell in claim_cells.chosen_cells("h", best)}
    for cell in claim_cells.chosen_cells("h", best):
        rates[cell.setting] = [0.3 if cell.setting.learning_rate >= 1e-2 else 0.7]
    found = answers.answer_h(Stored(rates), best)
    assert found["sppo"]["collapses_at"] == "0.01"
    assert "collapsed: 5 of 5" in capsys.readouterr().out


def test_a_cell_is_done_when_its_rows_are_there_or_the_guard_has_stopped_it(tmp_path):
    cell = claim_cells.Cell(claim_cells.DEFAULT, 0, 3)
    path = cell.run(tmp_path).folder.path / "summary.json"
    path.parent.mkdir(parents=True)
    for alarms, done in (([[], []], False), ([[], [], []], True), ([["it loses"]], True)):
        path.write_text(json.dumps({"iterations": [{"alarms": one} for one in alarms]}))
        assert cell.is_done(tmp_path) == done


def test_no_cell_is_begun_after_the_time_is_up(tmp_path, capsys):
    claim_cells.play_cells(tmp_path, [claim_cells.Cell(claim_cells.DEFAULT, 0, 3)], 1, time.time() - 1)
    assert "1 cells are left for another time" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
