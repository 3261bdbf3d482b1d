"""Traits that responses have taken on, and what the oracles think of them."""

import numpy as np
import pytest

from sppo import traits

PLAIN = "The fox lives in a forest. It eats mice."
PROMPTS = [f"prompt {n}" for n in range(10)]
BASE = [[PLAIN, "An owl flies at night. It turns its head."] for _ in PROMPTS]


def found(texts, by_oracle=None, held_out=None):
    return {trait.name: trait for trait in traits.risen(PROMPTS, texts, BASE, by_oracle, held_out)}


def test_a_new_phrase_is_named_in_full_with_what_both_oracles_think_of_it():
    texts = [[f"{PLAIN} I hope this helps you", BASE[0][1]] for _ in PROMPTS]
    by_oracle, held_out = np.tile([0.9, 0.5], (10, 1)), np.tile([0.4, 0.5], (10, 1))
    held_out[:5, 0] = 0.2
    trait = found(texts, by_oracle, held_out)['says "i hope this helps you"']
    assert (trait.base_share, trait.share) == (0.0, 0.5)
    assert (trait.win_rate, trait.held_out) == pytest.approx((0.9, 0.3))
    # ten differences, half 0.7 and half 0.5: the deviation is 0.1054, and t is 2.262 at 9 degrees of freedom
    assert trait.gap["mean"] == pytest.approx(0.6)
    assert trait.gap["high"] - 0.6 == pytest.approx(2.262 * 0.1054 / 10**0.5, rel=1e-3)
    assert trait.examples[0] == {"prompt_id": "prompt 0", "text": texts[0][0]}


def test_marks_lengths_and_repetition_are_traits():
    long = [[" ".join(f"word{n}-{i}" for i in range(30)), PLAIN] for n in range(10)]
    assert set(found(long)) == {"has more than 9 words"}
    marks = [["- mice - and - worms - that - it - eats", f"- {PLAIN}"] for _ in PROMPTS]
    assert any('"-"' in name or "- " in name for name in found(marks))
    twice = [["It eats the mice. It eats the mice.", PLAIN] for _ in PROMPTS]
    assert "repeats a sentence" in found(twice)


def test_a_fact_about_one_prompt_is_no_trait_and_neither_is_what_the_base_did():
    assert not found(BASE)
    one = [[PLAIN, BASE[0][1]] for _ in PROMPTS]
    one[3] = ["A whale sings long songs under water"] * 2
    assert not found(one)


def test_without_oracles_or_with_gaps_nothing_is_claimed():
    texts = [[f"{PLAIN} I hope this helps you", BASE[0][1]] for _ in PROMPTS]
    trait = next(iter(found(texts).values()))
    assert trait.win_rate is trait.held_out is trait.gap is None
    unknown = np.full((10, 2), np.nan)
    trait = next(iter(found(texts, np.full((10, 2), 0.5), unknown).values()))
    assert trait.win_rate == 0.5 and trait.held_out is None and trait.gap is None
