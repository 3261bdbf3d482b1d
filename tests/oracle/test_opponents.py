"""Fewer comparisons: which pairs are compared, what P^ is then, and that oracles are asked no more."""

from collections import Counter
from io import StringIO

import numpy as np
import pytest
import small_runs
import torch
from rich.console import Console
from small_runs import rows

from sppo import oracle, randomness, recipe, selfplay
from sppo.benchmarks.head_to_head.score import win_rates_against
from sppo.oracle import CheckedOracle
from sppo.oracle.opponents import opponents
from sppo.oracle.panel import Panel
from sppo.progress import Terminal
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader
from sppo.stages.single import run_stage
from sppo.winrates import win_rates


def generator(n):
    return randomness.generator("test", n)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 9])
def test_each_response_is_compared_with_m_of_the_others(k):
    for m in range(1, k + 2):
        wanted = opponents(k, m, generator(m))
        np.testing.assert_array_equal(wanted, wanted.T)
        assert wanted.diagonal().all()
        met = sorted(wanted.sum(axis=1) - 1)
        expected = [min(m, k - 1)] * k
        if k % 2 and m % 2 and m < k - 1:
            expected[-1] += 1  # an odd number of odd degrees is no graph
        assert met == expected


def test_every_pair_is_as_likely_as_any_other():
    drawn = np.mean([opponents(5, 2, generator(n)) for n in range(4000)], axis=0)
    off_diagonal = drawn[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, 0.5, atol=0.04)  # 5 standard deviations


def test_the_draw_is_the_keys():
    np.testing.assert_array_equal(opponents(7, 3, generator(1)), opponents(7, 3, generator(1)))
    assert any((opponents(7, 3, generator(1)) != opponents(7, 3, generator(n))).any() for n in range(2, 5))


def random_matrix(k, seed=0):
    upper = np.triu(np.random.default_rng(seed).random((k, k)), 1)
    return upper + np.tril(1 - upper.T, -1) + np.eye(k) / 2


def test_win_rates_of_a_matrix_with_gaps_by_hand():
    gap = np.nan
    matrix = np.array([[0.5, 0.9, gap], [0.1, 0.5, 0.6], [gap, 0.4, 0.5]])
    # (1/2 + 2 x mean of those compared) / 3
    expected = [(0.5 + 2 * 0.9) / 3, (0.5 + 2 * 0.35) / 3, (0.5 + 2 * 0.4) / 3]
    np.testing.assert_allclose(win_rates(matrix), expected)
    np.testing.assert_allclose(win_rates(torch.tensor(matrix)), expected)
    full = random_matrix(4)
    np.testing.assert_allclose(win_rates(np.stack([full, full])), full.mean(-1)[None].repeat(2, 0))


def test_win_rates_with_gaps_are_unbiased_and_average_one_half():
    matrix = random_matrix(5)
    rates = [win_rates(np.where(opponents(5, 2, generator(n)), matrix, np.nan)) for n in range(4000)]
    np.testing.assert_allclose(np.mean(rates, axis=0), win_rates(matrix), atol=0.01)
    np.testing.assert_allclose(np.mean(rates, axis=1), 0.5)


class Counted:
    """Prefers the longer; counts what it is asked."""

    def __init__(self):
        self.asked = Counter()

    def compare_pairs(self, prompts, responses, wanted):
        self.asked.update(wanted.sum(axis=(1, 2)).tolist())
        return np.where(wanted, self.compare(prompts, responses), 17.0)

    def compare(self, prompts, responses):
        lengths = np.array([[len(text) for text in of] for of in responses])
        return 1 / (1 + np.exp(lengths[:, None, :] - lengths[:, :, None]))


TEXTS = [["a", "bb", "ccc", "dddd"], ["", "x", "yyy", "z"]]


def test_an_oracle_is_asked_about_the_wanted_pairs_alone():
    inner = Counted()
    checked = CheckedOracle(inner)
    one_way = np.zeros((2, 4, 4), dtype=bool)
    one_way[0, 0, 2] = one_way[1, 3, 1] = True
    found = checked.compare_pairs(["p", "q"], TEXTS, one_way)
    whole = checked.compare(["p", "q"], TEXTS)
    wanted = one_way | one_way.swapaxes(1, 2) | np.eye(4, dtype=bool)
    np.testing.assert_array_equal(found, np.where(wanted, whole, np.nan))
    assert inner.asked == {6: 2}


def test_oracles_that_answer_all_or_nothing_are_masked():
    inner = Counted()
    whole = type("Whole", (), {"compare": inner.compare})()
    wanted = np.broadcast_to(opponents(4, 2, generator(0)), (2, 4, 4))
    found = CheckedOracle(whole).compare_pairs(["p", "q"], TEXTS, wanted)
    np.testing.assert_array_equal(np.isnan(found), ~wanted)
    np.testing.assert_array_equal(found, CheckedOracle(inner).compare_pairs(["p", "q"], TEXTS, wanted))
    assert CheckedOracle(whole).compare_pairs([], [], np.zeros((0, 0, 0), dtype=bool)).shape == (0, 0, 0)
    assert inner.asked


