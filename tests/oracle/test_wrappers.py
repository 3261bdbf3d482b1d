import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from sppo import oracle
from sppo.benchmarks.options import read_oracle
from sppo.comparisons import Choice
from sppo.oracle import CheckedOracle
from sppo.oracle.wrappers import (
    Wrapper,
    fit_penalty,
    length_controlled,
    length_matched,
    near_tie,
    similarity_gated,
    word_overlap,
)
from sppo.recipe import RecipeError, parse_oracle
from sppo.rundir.tables import PreferencesRow, to_table
from sppo.stages.annotate import preference_rows
from sppo.winrates import win_rates

PANEL = {"type": "panel"}
TEXTS = [["A fox.", "A fox is a wild animal. It has a bushy tail.", "", "I do not know."]] * 2
PROMPTS = ["Tell me about a fox.", "Describe rain."]


def pair(probability):
    return np.array([[0.5, probability], [1 - probability, 0.5]])


def test_a_length_penalty_by_hand():
    # logit 0.8 = log 4; tanh((300 - 100) / 200) = tanh 1
    found = length_controlled(pair(0.8), np.array([300.0, 100.0]), penalty=0.5, scale=200)
    assert logit(found[0, 1]) == pytest.approx(np.log(4) - 0.5 * np.tanh(1))
    assert length_controlled(pair(1.0), np.array([9.0, 1.0]), penalty=100, scale=1)[0, 1] == 1
    same = length_controlled(pair(0.8), np.array([7.0, 7.0]), penalty=100, scale=1)
    np.testing.assert_allclose(same, pair(0.8))


def test_matched_lengths_by_hand():
    lengths = np.array([150.0, 100.0])
    np.testing.assert_array_equal(length_matched(pair(0.9), lengths, max_ratio=1.5), pair(0.9))
    np.testing.assert_array_equal(length_matched(pair(0.9), lengths, max_ratio=1.49), pair(0.5))
    np.testing.assert_array_equal(length_matched(pair(0.9), np.array([1.0, 0.0]), max_ratio=1.0), pair(0.9))


def test_near_ties_by_hand():
    for before, after in {0.5: 0.5, 0.55: 0.525, 0.525: 0.50625, 0.6: 0.6, 0.9: 0.9, 1.0: 1.0}.items():
        found = near_tie(pair(before), delta=0.1)
        np.testing.assert_allclose(found, pair(after), atol=1e-12)


def test_word_overlap_by_hand():
    texts = ["A red fox.", "a RED fox", "A fox, red", "Rain falls", "", "?!"]
    (found,) = word_overlap([texts])
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diagonal(found), 1)
    assert found[0, 1] == 1  # neither case nor punctuation counts
    assert found[0, 2] == 2 * 3 / (5 + 5)  # three words in common, and no neighbours
    assert found[0, 3] == found[0, 4] == 0
    assert found[4, 5] == 1  # no word either


def test_similar_responses_are_drawn_together_by_hand():
    for similarity, after in {0.0: 0.9, 0.8: 0.9, 0.9: 0.7, 1.0: 0.5}.items():
        found = similarity_gated(pair(0.9), np.array([[1, similarity], [similarity, 1]]), threshold=0.8)
        np.testing.assert_allclose(found, pair(after), atol=1e-12)


FULL_STOPS = """
import numpy as np

def prefer(prompts, responses):
    def score(text):
        return 3.0 * text.endswith(".") + 0.5 * ("Rain" in text)
    scores = np.array([[score(text) for text in texts] for texts in responses])
    return 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))
"""


def test_near_identical_responses_are_no_longer_the_best_and_the_worst(tmp_path, monkeypatch):
    """The case it is for: the same text with and without a full stop is trained apart, and is not behind the gate."""
    (tmp_path / "full_stops.py").write_text(FULL_STOPS)
    monkeypatch.chdir(tmp_path)
    judge = {"type": "function", "function": "full_stops:prefer", "own_process": False}
    fox = "The fox is a clever wild animal with red fur"
    texts = [[fox, f"{fox}.", "Rain falls from the clouds"]]
    chosen = []
    for mapping in (judge, {"type": "similarity", "oracle": judge}):
        (rates,) = win_rates(oracle.load(mapping).compare(["Tell me something."], texts))
        chosen.append((int(rates.argmax()), int(rates.argmin())))
    assert chosen == [(1, 0), (1, 2)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([-100.0, -1.0, 0.3, 100.0]), st.sampled_from([1.0, 500.0]))
