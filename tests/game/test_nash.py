import numpy as np
import pytest

from sppo.game import (
    GameError,
    best_responses,
    bradley_terry_game,
    condorcet_winner,
    cyclic_game,
    duality_gap,
    exploitability,
    nash,
    preference,
    random_game,
    regularised_exploitability,
    rock_paper_scissors,
    solve,
    win_rates_against,
)
from sppo.game.preference_games import Array

SOLVERS = ("interior", "highs")


def entropy(policy: Array) -> Array:
    return np.asarray(-np.where(policy > 0, policy * np.log(np.maximum(policy, 1e-300)), 0).sum(-1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rock_paper_scissors(solver: str) -> None:
    np.testing.assert_allclose(nash(rock_paper_scissors(), solver=solver), [1 / 3] * 3, atol=1e-12)  # type: ignore[arg-type]
    # margins 0.4 (rock over scissors), 0.2 (paper over rock), 0.1 (scissors over paper)
    biased = nash(rock_paper_scissors(rock=0.9, paper=0.7, scissors=0.6), solver=solver)  # type: ignore[arg-type]
    np.testing.assert_allclose(biased, np.array([0.1, 0.4, 0.2]) / 0.7, atol=1e-12)


@pytest.mark.parametrize("bias", [(0.51, 1.0, 1.0), (0.6, 0.55, 0.95), (1.0, 0.7, 0.500001)])
def test_biased_rock_paper_scissors_closed_form(bias: tuple[float, float, float]) -> None:
    rock, paper, scissors = bias
    margins = np.array([scissors, rock, paper]) - 0.5
    solution = solve(rock_paper_scissors(rock=rock, paper=paper, scissors=scissors))
    np.testing.assert_allclose(solution.policy, margins / margins.sum(), atol=1e-9)
    assert solution.unique


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_condorcet_winner_is_played_alone(solver: str) -> None:
    strength = np.random.default_rng(0).normal(size=(20, 6))
    policy = nash(bradley_terry_game(strength), solver=solver)  # type: ignore[arg-type]
    assert np.array_equal(policy, np.eye(6)[strength.argmax(-1)])


@pytest.mark.parametrize("solver", SOLVERS)
def test_dominated_responses_are_not_played(solver: str) -> None:
    game = np.full((4, 4), 0.5)
    game[:3, :3] = rock_paper_scissors()
    game[:3, 3], game[3, :3] = 0.8, 0.2  # the fourth loses to all
    np.testing.assert_allclose(nash(game, solver=solver), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
def test_of_several_winners_the_one_of_greatest_entropy(solver: str) -> None:
    ties = solve(np.full((5, 5), 0.5), solver=solver)  # type: ignore[arg-type]
    np.testing.assert_allclose(ties.policy, np.full(5, 0.2))
    assert not ties.unique
    # two copies of rock share its third
    copied = rock_paper_scissors()[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])]
    np.testing.assert_allclose(nash(copied, solver=solver), [1 / 6, 1 / 6, 1 / 3, 1 / 3], atol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(nash(cyclic_game(6), solver=solver), np.full(6, 1 / 6), atol=1e-12)  # type: ignore[arg-type]
    # 0 and 1 tie; 0 beats 2 and 2 beats 1, so 1 may only be played as often as 0: the constraint binds
    game = np.array([[0.5, 0.5, 1], [0.5, 0.5, 0], [0, 1, 0.5]])
    np.testing.assert_allclose(nash(game, solver=solver), [0.5, 0.5, 0], atol=1e-6)  # type: ignore[arg-type]


def test_the_greatest_entropy_where_a_constraint_binds() -> None:
    # as above, but 2 loses to 0 by a margin of 0.25 only and beats 1 by 0.5: pi(1) <= pi(0)/2
    game = np.array([[0.5, 0.5, 0.75], [0.5, 0.5, 0], [0.25, 1, 0.5]])
    solution = solve(game)
    np.testing.assert_allclose(solution.policy, [2 / 3, 1 / 3, 0], atol=1e-9)
    assert solution.gap <= 1e-9


def test_a_thousand_random_games_against_nashpy() -> None:
    nashpy = pytest.importorskip("nashpy")
    for n in range(2, 9):
        games = random_game(n, games=143, seed=n)
        for game, policy in zip(games, nash(games), strict=True):
            for label in range(2 * n):
                # nashpy's pivoting ends without a strategy (0/0) from some labels; another one answers
                with np.errstate(invalid="ignore"):
                    theirs, _ = nashpy.Game(game, 1 - game).lemke_howson(initial_dropped_label=label)
                if len(theirs) == n and np.isfinite(theirs).all():
                    break
            np.testing.assert_allclose(policy, theirs, atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:nashpy")
def test_games_with_ties_against_all_equilibria_of_nashpy() -> None:
    nashpy = pytest.importorskip("nashpy")
    draws = np.random.default_rng(5).integers(-1, 2, (60, 4, 4))
    margins = np.triu(draws, 1) - np.triu(draws, 1).swapaxes(-1, -2)
    for game in 0.5 + margins / 2:
        solution = solve(game)
        assert solution.gap <= 1e-9
        extreme = [row for row, _ in nashpy.Game(game, 1 - game).vertex_enumeration()]
        assert extreme
        assert entropy(solution.policy) >= max(map(entropy, extreme)) - 1e-9
        assert solution.unique == (np.ptp(extreme, axis=0).max() < 1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 60])
def test_both_solvers_agree_and_the_gap_is_certified(n: int) -> None:
    draws = np.random.default_rng(n).integers(-1, 2, (20, n, n))
    margins = np.triu(draws, 1) - np.triu(draws, 1).swapaxes(-1, -2)
    for games in (random_game(n, games=20, seed=n), 0.5 + margins / 2):
        ours, theirs = solve(games), solve(games, solver="highs")
        assert ours.gap.max() <= 1e-9
        assert duality_gap(games, ours.policy).max() <= 1e-9
        assert np.array_equal(ours.unique, theirs.unique)
        np.testing.assert_allclose(ours.policy, theirs.policy, atol=1e-7)


def test_a_few_hundred_responses() -> None:
    solution = solve(random_game(400, seed=1))
    assert solution.gap <= 1e-12
    # the support of a random tournament's winner is odd, and about half
    assert 150 < (solution.policy > 0).sum() < 250
    assert (solution.policy > 0).sum() % 2 == 1


def test_the_winner_does_not_depend_on_the_scale_or_the_order() -> None:
    game = random_game(9, seed=4)
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(nash(game[np.ix_(order, order)]), nash(game)[order], atol=1e-12)
    np.testing.assert_allclose(nash(0.5 + 1e-4 * (game - 0.5)), nash(game), atol=1e-9)


def test_batches_keep_their_shape() -> None:
    games = random_game(4, games=(2, 3), seed=6)
    solution = solve(games)
    assert solution.policy.shape == (2, 3, 4)
    assert solution.gap.shape == solution.unique.shape == (2, 3)
    np.testing.assert_allclose(solution.policy[1, 2], nash(games[1, 2]), atol=1e-12)


def test_measures_on_rock_paper_scissors_by_hand() -> None:
    game = rock_paper_scissors()
    policy = [0.5, 0.3, 0.2]  # rock, paper, scissors
    # rock 0.25 + 0.2, paper 0.5 + 0.15, scissors 0.3 + 0.1
    np.testing.assert_allclose(win_rates_against(game, policy), [0.45, 0.65, 0.4])
    assert exploitability(game, policy) == pytest.approx(0.15)
    assert duality_gap(game, policy) == pytest.approx(0.30)
    assert np.array_equal(best_responses(game, policy), [False, True, False])
    assert preference(game, [0, 1, 0], policy) == pytest.approx(0.65)
    assert preference(game, policy, policy) == pytest.approx(0.5)
    assert exploitability(game, [1 / 3] * 3) == pytest.approx(0)


def test_policies_broadcast_over_games() -> None:
    games = random_game(4, games=5, seed=0)
    policies = np.random.default_rng(0).dirichlet(np.ones(4), size=(7, 5))
    values = exploitability(games, policies)
    assert values.shape == (7, 5)
    assert values[2, 3] == pytest.approx(exploitability(games[3], policies[2, 3]))
    assert exploitability(games, np.full(4, 0.25)).shape == (5,)


def test_regularised_exploitability_against_a_search() -> None:
    rng = np.random.default_rng(3)
    game, tau = random_game(3, seed=8), 0.2
    policy, reference = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))

    def kl(p: Array) -> Array:
        return np.asarray((p * np.log(p / reference)).sum(-1))

    rivals = rng.dirichlet(np.ones(3), size=200_000)
    payoffs = rivals @ (game @ policy) - tau * kl(rivals) + tau * kl(policy)
    found = regularised_exploitability(game, policy, reference, tau=tau)
    assert payoffs.max() - 0.5 <= found <= payoffs.max() - 0.5 + 1e-4


