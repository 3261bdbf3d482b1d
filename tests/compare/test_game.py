import json
import shutil

import numpy as np
import pytest

from sppo import game
from sppo.compare import game as run_games
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader
from sppo.rundir.shards import table, write_shard
from sppo.rundir.tables import PREFERENCES, RESPONSES

RECIPE = """
policy: {model: tinyworld}
prompts: {train: tinyworld/train}
oracle: {type: panel}
"""
CYCLE = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
LINE = [[0.5, 0.9, 0.9], [0.1, 0.5, 0.9], [0.1, 0.1, 0.5]]


def beats(prompts, responses):
    """Rock-paper-scissors by the first letter; the same letter ties."""
    wins = {("r", "s"), ("s", "p"), ("p", "r")}
    return np.array(
        [
            [
                [1.0 if (a[0], b[0]) in wins else 0.0 if (b[0], a[0]) in wins else 0.5 for b in texts]
                for a in texts
            ]
            for texts in responses
        ]
    )


@pytest.fixture
def run(tmp_path):
    def make(name, policies):
        """A run whose base and iterations answer each held-out prompt with the given texts."""
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        for number, texts in enumerate(policies):
            rows = [
                {
                    "prompt_id": prompt,
                    "messages": [{"role": "user", "content": prompt}],
                    "prompt_token_ids": [1],
                    "responses": [
                        {"token_ids": [1], "text": text, "finish_reason": "stop", "log_prob": 0.0}
                        for text in texts
                    ],
                }
                for prompt in ("a", "b")
            ]
            home = folder / f"iter-{number}"
            write_shard(home / "evaluation" / "part-00000.parquet", table(rows, RESPONSES), {})
            (home / "evaluation.json").write_text(json.dumps({}))
        return folder

    return make


def test_preferences_are_read_by_iteration(run):
    folder = run("one", [["r"]])
    for number, matrices in ((1, [CYCLE, LINE]), (2, [CYCLE])):
        rows = [{"prompt_id": str(n), "matrix": matrix} for n, matrix in enumerate(matrices)]
        write_shard(
            folder / f"iter-{number}" / "preferences" / "part-00000.parquet", table(rows, PREFERENCES), {}
        )
    found = RunReader(folder).preferences()
    assert {number: part.prompt_ids for number, part in found.items()} == {1: ["0", "1"], 2: ["0"]}
    measured = game.intransitivity(found[1].matrices)
    assert measured.cyclic_triples.tolist() == [1, 0]
    assert list(RunReader(folder).preferences(2)) == [2]
    with pytest.raises(RunError, match="nothing has been annotated in iteration 3"):
        RunReader(folder).preferences(3)
    spin = RECIPE.replace("tinyworld/train", "{source: tinyworld/train, demonstration: completion}")
    (folder / "recipe.yaml").write_text(spin + "algorithm: {type: spin}\n")
    shutil.rmtree(folder / "iter-1")
    shutil.rmtree(folder / "iter-2")
    with pytest.raises(RunError, match="spin, asks no oracle in training"):
        RunReader(folder).preferences()


def test_an_oracle_is_inspected_prompt_by_prompt_and_over_all(run, tmp_path):
    from typer.testing import CliRunner

    from sppo.cli.main import app

    folder = run("one", [["r"]])
    rows = [{"prompt_id": f"p{n}", "matrix": matrix} for n, matrix in enumerate([CYCLE, LINE, LINE, LINE])]
    write_shard(folder / "iter-1" / "preferences" / "part-00000.parquet", table(rows, PREFERENCES), {})
    arguments = ["oracle", "inspect", str(folder), "--json", "--per-prompt", str(tmp_path / "p.csv")]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "game.npy")])
    assert result.exit_code == 0, result.output
    means = json.loads(result.stdout)
    assert means["cyclic_triples"] == 0.25
    assert means["condorcet"] == 0.75
    # a scalar reward picks one of the three that go round; its best answer wins 0.9 of the time
    assert means["scalar_exploitability"] == pytest.approx(0.4 / 4)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].startswith('"iteration","prompt_id","cyclic_triples"')
    assert [line.split(",")[1] for line in lines[1:]] == ['"p0"', '"p1"', '"p2"', '"p3"']
    np.testing.assert_array_equal(np.load(tmp_path / "game.npy")[0], CYCLE)


def test_policies_that_go_round_have_a_mixed_nash(run):
    names, payoff, rivals, challenges = run_games.policies([run("one", [["r"], ["p"], ["s"]])], beats)
    assert names == ["base", "iteration 1", "iteration 2"]
    assert rivals == []
    found = game.empirical_game(payoff, names=names, challengers=challenges, challenger_names=rivals)
    np.testing.assert_allclose(found.nash.weights, 1 / 3, atol=1e-9)
    assert found.last.exploitability == pytest.approx(0.5)
    assert found.averaged.exploitability == pytest.approx(0, abs=1e-12)


def test_win_rates_are_means_over_all_pairs_and_best_of_n_answers(run):
    names, payoff, rivals, challenges = run_games.policies([run("one", [["r", "r"], ["p", "s"]])], beats)
    # p beats both rocks, s loses to both
    np.testing.assert_allclose(payoff, [[[0.5, 0.5], [0.5, 0.5]]] * 2)
    assert rivals == ["base, best of 2", "iteration 1, best of 2"]
    # of p and s the scissors win between themselves; they lose to rock and beat their own policy 3/4 of the time
    np.testing.assert_allclose(challenges[0, 1], [0.0, 0.75])
    assert names == ["base", "iteration 1"]


def test_several_runs_share_the_first_ones_base(run):
    names, payoff, _, _ = run_games.policies([run("one", [["r"], ["p"]]), run("two", [["r"], ["s"]])], beats)
    assert names == ["base", "one, iteration 1", "two, iteration 1"]
    np.testing.assert_allclose(payoff[0], [[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])


def test_what_is_no_evaluated_run_is_refused(run, tmp_path):
    with pytest.raises(RunError, match="no policy of this run has been evaluated"):
        run_games.policies([run("base-only", [["r"]])], beats)
    with pytest.raises(RunError, match=r"no recipe.yaml"):
        RunReader(tmp_path).preferences()
    one, two = run("one", [["r"], ["p"]]), run("two", [["r"], ["p"]])
    shutil.rmtree(two / "iter-1" / "evaluation")
    with pytest.raises(RunError, match="no held-out prompt in common"):
        run_games.policies([one, two], beats)
