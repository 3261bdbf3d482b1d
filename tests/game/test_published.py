"""The game's figures on real matrices and votes agree with those of OpenSpiel, of Evalica and of the data's providers."""

import csv
import itertools
import json
from collections import defaultdict

import numpy as np
import pytest

from sppo.game import (
    borda_scores,
    borda_winners,
    bradley_terry,
    bradley_terry_game,
    copeland_scores,
    cyclic_triples,
    smith_set,
    solve,
    win_rates_against,
)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(shared):
    """The folder of public games and votes."""
    folder = shared / "data"
    if not (folder / "games").is_dir() or not (folder / "human_votes").is_dir():
        pytest.skip("shared/data has no games and human_votes")
    return folder


# OpenSpiel


# OpenSpiel 2.0.2 on soccer10: lp_solver.solve_zero_sum_matrix_game of the margins, and the margins of the ten agents
# against that mixture, as nash_averaging gives them
WEIGHTS = {1: 0.5217837749813, 8: 0.3308440722876, 9: 0.1473721505982}
MARGINS = [
    -0.125067791,
    0,
    -0.13511038884,
    -0.016131498209,
    -0.0015757748097,
    -0.11802515049,
    -0.17610741485,
    -0.033133914667,
    0,
    0,
]


@pytest.mark.parametrize("solver", ["interior", "highs"])
def test_the_winner_of_the_soccer_agents_is_openspiels(data, solver):
    payoff = np.loadtxt(data / "games" / "soccer10" / "soccer.txt")
    solution = solve(payoff, solver=solver)
    expected = np.zeros(10)
    expected[list(WEIGHTS)] = list(WEIGHTS.values())
    np.testing.assert_allclose(solution.policy, expected, atol=1e-8)
    assert solution.unique
    np.testing.assert_allclose(win_rates_against(payoff, solution.policy) - 0.5, MARGINS, atol=1e-8)


# Evalica


@pytest.fixture
def llmfao(data):
    """The names of the 59 models, their wins against each other with ties as halves, and Evalica's scores."""
    scores = defaultdict(dict)
    for row in read_csv(data / "games" / "evalica" / "llmfao-golden.csv"):
        scores[row["algorithm"]][row["item"]] = float(row["score"])
    names = sorted(scores["average_win_rate"])
    wins = np.zeros((len(names), len(names)))
    for row in read_csv(data / "human_votes" / "llmfao" / "crowd-comparisons.csv"):
        left, right = names.index(row["left"]), names.index(row["right"])
        share = {"left": 1.0, "tie": 0.5, "right": 0.0}[row["winner"]]
        wins[left, right] += share
        wins[right, left] += 1 - share
    return names, wins, {name: np.array([found[model] for model in names]) for name, found in scores.items()}


def test_borda_scores_are_evalicas_average_win_rates(llmfao):
    """Evalica averages over the opponents that a model has met; the others are ties here."""
    _, wins, scores = llmfao
    counts = wins + wins.T
    met = (counts > 0).sum(-1)
    assert met.sum() == 2 * 927
    game = np.where(counts > 0, wins / np.maximum(counts, 1), 0.5)
    expected = (met * scores["average_win_rate"] + (58 - met) / 2) / 58
    np.testing.assert_allclose(borda_scores(game), expected, atol=1e-14)
    assert borda_winners(game).sum() == 1
    assert np.argmax(borda_winners(game)) == np.argmax(expected)


def test_a_reward_of_evalicas_strengths_is_found_again_in_its_game(llmfao):
    names, wins, scores = llmfao
    strength = np.log(scores["bradley_terry"])
    game = bradley_terry_game(strength)
    # Evalica's strengths give every model the number of wins that it has in the votes
    np.testing.assert_allclose(((wins + wins.T) * game).sum(-1), wins.sum(-1), atol=1e-9)
    np.testing.assert_allclose(bradley_terry(game), strength - strength.mean(), atol=1e-9)
    # in a game of a scalar reward all winners are the strongest model
    best = names[int(np.argmax(strength))]
    assert best == "GPT 4"
    for chosen in (copeland_scores(game), borda_scores(game), smith_set(game), solve(game).policy):
        assert names[int(np.argmax(chosen))] == best
    assert smith_set(game).sum() == 1
    np.testing.assert_array_equal(np.argsort(borda_scores(game)), np.argsort(strength))


# People's majorities


def majority_triples(votes):
    """The games of all triples of models between which people have voted on the same prompt.

    Args:
        votes: (prompt, model, other model, share) with share 1 where the model won, 1/2 where it tied.
    """
    shares = defaultdict(lambda: defaultdict(list))
    for prompt, a, b, share in votes:
        shares[prompt][min(a, b), max(a, b)].append(share if a < b else 1 - share)
    games = []
    for pairs in shares.values():
        for triple in itertools.combinations(sorted({model for pair in pairs for model in pair}), 3):
            places = list(itertools.combinations(range(3), 2))
            if all((triple[i], triple[j]) in pairs for i, j in places):
                game = np.full((3, 3), 0.5)
                for i, j in places:
                    game[i, j] = np.mean(pairs[triple[i], triple[j]])
                    game[j, i] = 1 - game[i, j]
                games.append(game)
    return np.array(games)


def test_cycles_in_the_majorities_of_people(data):
    votes = data / "human_votes"
    shares = {"model_a": 1.0, "tie": 0.5, "model_b": 0.0}
    rows = [json.loads(line) for line in (votes / "mt_bench_human" / "human.jsonl").read_text().splitlines()]
    mt_bench = majority_triples(
        ((row["question_id"], row["turn"]), row["model_a"], row["model_b"], shares[row["winner"]])
        for row in rows
    )
    assert (cyclic_triples(mt_bench).sum(), len(mt_bench)) == (36, 1378)
    shares = {"left": 1.0, "tie": 0.5, "right": 0.0}
    llmfao = majority_triples(
        (row["prompt"], row["left"], row["right"], shares[row["winner"]])
        for row in read_csv(votes / "llmfao" / "crowd-comparisons.csv")
    )
    assert (cyclic_triples(llmfao).sum(), len(llmfao)) == (12, 517)