def test_bad_calls_are_refused() -> None:
    game = rock_paper_scissors()
    with pytest.raises(GameError, match="choose 'interior' or 'highs'"):
        nash(game, solver="simplex")  # type: ignore[arg-type]
    with pytest.raises(GameError, match=r"sum to 1\.5"):
        exploitability(game, [0.5, 0.5, 0.5])
    with pytest.raises(GameError, match=r"expected \[..., 3\]"):
        duality_gap(game, [0.5, 0.5])
    with pytest.raises(GameError, match="opponent"):
        preference(game, [1, 0, 0], [0.5, 0.5])
    with pytest.raises(GameError, match="tau"):
        regularised_exploitability(game, [1, 0, 0], [1, 0, 0], tau=0)
    with pytest.raises(GameError, match="never plays"):
        regularised_exploitability(game, [1, 0, 0], [0, 0.5, 0.5], tau=1)
    with pytest.raises(GameError, match=r"P\[0, 1\]"):
        nash([[0.5, 0.7], [0.7, 0.5]])


def test_condorcet_winners_and_winners_agree_on_random_games() -> None:
    games = random_game(5, games=300, seed=12)
    has = condorcet_winner(games)
    assert np.array_equal(nash(games)[has.any(-1)], has[has.any(-1)].astype(float))


@pytest.mark.slow
def test_two_thousand_responses() -> None:
    assert solve(random_game(2000, seed=1)).gap <= 1e-9