def test_adjusted_preferences_are_preferences(seed, penalty, scale):
    generator = np.random.default_rng(seed)
    above = np.triu(generator.random((5, 5)).round(generator.integers(0, 8)), 1)
    matrix = above + np.tril(1 - above.T, -1) + np.eye(5) / 2
    lengths = generator.integers(0, 2000, 5).astype(float)
    order = generator.permutation(5)
    for adjust in (
        lambda p, n: length_controlled(p, n, penalty=penalty, scale=scale),
        lambda p, n: length_matched(p, n, max_ratio=1.3),
        lambda p, n: near_tie(p, delta=0.2),
        lambda p, n: similarity_gated(p, np.exp(-np.abs(n[:, None] - n) / 500), threshold=0.4),
    ):
        found = adjust(matrix, lengths)
        np.testing.assert_allclose(found + found.T, 1, atol=1e-12)
        np.testing.assert_allclose(np.diagonal(found), 0.5)
        assert found.min() >= 0
        assert found.max() <= 1
        permuted = adjust(matrix[order][:, order], lengths[order])
        np.testing.assert_allclose(permuted, found[order][:, order], atol=1e-12)


def test_the_fitted_penalty_is_the_one_that_was_put_in():
    lengths = np.random.default_rng(0).integers(10, 900, (50, 5)).astype(float)
    difference = lengths[:, :, None] - lengths[:, None, :]
    matrix = expit(1.25 * np.tanh(difference / 300))
    fitted = fit_penalty(matrix.ravel(), difference.ravel(), scale=300)
    assert fitted == pytest.approx(1.25, abs=1e-4)
    np.testing.assert_allclose(length_controlled(matrix, lengths, penalty=fitted, scale=300), 0.5, atol=1e-4)
    assert fit_penalty(matrix.ravel(), np.zeros(matrix.size), scale=300) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "length_controlled", "penalty": 0.8},
        {"type": "length_matched", "max_ratio": 3.0},
        {"type": "near_tie", "delta": 0.3},
    ],
)
def test_around_a_panel_every_answer_is_kept(settings):
    wrapped = oracle.load({**settings, "oracle": PANEL})
    matrix, parts = wrapped.compare_with_components(PROMPTS, TEXTS)
    inner = oracle.load(PANEL).compare_with_components(PROMPTS, TEXTS)
    np.testing.assert_array_equal(parts["panel"], inner.matrix)
    assert list(parts) == ["panel", "panel/scholar", "panel/editor", "panel/host"]
    np.testing.assert_allclose(
        np.mean([inner.components[name] for name in ("scholar", "editor", "host")], axis=0), inner.matrix
    )
    assert not np.allclose(matrix, inner.matrix)
    np.testing.assert_array_equal(matrix, wrapped.compare(PROMPTS, TEXTS))
    # no answer depends on what is asked beside it, or on the order of the responses
    np.testing.assert_array_equal(matrix[1:], wrapped.compare(PROMPTS[1:], TEXTS[1:]))
    order = [2, 0, 3, 1]
    permuted = wrapped.compare(PROMPTS, [[of[k] for k in order] for of in TEXTS])
    np.testing.assert_array_equal(permuted, matrix[:, order][:, :, order])


class Asked:
    """An oracle that can be asked about pairs, and remembers which."""

    def compare(self, prompts, responses):
        raise AssertionError("some pairs were wanted, and it was asked about all")

    def compare_pairs(self, prompts, responses, wanted):
        self.wanted = wanted
        return np.where(wanted, oracle.load(PANEL).compare(prompts, responses), np.nan)


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "length_controlled", "penalty": 0.8},
        {"type": "length_matched", "max_ratio": 3.0},
        {"type": "near_tie", "delta": 0.3},
    ],
)
def test_what_is_inside_is_asked_about_the_wanted_pairs_alone(settings):
    config = parse_oracle({**settings, "oracle": PANEL})
    inner = Asked()
    found = CheckedOracle(Wrapper(CheckedOracle(inner), "panel", config.adjust))
    wanted = np.zeros((2, 4, 4), dtype=bool)
    wanted[:, 0, 1] = wanted[:, 2, 3] = True
    both = wanted | wanted.swapaxes(1, 2) | np.eye(4, dtype=bool)
    whole = oracle.load({**settings, "oracle": PANEL}).compare(PROMPTS, TEXTS)
    np.testing.assert_array_equal(found.compare_pairs(PROMPTS, TEXTS, wanted), np.where(both, whole, np.nan))
    np.testing.assert_array_equal(inner.wanted, both)