def test_a_panel_asks_its_members_about_the_wanted_pairs():
    members = [Counted(), Counted()]
    panel = CheckedOracle(Panel([CheckedOracle(member) for member in members], [1, 3]))
    wanted = np.broadcast_to(opponents(4, 1, generator(0)), (2, 4, 4))
    found = panel.compare_pairs(["p", "q"], TEXTS, wanted)
    np.testing.assert_allclose(found[wanted], panel.compare(["p", "q"], TEXTS)[wanted])
    assert [member.asked for member in members] == [{8: 2}, {8: 2}]


def test_averaged_scores_need_all_pairs():
    for mapping in ({"probability": "averaged", "opponents": 2},):
        with pytest.raises(recipe.RecipeError, match=r"opponents: probability averaged is made from all"):
            recipe.parse_oracle({"type": "pairrm", **mapping})
    with pytest.raises(recipe.RecipeError, match="opponents"):
        oracle.load({"type": "panel", "opponents": 0})


# --- through the loop, with a held-out judge ---


def small(**changes):
    return small_runs.small(
        **{
            "iterations": 1,
            "shard_prompts": 256,
            "prompts.train.limit": 8,
            "prompts.held_out.limit": 6,
            "oracle": {"type": "panel", "weights": [1, 0, 0], "opponents": 2},
            "sampling.k": 5,
            "evaluation.oracle": {"type": "panel"},
            **changes,
        }
    )


def play(of, folder):
    terminal = Terminal(Console(file=StringIO(), width=250))
    return selfplay.run(of, RunFolder(folder), terminal), terminal.console.file.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, *play(small(), folder)


def test_a_run_compares_what_the_seed_draws(finished):
    folder, summary, _ = finished
    prompts = {row["prompt_id"]: row for row in rows(folder / "iter-1" / "responses")}
    scholar = oracle.load({"type": "panel", "weights": [1, 0, 0]})
    preferences = rows(folder / "iter-1" / "preferences")
    rates = {}
    for row in preferences:
        matrix = np.array(row["matrix"])
        drawn = opponents(5, 2, randomness.generator("opponents", 3, row["prompt_id"]))
        np.testing.assert_array_equal(np.isnan(matrix), ~drawn)
        answered = prompts[row["prompt_id"]]
        texts = [response["text"] for response in answered["responses"]]
        whole = scholar.compare([answered["messages"][0]["content"]], [texts])[0]
        np.testing.assert_array_equal(matrix[drawn], whole[drawn])
        rates[row["prompt_id"]] = win_rates(matrix)
    assert len(preferences) == 8
    for row in rows(folder / "iter-1" / "training"):
        for response in row["responses"]:
            assert response["win_rate"] == rates[row["prompt_id"]][response["k"]]
    assert summary["iterations"][0]["cyclic_triples"] is None


def test_the_draw_does_not_depend_on_shards(finished, tmp_path):
    folder, _, _ = finished
    of = small(shard_prompts=3)
    terminal = Terminal(Console(file=StringIO()))
    for stage in ("sample", "annotate"):
        run_stage(of, RunFolder(tmp_path / "run"), terminal, stage)
    found, expected = (
        {row["prompt_id"]: np.isnan(row["matrix"]).tolist() for row in rows(run / "iter-1" / "preferences")}
        for run in (tmp_path / "run", folder)
    )
    assert found == expected


def test_games_need_whole_matrices(finished):
    with pytest.raises(RunError, match=r"oracle\.opponents"):
        RunReader(finished[0]).preferences()


def test_the_held_out_judge_gives_the_win_rates_and_the_oracle_stands_beside(finished):
    folder, summary, shown = finished
    (row,) = summary["iterations"]
    ours, base = (rows(folder / f"iter-{number}" / "evaluation") for number in (1, 0))
    for found, judge in (
        (row, {"type": "panel"}),
        (row["by_oracle"], {"type": "panel", "weights": [1, 0, 0]}),
    ):
        compare = oracle.load(judge).compare
        prompts = [one["messages"][0]["content"] for one in ours]
        texts = [[response["text"] for response in one["responses"]] for one in [*ours, *base]]
        rates = win_rates_against(compare, prompts, texts[:6], texts[6:])
        assert found["win_rate_vs_base"]["mean"] == pytest.approx(rates.mean())
        assert found["win_rate_vs_previous"] == found["win_rate_vs_base"]
    assert row["win_rate_vs_base"] != row["by_oracle"]["win_rate_vs_base"]
    assert "Win rates by the held-out panel" in shown
    assert "by oracle" in shown
