from itertools import combinations

import numpy as np
import pytest

from sppo.game import (
    GameError,
    borda_scores,
    borda_winners,
    bradley_terry,
    bradley_terry_divergence,
    bradley_terry_game,
    condorcet_winner,
    copeland_scores,
    copeland_winners,
    cyclic_game,
    cyclic_triples,
    hodge,
    intransitivity,
    majority_game,
    nearest_bradley_terry,
    random_game,
    rock_paper_scissors,
    smith_set,
)
from sppo.game.preference_games import Array

CYCLE = majority_game([[2, 1, 0], [0, 2, 1], [1, 0, 2]])


def games_with_ties(n: int, count: int) -> Array:
    draws = np.random.default_rng(n).integers(-1, 2, (count, n, n))
    return np.asarray(0.5 + (np.triu(draws, 1) - np.triu(draws, 1).swapaxes(-1, -2)) / 2)


def test_a_condorcet_winner_wins_by_every_rule() -> None:
    game = bradley_terry_game([0.0, 2.0, 1.0, -1.0])
    for rule in (condorcet_winner, copeland_winners, borda_winners, smith_set):
        assert np.array_equal(rule(game), [False, True, False, False])  # type: ignore[operator]
    assert np.array_equal(copeland_scores(game), [1, 3, 2, 0])


def test_a_cycle_has_no_winner_and_a_whole_smith_set() -> None:
    assert not condorcet_winner(CYCLE).any()
    assert smith_set(CYCLE).all()
    assert copeland_winners(CYCLE).all()
    assert borda_winners(CYCLE).all()


def test_borda_may_choose_against_the_condorcet_winner() -> None:
    # 0 beats both narrowly; 1 loses to 0 narrowly and crushes 2
    game = np.array([[0.5, 0.51, 0.51], [0.49, 0.5, 1.0], [0.49, 0.0, 0.5]])
    assert np.array_equal(condorcet_winner(game), [True, False, False])
    assert np.array_equal(borda_winners(game), [False, True, False])
    np.testing.assert_allclose(borda_scores(game), [0.51, 0.745, 0.245])
    assert bradley_terry(0.98 * game + 0.01).argmax() == 1


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_smith_sets_by_exhaustion(n: int) -> None:
    def smallest(game: Array) -> list[bool]:
        for size in range(1, n + 1):
            for members in combinations(range(n), size):
                outside = [i for i in range(n) if i not in members]
                if all(game[i, j] > 0.5 for i in members for j in outside):
                    return [i in members for i in range(n)]
        raise AssertionError

    games = np.concatenate([games_with_ties(n, 150), random_game(n, games=100, seed=n)])
    assert np.array_equal(smith_set(games), [smallest(game) for game in games])


def test_bradley_terry_recovers_the_strengths_that_made_a_game() -> None:
    strength = np.random.default_rng(1).normal(size=(6, 5)) * 2
    strength -= strength.mean(-1, keepdims=True)
    np.testing.assert_allclose(bradley_terry(bradley_terry_game(strength)), strength, atol=1e-9)
    weights = np.random.default_rng(2).dirichlet(np.ones(5), size=6)
    weighted = bradley_terry(bradley_terry_game(strength), weights=weights)
    np.testing.assert_allclose(weighted - weighted[:, :1], strength - strength[:, :1], atol=1e-9)


def test_bradley_terry_matches_the_win_rates_of_the_game() -> None:
    games = random_game(6, games=50, seed=3)
    model = bradley_terry_game(bradley_terry(games))
    np.testing.assert_allclose(model.mean(-1), games.mean(-1), atol=1e-12)
    assert np.array_equal(bradley_terry(games).argmax(-1), borda_scores(games).argmax(-1))


def test_infinite_strengths_are_refused_by_name_and_have_a_limit() -> None:
    game = np.full((4, 4), 0.5)
    game[np.ix_([1, 3], [0, 2])], game[np.ix_([0, 2], [1, 3])] = 1.0, 0.0
    game[1, 3], game[3, 1] = 0.8, 0.2
    with pytest.raises(GameError, match=r"responses \[1, 3\] win every comparison .* 0.99 \* P"):
        bradley_terry(game)
    np.testing.assert_allclose(nearest_bradley_terry(game), game, atol=1e-12)
    assert bradley_terry_divergence(game) == pytest.approx(0, abs=1e-12)


