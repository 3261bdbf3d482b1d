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
from sppo.comparisons import SETTLING, Choice, count_pairs, pairs_of_opponents, random_pairs
from sppo.oracle import CheckedOracle
from sppo.oracle.panel import Panel
from sppo.progress import Terminal
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader
from sppo.stages.single import run_stage
from sppo.winrates import win_rates


def generator(n):
    return randomness.generator("test", n)


def opponents(k, m, of):
    """The pairs of `type: random, opponents: m`."""
    return random_pairs(k, pairs_of_opponents(k, m), of)


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


@pytest.mark.parametrize("k", [5, 6, 16])
def test_a_budget_is_spent_to_the_last_pair(k):
    for pairs in range(k - 1, k * (k - 1) // 2 + 1):
        wanted = random_pairs(k, pairs, generator(pairs))
        np.testing.assert_array_equal(wanted, wanted.T)
        assert count_pairs(wanted) == Choice("random", k, pairs).most_pairs == pairs
        met = wanted.sum(axis=1) - 1
        assert met.min() >= 1
        assert np.ptp(met) <= 2


@pytest.mark.parametrize("pairs", [4, 5, 7])
def test_every_pair_is_as_likely_as_any_other(pairs):
    drawn = np.mean([random_pairs(5, pairs, generator(n)) for n in range(4000)], axis=0)
    off_diagonal = drawn[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, pairs / 10, atol=0.04)  # 5 standard deviations


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
    odd = [win_rates(np.where(random_pairs(5, 6, generator(n)), matrix, np.nan)) for n in range(4000)]
    np.testing.assert_allclose(np.mean(odd, axis=0), win_rates(matrix), atol=0.015)


# --- types that choose by the answers ---


def played(choice, matrix, seed=0, candidates=None, left_out=()):
    """The matrix with gaps, the settled responses, and the number of rounds of a choice on a whole matrix."""
    rounds = choice.rounds(generator(seed), range(choice.k) if candidates is None else candidates)
    asked = np.eye(choice.k, dtype=bool)
    answers = matrix.copy()
    for i, j in left_out:
        answers[i, j] = answers[j, i] = np.nan
    known, count = np.where(asked, answers, np.nan), 0
    try:
        wanted = next(rounds)
        while True:
            assert not (wanted & asked & ~np.eye(choice.k, dtype=bool)).any()  # no pair is asked about twice
            asked |= wanted
            known, count = np.where(asked, answers, np.nan), count + 1
            wanted = rounds.send(known)
    except StopIteration as end:
        return known, end.value, count, count_pairs(asked)


def ranked(k, seed=0):
    """A transitive matrix of random strengths."""
    strength = np.random.default_rng(seed).normal(size=k)
    return 1 / (1 + np.exp(strength - strength[:, None]))


@pytest.mark.parametrize("kind", SETTLING)
@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 7, 9, 11, 16, 19])
def test_the_settled_rates_are_those_of_all_pairs_within_the_budget(kind, k):
    least = Choice(kind, k).least_budget
    assert k - 1 <= least <= k * (k - 1) // 2
    for seed, budget in enumerate([None, least, (least + k * (k - 1) // 2) // 2, k * (k - 1) // 2]):
        for some in (k, k - 1, k - 2, k // 2):  # of which so many can be trained on
            choice, matrix = Choice(kind, k, budget), random_matrix(k, seed)
            known, settled, _, pairs = played(choice, matrix, seed, candidates=range(k)[:some])
            assert pairs <= choice.most_pairs
            assert settled.sum() >= min(2, some)
            np.testing.assert_allclose(win_rates(known, settled)[settled], win_rates(matrix)[settled])
            assert np.isnan(win_rates(known, settled)[~settled]).all()


@pytest.mark.parametrize("kind", ["elimination", "adaptive"])
def test_brackets_find_the_best_and_the_worst_of_a_ranking(kind):
    for seed in range(20):
        matrix = ranked(16, seed)
        _, settled, rounds, pairs = played(Choice(kind, 16), matrix, seed)
        whole = win_rates(matrix)
        assert settled[[whole.argmax(), whole.argmin()]].all()
        assert rounds == {"elimination": 5, "adaptive": 4}[kind]
        assert pairs <= {"elimination": 44, "adaptive": 48}[kind]  # 37% and 40% of the 120


def test_a_larger_budget_settles_more():
    settled = [played(Choice("adaptive", 16, budget), ranked(16))[1].sum() for budget in (48, 60, 80, 110)]
    assert settled[0] == 2
    assert settled[-1] > 4


def test_the_best_is_sought_among_the_candidates():
    matrix = ranked(9)
    order = np.argsort(win_rates(matrix))
    candidates = [int(k) for k in order[2:-2]]
    for kind in ("elimination", "adaptive"):
        settled = played(Choice(kind, 9), matrix, candidates=candidates)[1]
        assert settled[[order[2], order[-3]]].all()
        assert not settled[[order[0], order[-1]]].any()
        assert played(Choice(kind, 9), matrix, candidates=[4])[1].tolist() == [k == 4 for k in range(9)]
        assert played(Choice(kind, 9), matrix, candidates=[])[3] == 0


def test_a_pair_that_the_oracle_leaves_out_does_not_unsettle_a_response():
    matrix = ranked(9)
    best, worst = int(win_rates(matrix).argmax()), int(win_rates(matrix).argmin())
    known, settled, _, _ = played(Choice("adaptive", 9), matrix, left_out=[(best, worst)])
    assert settled[[best, worst]].all()
    assert np.isnan(known[best, worst])
    assert np.isfinite(win_rates(known, settled)[[best, worst]]).all()


def test_the_choice_is_the_keys_and_the_answers():
    for kind in SETTLING:
        first, second, other = (played(Choice(kind, 11), random_matrix(11), seed)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (np.isnan(first) != np.isnan(other)).any()


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
    few = {"type": "random", "opponents": 2}
    with pytest.raises(recipe.RecipeError, match=r"comparisons: probability averaged is made from all"):
        recipe.parse_oracle({"type": "pairrm", "probability": "averaged", "comparisons": few})


def test_opponents_is_an_earlier_name_wherever_an_oracle_stands():
    few = {"type": "random", "opponents": 2}
    old, new = ({"type": "panel", **key} for key in ({"opponents": 2}, {"comparisons": few}))
    assert recipe.parse_oracle(old) == recipe.parse_oracle(new)
    assert recipe.parse_oracle({"type": "panel", "opponents": None}) == recipe.parse_oracle({"type": "panel"})
    wrapped = recipe.parse_oracle({"type": "near_tie", "oracle": old})
    assert wrapped.chosen_comparisons() == recipe.parse_oracle(new).comparisons
    assert small(oracle={"type": "panel", "opponents": 3}).comparisons == Choice("random", 5, 8)
    assert recipe.parse_oracle(old).identity() == recipe.parse_oracle({"type": "panel"}).identity()
    for wrong in ({"opponents": 0}, {"opponents": 1, "comparisons": few}):
        with pytest.raises(recipe.RecipeError, match="opponents"):
            oracle.load({"type": "panel", **wrong})


@pytest.mark.parametrize(
    ("chosen", "changes", "said"),
    [
        (
            {"type": "random", "budget": 3},
            {},
            r"budget: 3 pairs, but with sampling\.k: 5 .* set it to 4 or more",
        ),
        (
            {"type": "adaptive", "budget": 43},
            {"sampling.k": 16},
            r"set it to 44 or more \(all pairs are 120\)",
        ),
        ({"type": "swiss", "budget": 15}, {"sampling.k": 16}, "set it to 38 or more"),
        ({"type": "random"}, {}, "needs either a budget or opponents"),
        ({"type": "random", "budget": 8, "opponents": 2}, {}, "needs either a budget or opponents"),
        ({"type": "all", "budget": 8}, {}, "compares every pair"),
        ({"type": "swiss", "opponents": 2}, {}, "only for type: random"),
        ({"type": "adaptive"}, {"selection": "all"}, "set selection: best_worst"),
        ({"type": "swiss"}, {"algorithm.log_partition": "samples"}, "choose another log_partition"),
        ({"type": "adaptative"}, {}, "did you mean 'adaptive'"),
    ],
)
def test_comparisons_that_cannot_be_used_are_refused(chosen, changes, said):
    with pytest.raises(recipe.RecipeError, match=said):
        small(**{"oracle": {"type": "panel", "comparisons": chosen}, **changes})


# --- through the loop, with a held-out judge ---


def small(**changes):
    return small_runs.small(
        **{
            "iterations": 1,
            "shard_prompts": 256,
            "prompts.train.limit": 8,
            "prompts.held_out.limit": 6,
            "oracle": {
                "type": "panel",
                "weights": [1, 0, 0],
                "comparisons": {"type": "random", "opponents": 2},
            },
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


def test_an_adaptive_run_trains_on_the_settled_alone_and_compares_the_same_however_it_is_divided(tmp_path):
    oracles = {
        # members that answer whole matrices are asked once, the ranker pair by pair
        "panel": {"type": "panel"},
        "pairrm": {"type": "pairrm", "model": "tinyworld", "probability": "calibrated"},
    }
    for name, mapping in oracles.items():
        chosen = {"type": "adaptive", "budget": 17}
        changes = {
            "sampling.k": 7,
            "sampling.max_new_tokens": 24,
            "prompts.train.limit": 5,
            "evaluation.oracle": None,
        }
        of = small(oracle={**mapping, "comparisons": chosen}, **changes)
        preferences = {}
        for shard_prompts in (256, 3):
            folder = tmp_path / f"{name}-{shard_prompts}"
            terminal = Terminal(Console(file=StringIO()))
            for stage in ("sample", "annotate", "select"):
                run_stage(
                    of.model_copy(update={"shard_prompts": shard_prompts}), RunFolder(folder), terminal, stage
                )
            preferences[shard_prompts] = {
                row["prompt_id"]: row for row in rows(folder / "iter-1" / "preferences")
            }
        responses = {row["prompt_id"]: row for row in rows(folder / "iter-1" / "responses")}
        for row in rows(folder / "iter-1" / "training"):
            found, alone = (preferences[shard][row["prompt_id"]] for shard in (3, 256))
            np.testing.assert_allclose(found["matrix"], alone["matrix"], atol=1e-6)
            assert found["settled"] == alone["settled"]
            matrix, settled = np.array(found["matrix"]), np.array(found["settled"])
            assert (~np.isnan(matrix)).sum() - 7 <= 2 * 17
            texts = [response["text"] for response in responses[row["prompt_id"]]["responses"]]
            whole = oracle.load(mapping).compare(
                [responses[row["prompt_id"]]["messages"][0]["content"]], [texts]
            )[0]
            rates = win_rates(whole)
            assert len(row["responses"]) == 2
            for response in row["responses"]:
                assert settled[response["k"]]
                assert response["win_rate"] == pytest.approx(rates[response["k"]], abs=1e-6)
        record = RunReader(folder).record_file(1, "annotate").read_text()
        assert '"pairs_per_prompt": 1' in record


def test_games_need_whole_matrices(finished):
    with pytest.raises(RunError, match=r"oracle\.comparisons"):
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