def test_comparisons_of_the_oracle_inside_are_the_wrappers():
    def chosen(**inner):
        wrapped = {"type": "near_tie", "oracle": {"type": "length_matched", "oracle": inner}}
        return parse_oracle(wrapped).chosen_comparisons()

    adaptive = {"type": "adaptive", "budget": 48}
    assert chosen(type="pairrm", comparisons=adaptive).of(16) == Choice("adaptive", 16, 48)
    assert chosen(type="panel").type == "all"
    assert chosen(type="reward_model", model="m") is None


def test_wrappers_stand_around_wrappers_and_in_panels():
    inner = {"type": "near_tie", "delta": 0.2, "oracle": PANEL}
    around = {"type": "length_controlled", "penalty": 1.0, "oracle": inner}
    parts = (
        oracle.load({"type": "panel", "members": [around, PANEL, PANEL]})
        .compare_with_components(PROMPTS, TEXTS)
        .components
    )
    assert list(parts)[:3] == [
        "length_controlled",
        "length_controlled/near_tie",
        "length_controlled/near_tie/panel",
    ]
    assert {"panel", "panel #2", "panel #2/host"} <= set(parts)


def test_the_parts_stand_in_the_preferences_of_a_run():
    found = oracle.load({"type": "near_tie", "delta": 0.2, "oracle": PANEL}).compare_with_components(
        PROMPTS, TEXTS
    )
    rows = preference_rows(["a", "b"], found)
    back = to_table(rows, PreferencesRow).to_pylist()
    assert [row["prompt_id"] for row in back] == ["a", "b"]
    for number, row in enumerate(back):
        np.testing.assert_array_equal(row["matrix"], found.matrix[number])
        parts = {part["oracle"]: part["matrix"] for part in row["components"]}
        assert list(parts) == list(found.components)
        for name, matrix in parts.items():
            np.testing.assert_array_equal(matrix, found.components[name][number])


def test_which_oracles_cannot_go_round():
    def transitive(**settings):
        return parse_oracle(settings).is_transitive

    assert transitive(type="reward_model", model="m")
    assert transitive(type="pairrm", probability="averaged")
    assert not transitive(type="pairrm")
    assert not transitive(type="general_preference", model="m")
    assert not transitive(type="panel")


def test_a_wrapper_on_the_command_line_is_not_taken_for_a_recipe():
    wrapped = "{type: near_tie, delta: 0.2, oracle: {type: panel}}"
    assert read_oracle(wrapped) == parse_oracle({"type": "near_tie", "delta": 0.2, "oracle": PANEL})
    assert read_oracle("{oracle: {type: panel}}") == parse_oracle(PANEL)


def test_what_a_wrapper_depends_on():
    def identity(**settings):
        return oracle.identity(parse_oracle({"type": "near_tie", "delta": 0.2, "oracle": PANEL, **settings}))

    assert identity() == identity()
    assert identity() != identity(delta=0.3)
    assert identity() != identity(oracle={"type": "panel", "weights": [1.0, 1.0, 2.0]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"type": "near_tie"}, "near_tie.oracle: missing"),
        ({"type": "near_tie", "oracle": {"type": "panl"}}, "did you mean 'panel'"),
        ({"type": "near_tie", "oracle": PANEL, "delta": 0.6}, "delta: must be less than or equal to 0.5"),
        ({"type": "length_controlled", "oracle": PANEL}, "penalty: missing"),
        ({"type": "length_controlled", "oracle": PANEL, "penalty": 1.0, "scal": 3}, "did you mean `scale`"),
        ({"type": "length_matched", "oracle": PANEL, "max_ratio": 0.9}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(RecipeError) as caught:
        parse_oracle(wrong)
    assert message.removeprefix("near_tie.") in str(caught.value)
