import numpy as np
import pytest

from sppo.benchmarks.head_to_head.score import interval, repetition, win_rates_against


def longer(prompts, responses):
    lengths = np.array([[len(text) for text in of_prompt] for of_prompt in responses], dtype=float)
    return (np.sign(lengths[:, :, None] - lengths[:, None, :]) + 1) / 2


def test_every_response_meets_every_response_of_the_other():
    found = win_rates_against(longer, ["a", "b"], [["xx", "x"], ["x", "x"]], [["x"], ["xxx"]])
    assert found.tolist() == [0.75, 0.0]


def test_sides_swapped_are_complements():
    ours, theirs = [["xx", "x"], ["", "x"]], [["x", "xxx"], ["xx", "x"]]
    one = win_rates_against(longer, ["a", "b"], ours, theirs)
    two = win_rates_against(longer, ["a", "b"], theirs, ours)
    np.testing.assert_allclose(one + two, 1)


def test_the_interval_has_its_coverage():
    """About 95% of the 95% intervals for the mean of 60 uniform values contain the true mean."""
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        found = interval(generator.random(60), confidence=0.95, resamples=300, seed=trial)
        assert found["low"] <= found["mean"] <= found["high"]
        held += found["low"] <= 0.5 <= found["high"]
    assert 0.90 <= held / 300 <= 0.98


def test_the_interval_of_equal_or_single_values_is_a_point():
    for values in ([0.3], [0.7] * 20):
        found = interval(np.array(values), confidence=0.95, resamples=100, seed=0)
        assert found["low"] == found["mean"] == found["high"] == pytest.approx(values[0])


def test_repetition_counts_four_grams_seen_before():
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 3)  # three 4-grams, one distinct
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
