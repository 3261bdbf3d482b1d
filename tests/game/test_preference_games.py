import re

import numpy as np
import pytest

from sppo.game import (
    GameError,
    Table,
    bradley_terry_game,
    cyclic_game,
    majority_game,
    policy_weights,
    preference_game,
    random_game,
    read_table,
    rock_paper_scissors,
    write_table,
)


def test_accepts_lists_and_batches_and_copies() -> None:
    given = np.array([[0.5, 0.7], [0.3, 0.5]])
    game = preference_game(given)
    game[0, 0] = 9
    assert given[0, 0] == 0.5
    assert preference_game([[0.5, 1], [0, 0.5]]).dtype == np.float64
    assert preference_game(np.full((2, 3, 4, 4), 0.5)).shape == (2, 3, 4, 4)


def test_rounding_within_the_tolerance_is_removed_exactly() -> None:
    game = preference_game([[0.5, 0.6667], [0.3334, 0.5]], tolerance=1e-3)
    assert np.array_equal(game + game.T, np.ones((2, 2)))
    assert game[0, 1] == pytest.approx(0.66665)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[0.5, 0.7, 0.1], [0.3, 0.5, 0.2]], "square array .* shape \\(2, 3\\)"),
        ([0.5, 0.5], "square array"),
        (np.zeros((0, 0)), "at least 2 responses"),
        ([[0.5]], "at least 2 responses .* shape \\(1, 1\\)"),
        (np.zeros((0, 3, 3)), "at least 1 game"),
        ([[0.5, np.nan], [0.3, 0.5]], "P\\[0, 1\\] is nan; 1 of 4 entries .* compare it"),
        ([[0.5, np.inf], [0.3, 0.5]], "P\\[0, 1\\] is inf"),
        ([[0.5, 1.2], [-0.1, 0.5]], "P\\[0, 1\\] = 1.2 is not a probability .*A \\+ 1/2"),
        (
            [[0.5, 0.7], [0.4, 0.5]],
            "P\\[0, 1\\] \\+ P\\[1, 0\\] = 1.1, not 1 \\(off by 0.1, tolerance 1e-06.*average",
        ),
        ([[0.6, 0.5], [0.5, 0.5]], "P\\[0, 0\\] = 0.6, not 1/2 .*fill_diagonal"),
        ([["a", 0.5], [0.5, 0.5]], "array of numbers"),
        ([[0.5, 0.5], [0.5]], "array of numbers"),
    ],
)
def test_bad_matrices_are_refused_by_their_worst_entry(matrix: object, said: str) -> None:
    with pytest.raises(GameError, match=said):
        preference_game(matrix)


def test_the_worst_of_several_wrong_entries_is_named_with_its_game() -> None:
    games = random_game(4, games=3)
    games[1, 2, 3] += 0.01
    games[2, 0, 1] -= 0.02
    with pytest.raises(ValueError, match=re.escape("P[2, 0, 1] + P[2, 1, 0] = 0.98")):
        preference_game(games)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.5, 0.6], "sum to 1.1, not 1 .*divide by their sum"),
        ([0.5, np.nan], "policy\\[1\\] is nan"),
        ([1.5, -0.5], "policy\\[1\\] = -0.5 is negative"),
        ([0.5, 0.25, 0.25], "shape \\(3,\\); expected \\[..., 2\\]"),
        ([[0.5, 0.5], [0.9, 0.3]], "\\(index \\[1\\]\\) sum to 1.2"),
        (1.0, "shape \\(\\)"),
    ],
)
def test_bad_policies_are_refused(weights: object, said: str) -> None:
    with pytest.raises(GameError, match=said):
        policy_weights(weights, 2)


def test_generators_make_games() -> None:
    for game in (
        random_game(7, games=(2, 3), seed=1),
        bradley_terry_game([[0.0, 800.0, -3.0]]),
        rock_paper_scissors(rock=0.9, paper=0.8, scissors=0.7),
        cyclic_game(4, strength=0.8),
        cyclic_game(5),
        majority_game([[2, 1, 0], [0, 2, 1], [1, 0, 2]]),
    ):
        np.testing.assert_allclose(preference_game(game, tolerance=1e-15), game, atol=1e-15, rtol=0)


