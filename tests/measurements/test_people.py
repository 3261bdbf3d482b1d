"""The arithmetic of measurements/people.py, on votes of our own; what it measures is measured by running it."""

import people
import pytest
from people import Voted

PAIRS = [
    Voted("one", "x", "long text", "short", ("a", "a", "tie"), "a"),
    Voted("one", "x", "no", "yes", ("b",), "tie"),
    Voted("two", "y", "no", "yes", ("a", "b"), "b"),
    Voted("two", "z", "no", "yes", ("tie",), "b"),
]


def share(choices, **setup):
    return float(people.agreement(PAIRS, choices, **setup).split()[0])


def test_agreement_by_hand():
    judge = people.with_each_vote(PAIRS, [pair.judge for pair in PAIRS])
    # of the votes a, a | none, the judge tied | a, b | none, the vote is a tie: two and one agree
    assert share(judge, with_ties=False) == 75.0
    assert share(judge, with_ties=True) == pytest.approx(100 * 3 / 7, abs=0.05)
    # of two people drawn from a pair: a and a both ways; with ties a and tie four times more; a and b never
    among = [list(people.permutations(pair.votes, 2)) for pair in PAIRS]
    assert share(among, with_ties=False) == 50.0
    assert share(among, with_ties=True) == 25.0
    assert people.agreement(PAIRS, judge, with_ties=True) == people.agreement(PAIRS, judge, with_ties=True)


def test_a_prompt_is_in_one_part_and_length_is_fitted_to_the_others():
    pairs = [
        Voted("one", f"x{n}", "a" * (10 + n), "b" * 5, ("a", "a") if n % 5 else ("tie", "tie"), "a")
        for n in range(12)
    ]
    of_prompt = people.parts(pairs)
    assert sorted(of_prompt.values()) == [part for part in range(people.PARTS) for _ in range(4)]
    predicted = people.by_length(pairs)
    assert all(value > 0.5 for value in predicted), "everywhere the longer response wins"
    # a fourth of the votes are ties, so of predictions in order about a fourth are called ties, the closest ones
    chosen = people.choose([0.5 + n / 100 for n in range(12)], pairs)
    assert chosen[0] == "tie" and chosen[-1] == "a"
    assert 1 <= chosen.count("tie") <= 5
