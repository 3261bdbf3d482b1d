import numpy as np
import pytest

from sppo.game import GameError, empirical_game, rock_paper_scissors

# three iterations that improve, then one that only beats its predecessor
RUN = np.array([[0.5, 0.4, 0.3, 0.6], [0.6, 0.5, 0.4, 0.6], [0.7, 0.6, 0.5, 0.4], [0.4, 0.4, 0.6, 0.5]])


def test_a_run_that_went_round() -> None:
    game = empirical_game(RUN, names=["base", "1", "2", "3"])
    # of 1, 2, 3 each beats one other by 0.1: a cycle; base is dominated by 1
    np.testing.assert_allclose(game.nash.weights, [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-9)
    assert game.nash.exploitability == pytest.approx(0, abs=1e-9)
    assert game.last.exploitability == pytest.approx(0.1)
    assert game.last.gap == pytest.approx(0.2)
    assert game.last.best_response in ("base", "1")
    # against all alike: 2 wins (0.7 + 0.6 + 0.5 + 0.4)/4
    assert game.averaged.best_response == "2"
    assert game.averaged.exploitability == pytest.approx(0.05)
    assert game.last.interval is None
    assert game.names == ("base", "1", "2", "3")


def test_weights_of_the_averaged_policy() -> None:
    game = empirical_game(RUN, averaged=[0, 1 / 3, 1 / 3, 1 / 3])
    assert game.averaged.exploitability == pytest.approx(game.nash.exploitability, abs=1e-9)
    assert game.names == ("policy 1", "policy 2", "policy 3", "policy 4")


def test_challengers_answer_but_are_not_mixed() -> None:
    best_of_16 = [[0.8, 0.7, 0.65, 0.7]]
    game = empirical_game(RUN, challengers=best_of_16, challenger_names=["policy 4, best of 16"])
    assert len(game.nash.weights) == 4
    assert game.nash.best_response == "policy 4, best of 16"
    assert game.nash.exploitability == pytest.approx((0.7 + 0.65 + 0.7) / 3 - 0.5)
    assert game.last.win_rate == pytest.approx(0.7)


def test_intervals_over_prompts_cover_the_gap() -> None:
    rng = np.random.default_rng(0)
    wins = rng.random((400, 4, 4)) < RUN
    upper = np.triu(wins.astype(float), 1)
    prompts = upper + np.tril(1 - upper.swapaxes(-1, -2), -1) + 0.5 * np.eye(4)
    game = empirical_game(prompts, resamples=300)
    assert game.payoff.shape == (4, 4)
    low, high = game.last.interval or (1, 0)
    assert low <= 0.1 <= high
    assert high - low < 0.15
    again = empirical_game(prompts, resamples=300)
    assert again.last.interval == game.last.interval
    assert empirical_game(prompts, resamples=0).last.interval is None


def test_the_last_of_a_cycle() -> None:
    game = empirical_game(rock_paper_scissors())
    assert game.last.gap == pytest.approx(1)
    assert game.averaged.gap == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ["a", "b"]}, "expected 4 different names"),
        ({"names": ["a", "a", "b", "c"]}, "different names"),
        ({"averaged": [1, 1, 1, 1]}, "averaged sum to 4"),
        ({"challengers": [[0.5, 0.5]]}, "expected \\['c', 4\\]"),
        ({"challengers": [[0.5, 0.5, 0.5, 1.5]]}, "challengers\\[0, 3\\] = 1.5"),
        ({"challengers": [[0.5, 0.5, 0.5, np.nan]]}, "challengers\\[0, 3\\] = nan"),
        ({"confidence": 95}, "confidence"),
    ],
)
def test_bad_calls_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(GameError, match=said):
        empirical_game(RUN, **options)  # type: ignore[arg-type]


def test_win_rates_must_add_up() -> None:
    with pytest.raises(GameError, match="P\\[0, 1\\]"):
        empirical_game(np.where(np.eye(4), 0.5, 0.6))
    with pytest.raises(GameError, match="\\[prompts, m, m\\]"):
        empirical_game(np.full((2, 2, 3, 3), 0.5))