def test_divergence_of_a_full_cycle_is_a_bit_per_pair() -> None:
    # the nearest model is indifferent, and each pair is certain
    assert bradley_terry_divergence(rock_paper_scissors()) == pytest.approx(np.log(2))
    assert bradley_terry_divergence(bradley_terry_game([0.0, 1.0, -2.0])) == pytest.approx(0, abs=1e-15)


def test_nearest_model_is_nearest() -> None:
    game = random_game(4, seed=5)

    def divergence(model: Array) -> float:
        return float((game * np.log(game / model)).sum() / 6)

    found = bradley_terry_divergence(game)
    strength = bradley_terry(game)
    for shift in np.random.default_rng(0).normal(size=(200, 4)) * 0.1:
        assert divergence(bradley_terry_game(strength + shift)) >= found


def test_cyclic_triples_by_hand() -> None:
    assert cyclic_triples(rock_paper_scissors()) == 1
    assert cyclic_triples(bradley_terry_game([3.0, 2.0, 1.0, 0.0])) == 0
    assert cyclic_triples(cyclic_game(5)) == pytest.approx(5 / 10)  # the most that n = 5 allows
    assert cyclic_triples(np.full((4, 4), 0.5)) == 0
    assert cyclic_triples(random_game(2)) == 0
    # 0 -> 1 -> 2 -> 0 is the one cycle of four triples
    game = np.array([[0.5, 1, 0, 1], [0, 0.5, 1, 1], [1, 0, 0.5, 1], [0, 0, 0, 0.5]])
    assert cyclic_triples(game) == pytest.approx(1 / 4)


def test_hodge_parts() -> None:
    game = random_game(6, games=20, seed=7)
    parts = hodge(game)
    log_odds = np.log(game / game.swapaxes(-1, -2))
    np.testing.assert_allclose(parts.transitive + parts.cyclic, log_odds, atol=1e-12)
    np.testing.assert_allclose(parts.cyclic.sum(-1), 0, atol=1e-12)
    np.testing.assert_allclose((parts.transitive * parts.cyclic).sum((-1, -2)), 0, atol=1e-10)
    assert np.all((parts.cyclic_share > 0) & (parts.cyclic_share < 1))
    strength = np.array([1.0, 0.0, -1.0])
    np.testing.assert_allclose(hodge(bradley_terry_game(strength)).reward, strength, atol=1e-12)
    assert hodge(bradley_terry_game(strength)).cyclic_share == pytest.approx(0, abs=1e-20)
    assert hodge(CYCLE).cyclic_share == pytest.approx(1)
    assert hodge(np.full((3, 3), 0.5)).cyclic_share == 0


def test_certain_preferences_need_a_clip() -> None:
    with pytest.raises(GameError, match=r"3 of the pairs have probability 1 .*give clip"):
        hodge(rock_paper_scissors())
    assert hodge(rock_paper_scissors(), clip=0.01).cyclic_share == pytest.approx(1)
    with pytest.raises(GameError, match=r"clip = 0\.7"):
        hodge(CYCLE, clip=0.7)


def test_all_measures_of_a_data_set() -> None:
    games = np.stack([CYCLE, bradley_terry_game([0.0, 1.0, 2.0])])
    found = intransitivity(games)
    np.testing.assert_allclose(found.cyclic_triples, [1, 0])
    np.testing.assert_allclose(found.cyclic_share, [1, 0], atol=1e-12)
    assert np.array_equal(found.condorcet, [False, True])
    # whichever response a scalar reward chooses of the cycle, another beats it 2/3 of the time
    np.testing.assert_allclose(found.scalar_exploitability, [1 / 6, 0], atol=1e-12)
    assert np.array_equal(found.winner_support, [3, 1])
    np.testing.assert_allclose(found.winner_entropy, [np.log(3), 0], atol=1e-9)
    np.testing.assert_allclose(found.bradley_terry_error, [1 / 6, 0], atol=1e-9)
    assert found.means()["condorcet"] == 0.5
    assert intransitivity(CYCLE).cyclic_triples.shape == ()


def test_weights_of_a_fit_must_be_a_distribution() -> None:
    with pytest.raises(GameError, match="sum to 3"):
        bradley_terry(CYCLE, weights=[1, 1, 1])
