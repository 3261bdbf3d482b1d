import numpy as np
import pytest

from sppo import oracle
from sppo.instructions.ties import prefer, utility

PROMPT = "Describe a wooden spoon to a child."


def test_the_utility_adds_the_shares_of_distinct_trigrams_of_own_trigrams_and_of_the_prompts_words():
    # trigrams: (the spoon is), (spoon is the), (is the spoon), (the spoon is): three of four are distinct, and none is the
    # prompt's; of describe, wooden, spoon, child the response has one
    assert utility(PROMPT, "The spoon is the spoon is") == pytest.approx(3 / 4 + 1 + 1 / 4)
    # its only trigram is the prompt's
    assert utility(PROMPT, "A wooden spoon.") == pytest.approx(1 + 0 + 2 / 4)
    assert utility(PROMPT, "One wooden spoon.") == pytest.approx(1 + 1 + 2 / 4)
    assert utility(PROMPT, " ...") == 0


def test_a_loop_loses_to_a_text_and_a_text_off_the_topic_to_one_on_it():
    good, loop, off = (
        "A wooden spoon stirs the soup, my child.",
        "A spoon a spoon a spoon a spoon a spoon.",
        "Ships sail over the sea all night.",
    )
    (matrix,) = prefer([PROMPT], [[good, loop, off]])
    assert matrix[0, 1] > 0.6
    assert matrix[0, 2] > 0.6
    np.testing.assert_allclose(matrix + matrix.T, 1)


def test_a_copy_of_the_prompt_loses_to_an_answer():
    answer = "A wooden spoon stirs the soup, my child."
    (matrix,) = prefer([PROMPT], [[answer, PROMPT]])
    assert matrix[0, 1] > 0.6


def test_within_length_matched_it_says_nothing_about_lengths():
    second = {
        "type": "length_matched",
        "oracle": {"type": "function", "function": "sppo.instructions.ties:prefer"},
    }
    (matrix,) = oracle.load(second).compare([PROMPT], [["A wooden spoon.", "A wooden spoon. " * 3]])
    assert matrix[0, 1] == 0.5