def test_generated_entries_by_hand() -> None:
    assert bradley_terry_game([np.log(3.0), 0.0])[0, 1] == pytest.approx(0.75)
    assert rock_paper_scissors()[0, 2] == 1  # rock beats scissors
    assert np.array_equal(cyclic_game(4)[0], [0.5, 1.0, 0.5, 0.0])
    # three annotators, one cycle: each response beats the next for two of three
    assert majority_game([[2, 1, 0], [0, 2, 1], [1, 0, 2]])[0, 1] == pytest.approx(2 / 3)
    # a tie of one annotator counts half
    assert majority_game([[1, 1], [2, 1]])[0, 1] == pytest.approx(0.75)
    assert majority_game([[1, 0], [0, 1]], weights=[0.9, 0.1])[0, 1] == pytest.approx(0.9)


def test_random_games_depend_on_the_seed_only() -> None:
    assert np.array_equal(random_game(5, seed=3), random_game(5, seed=3))
    assert not np.array_equal(random_game(5, seed=3), random_game(5, seed=4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_game(1),
        lambda: bradley_terry_game([1.0]),
        lambda: bradley_terry_game([1.0, np.nan]),
        lambda: bradley_terry_game(1.0),
        lambda: rock_paper_scissors(rock=0.5),
        lambda: cyclic_game(2),
        lambda: cyclic_game(3, strength=1.5),
        lambda: majority_game([1, 2, 3]),
        lambda: majority_game([[1, 2], [2, 1]], weights=[0.5, 0.6]),
    ],
)
def test_generators_refuse_what_makes_no_game(make: object) -> None:
    with pytest.raises(GameError):
        make()  # type: ignore[operator]


def test_tables_are_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    game = random_game(4, seed=2)
    for name, names in (("plain.csv", None), ("named.csv", ("a", "b", "c", "d")), ("array.npy", None)):
        write_table(tmp_path / name, game, names)
        back = read_table(tmp_path / name)
        np.testing.assert_allclose(back.payoff, game, atol=1e-12)
        assert back.names == (names or ("0", "1", "2", "3"))
    write_table(tmp_path / "many.npy", random_game(3, games=5))
    assert read_table(tmp_path / "many.npy").payoff.shape == (5, 3, 3)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0.5,0.9\n0.1,0.5\n", ("0", "1")),
        ("good, bad\n0.5,0.9\n0.1,0.5\n", ("good", "bad")),
        (",good,bad\ngood,0.5,0.9\nbad,0.1,0.5\n", ("good", "bad")),
        ("good,0.5,0.9\nbad,0.1,0.5\n", ("good", "bad")),
        (",0,1\n0,0.5,0.9\n1,0.1,0.5\n\n", ("0", "1")),
        ("\ufeff7,8\n0.5,0.9\n0.1,0.5\n", ("7", "8")),
    ],
)
def test_the_usual_shapes_of_csv(tmp_path, text: str, names: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "game.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(path)
    assert table == Table(table.payoff, names)
    np.testing.assert_allclose(table.payoff, [[0.5, 0.9], [0.1, 0.5]])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("game.csv", "", "empty"),
        ("game.csv", "0.5,x\n0.1,0.5\n", "line 1: 'x' is not a number"),
        ("game.csv", "0.5,0.9\n0.1,0.5,0.3\n", "line 2: 3 numbers, but the matrix has 2 rows"),
        ("game.csv", ",a,b\na,0.5,0.9\nc,0.1,0.5\n", "rows are named"),
        ("game.csv", "0.5,0.9\n0.2,0.5\n", "game.csv: P\\[0, 1\\] \\+ P\\[1, 0\\] = 1.1"),
        ("game.txt", "", "read from a .csv or .npy file, not from '.txt'"),
        ("game.npy", "not an array", "game.npy"),
        ("game.npy", "\x93NUMPY\x01\x00\x10\x00{'descr': ('<f8',", "game.npy is not an array of numbers"),
        ("game.csv", "0.5,0.5\n\udc80,0.5\n", "game.csv cannot be read as a CSV file in UTF-8"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, name: str, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1", "surrogateescape"))
    with pytest.raises(GameError, match=said):
        read_table(path)


def test_a_csv_holds_one_game(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GameError, match=r"write .* to \.npy"):
        write_table(tmp_path / "many.csv", random_game(3, games=2))
