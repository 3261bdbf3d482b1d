"""Theorem 4.1 with its constant, and the last iterate on a cycle."""

import numpy as np
import pytest

from sppo.game import GameError, exploitability, random_game, rock_paper_scissors
from sppo.game.convergence import (
    average_rates,
    draw,
    draw_simplex,
    last_iterates,
    regret_bound,
    save,
    theorem_bound,
    theorem_step_size,
)
from sppo.game.dynamics import MultiplicativeWeights, log_spaced, play
from sppo.game.preference_games import Array

RPS = rock_paper_scissors()
START = [0.8, 0.15, 0.05]


def games_of_many_sizes(count: int, largest: int) -> tuple[Array, Array, Array]:
    """Games of 2 to `largest` responses in one array: responses that are not there are never played."""
    sizes = np.random.default_rng(7).integers(2, largest + 1, count)
    games = random_game(largest, games=count, seed=11)
    there = np.arange(largest) < sizes[:, None]
    games = np.where(there[:, :, None] & there[:, None, :], games, 0.5)
    return games, there / sizes[:, None], sizes


def test_the_constants() -> None:
    assert theorem_step_size(2, 8) == pytest.approx(np.sqrt(np.log(2)))
    assert theorem_bound(2, 8) == pytest.approx(np.sqrt(np.log(2)) / 4)
    eta = theorem_step_size(5, 100)
    assert regret_bound(np.full(5, 0.2), eta, 100) == pytest.approx(theorem_bound(5, 100))
    assert regret_bound([1, 0], 1.0, 10) == np.inf
    with pytest.raises(GameError, match="at least 2 responses and 1 iteration"):
        theorem_bound(1, 10)


@pytest.mark.parametrize("iterations", [10, 32, 100, 316, 1000, 3162])
def test_the_bound_holds_on_a_thousand_games(iterations: int) -> None:
    assert worst_ratio(iterations) <= 1


@pytest.mark.long
def test_the_bound_holds_on_a_thousand_games_for_long() -> None:
    assert worst_ratio(10_000) <= 1


def worst_ratio(iterations: int) -> float:
    games, uniform, sizes = games_of_many_sizes(1000, 50)
    eta = np.array([theorem_step_size(n, iterations) for n in sizes])
    bound = np.array([theorem_bound(n, iterations) for n in sizes])
    average = play(MultiplicativeWeights(eta), games, iterations, initial=uniform).average[0]
    return float((exploitability(games, average) / bound).max())


def test_the_general_bound_holds_from_any_start() -> None:
    games = random_game(5, games=200, seed=3)
    first = [0.6, 0.2, 0.1, 0.07, 0.03]
    for eta in (0.05, 0.5):
        average = play(MultiplicativeWeights(eta), games, 300, initial=first).average[0]
        assert exploitability(games, average).max() <= regret_bound(first, eta, 300)


def test_on_rock_paper_scissors_the_average_converges_and_the_last_iterate_never_does() -> None:
    rates = average_rates(RPS, [100, 400, 1600, 6400, 25_600], initial=START)
    assert np.all(rates.average <= rates.bound)
    # the average spirals in, so its exploitability falls from 16-fold T to 16-fold T, not at every step
    assert np.all(rates.average[2:] < rates.average[:-2])
    assert rates.average[-1] < 0.01
    assert rates.last.min() > 0.15
    whole = play(
        MultiplicativeWeights(theorem_step_size(3, 6400)), RPS, 6400, initial=START, record=range(1, 6401)
    )
    assert exploitability(RPS, whole.last).min() > 0.15


def test_relative_entropy_to_the_winner_grows_on_a_cycle() -> None:
    run = play(MultiplicativeWeights(0.1), RPS, 2000, initial=START, record=range(1, 2001))
    distance = -np.log(run.last).mean(-1)
    assert np.all(np.diff(distance) > 0)


def test_curves_and_figures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rates = average_rates(RPS, [10, 100], initial=START)
    curves = last_iterates(RPS, 500, initial=START)
    by_name = {curve.name: float(curve.last[-1]) for curve in curves}
    assert by_name["multiplicative weights"] > 0.15
    assert by_name["COMAL"] < 1e-3
    assert list(curves[0].times) == log_spaced(500)
    for name in ("figure.svg", "again.svg", "figure.png"):
        save(draw(rates, curves), tmp_path / name)
    assert (tmp_path / "figure.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    save(draw_simplex(curves, names=("r", "p", "s"), winner=np.full(3, 1 / 3)), tmp_path / "simplex.svg")
    assert "COMAL" in (tmp_path / "simplex.svg").read_text()
    with pytest.raises(GameError, match=r"\.svg, \.png or \.pdf"):
        save(draw(rates, curves), tmp_path / "figure.txt")


def test_many_games_are_drawn_as_their_median() -> None:
    games = random_game(4, games=6)
    curves = last_iterates(games, 50)
    assert curves[0].last.shape[1:] == (6,)
    assert len(draw(average_rates(games, [10, 50]), curves).axes) == 2
    with pytest.raises(GameError, match="3 responses"):
        draw_simplex(curves, names=("a", "b", "c"), winner=np.full(3, 1 / 3))
