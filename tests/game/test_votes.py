"""Votes: their cycles, the transitive model that these are compared with, and what Bradley-Terry loses."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from sppo.game import GameError
from sppo.game.transitive_votes import Transitive, cycle_test, fit_strengths, fit_transitive, log_loss
from sppo.game.vote_predictions import _fit, predictions
from sppo.game.votes import Votes, can_cycle, cycles


def world(log_odds, *, prompts=40, voters=3, seed=0):
    """Votes of several voters on all pairs of items, with the same log-odds on every prompt."""
    generator = np.random.default_rng(seed)
    names = "abcdefgh"[: len(log_odds)]
    return Votes.of(
        (prompt, voter, names[i], names[j], float(generator.random() < 1 / (1 + np.exp(-log_odds[i][j]))))
        for prompt in range(prompts)
        for voter in range(voters)
        for i in range(len(log_odds))
        for j in range(i + 1, len(log_odds))
    )


STRENGTH = np.array([0.9, 0.3, -0.2, -1.0])
TRANSITIVE = STRENGTH[:, None] - STRENGTH[None]
CIRCLE = np.array([[0.0, 1.5, -1.5], [-1.5, 0.0, 1.5], [1.5, -1.5, 0.0]])


def test_votes_of_condorcets_three_voters_go_in_a_circle():
    orders = ("abc", "bca", "cab")
    ballots = [
        ("x", order, i, j, float(order.index(i) < order.index(j)))
        for order in orders
        for i, j in ("ab", "ca", "bc")
    ]
    votes = Votes.of([*ballots, ("x", "d", "a", "b", 0.5), ("y", "d", "a", "b", 0.0)])
    assert (votes.prompts, votes.voters, votes.ties.sum()) == (2, 4, 1)
    assert len(votes.triples) == 1
    assert cycles(votes.wins, votes.decided, votes.triples) == 1
    # over both prompts the votes on a and b are 2 to 2, and a tie makes no cycle
    pooled = votes.pooled(votes.wins), votes.pooled(votes.decided)
    assert cycles(*pooled, votes.pooled_triples) == 0
    assert cycles(votes.wins[:, None].T, votes.decided, votes.triples[:0]).shape == (1,)
    assert votes.on(np.array([False, True])).decided.tolist() == [1]


def test_strengths_of_two_items_are_their_log_odds():
    zero, one = np.array([0]), np.array([1])
    found = fit_strengths(np.array([[3.0], [1.0]]), np.array([4]), zero, one, 2, prior=1e-9)
    np.testing.assert_allclose(found, np.log(3) / 2 * np.array([[1, -1], [-1, 1]]), atol=1e-6)
    always = fit_strengths(np.array([5.0]), np.array([5]), zero, one, 2)
    assert 2 < always[0] < 4


def test_log_loss_of_the_pairs_own_win_rates_is_their_entropy():
    found = log_loss(np.array([3.0, 2.0]), np.array([4, 2]))
    assert found == pytest.approx(-3 * np.log(0.75) - np.log(0.25))
    assert log_loss(np.array([3.0]), np.array([4]), np.array([0.0])) == pytest.approx(4 * np.log(2))


def test_the_model_of_transitive_votes_is_found_again():
    votes = world(TRANSITIVE, prompts=150)
    truth = Transitive(np.array([1.5, 0.5, -0.5, -1.5]), 0.9)
    drawn = truth.simulate(votes, 1, np.random.default_rng(3))[0]
    found = fit_transitive(replace(votes, wins=drawn.astype(int)))
    assert found.spread == pytest.approx(0.9, abs=0.25)
    np.testing.assert_allclose(found.strength, truth.strength, atol=0.35)


def test_without_differences_between_prompts_the_spread_is_near_zero():
    assert fit_transitive(world(TRANSITIVE, prompts=150, voters=5)).spread < 0.4


def test_transitive_votes_pass_and_a_circle_is_found():
    fair = cycle_test(world(TRANSITIVE), sets=200)
    assert fair.triples == 160
    assert fair.cyclic.p > 0.05
    assert fair.cyclic.low <= fair.cyclic.found <= fair.cyclic.high
    assert fair.lost.p > 0.05
    circle = cycle_test(world(CIRCLE), sets=200)
    assert circle.cyclic.found > circle.cyclic.high
    assert circle.cyclic.p == pytest.approx(2 / 201)
    assert circle.pooled_cyclic.found == 1
    assert circle.lost.p == pytest.approx(2 / 201)


def test_only_a_circle_is_predicted_better_by_the_general_model():
    circle = predictions(world(CIRCLE))
    assert circle.low > 0.1
    assert circle.bradley_terry == pytest.approx(np.log(2), abs=0.02)
    fair = predictions(world(TRANSITIVE))
    assert fair.low <= 0 <= fair.high + 1e-12
    assert predictions(world(CIRCLE, prompts=4)) is None


def test_the_general_model_lies_between_bradley_terry_and_the_pairs_own_win_rates():
    votes = world(CIRCLE, prompts=10)
    first, second, _ = votes.pairs
    rates = votes.pooled(votes.wins) / votes.pooled(votes.decided)
    free = _fit(votes, 1.0, 1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-free[first, second])), rates, atol=1e-5)
    np.testing.assert_allclose(_fit(votes, 1.0, 1e9), _fit(votes, 1.0, np.inf), atol=1e-6)
    assert np.abs(_fit(votes, 1.0, 10.0)).max() < np.abs(free).max()


def test_votes_that_show_nothing_are_refused():
    with pytest.raises(GameError, match="all 2 votes are ties"):
        Votes.of([("x", 1, "a", "b", 0.5), ("x", 2, "a", "b", 0.5)])
    with pytest.raises(GameError, match="there are no votes"):
        Votes.of([])
    with pytest.raises(GameError, match="no three of the items"):
        can_cycle(Votes.of([("x", 1, "a", "b", 1.0), ("x", 1, "b", "c", 1.0)]))


@pytest.fixture
def llmfao(shared):
    path = shared / "data" / "human_votes" / "llmfao" / "crowd-comparisons.csv"
    golden = shared / "data" / "games" / "evalica" / "llmfao-golden.csv"
    if not path.is_file() or not golden.is_file():
        pytest.skip("shared/data has no votes of llmfao with Evalica's scores")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shares = {"left": 1.0, "tie": 0.5, "right": 0.0}
    with golden.open(newline="", encoding="utf-8") as file:
        scores = {
            row["item"]: float(row["score"])
            for row in csv.DictReader(file)
            if row["algorithm"] == "bradley_terry"
        }
    return [
        (row["prompt"], row["worker"], row["left"], row["right"], shares[row["winner"]]) for row in rows
    ], scores


def test_strengths_are_evalicas(llmfao):
    ballots, scores = llmfao
    votes = Votes.of(ballots)
    first, second, _ = votes.pairs
    # Evalica counts a tie as half a victory for each
    wins = votes.pooled(votes.wins + votes.ties / 2)
    found = fit_strengths(wins, votes.pooled(votes.decided + votes.ties), first, second, 59, prior=1e-9)
    expected = np.log([scores[item] for item in votes.items])
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-6)


def test_strengths_are_those_of_the_installed_evalica(llmfao):
    evalica = pytest.importorskip("evalica", reason="evalica is not installed (pip install evalica)")
    decided = [ballot for ballot in llmfao[0] if ballot[4] != 0.5]
    winner = [evalica.Winner.X if share == 1 else evalica.Winner.Y for *_, share in decided]
    theirs = evalica.bradley_terry(
        [b[2] for b in decided], [b[3] for b in decided], winner, tolerance=1e-12
    ).scores
    votes = Votes.of(llmfao[0])
    first, second, _ = votes.pairs
    found = fit_strengths(
        votes.pooled(votes.wins), votes.pooled(votes.decided), first, second, 59, prior=1e-9
    )
    expected = np.log([theirs[item] for item in votes.items])
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-4)
