"""Which pairs are shown, and the seals."""

import collections
import itertools

import pytest
from arena_votes import KEY, responses

from sppo.arena.matches import Matches, RefusedVote


def test_everybody_sees_every_pair_once_and_what_was_voted_on_least_comes_first():
    matches = Matches(responses(prompts=5, same=(4,)), ["base", "iteration 1"], KEY)
    assert len(matches) == 4
    seen = []
    for _, voter in itertools.product(range(4), ("ann", "ben")):
        shown = matches.choose(voter, seen)
        assert set(shown.policies) == {"base", "iteration 1"} and shown.texts[0] != shown.texts[1]
        assert shown.texts[0].startswith(shown.policies[0])
        seen.append(
            {
                "prompt_id": shown.prompt_id,
                "policy_a": shown.policies[0],
                "policy_b": shown.policies[1],
                "voter": voter,
            }
        )
        counts = collections.Counter(row["prompt_id"] for row in seen)
        assert len(counts) == 4 or max(counts.values()) - min(counts.values()) <= 1
    assert matches.choose("ann", seen) is None and matches.choose("eve", seen) is not None


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [(["a"], ["a"], 0), (["a", "a"], ["a"], 0), (["a"], ["a", "b"], 1), (["b"], ["a"], 1)],
)
def test_prompts_with_the_same_responses_are_left_out_and_no_others(first, second, pairs):
    given = {"base": {"p": ("prompt", first)}, "iteration 1": {"p": ("prompt", second)}}
    matches = Matches(given, ["base", "iteration 1"], KEY)
    assert len(matches) == pairs
    if pairs:
        assert len(set(matches.choose("ann", []).texts)) == 2


def test_sides_are_drawn_at_random():
    matches = Matches(responses(prompts=1), ["base", "iteration 1"], KEY)
    left = [matches.choose("ann", []).policies[0] for _ in range(200)]
    assert 60 < left.count("base") < 140  # seven standard deviations


def test_a_seal_gives_back_what_was_shown_and_hides_it():
    matches = Matches(responses(), ["base", "iteration 1"], KEY)
    shown = matches.choose("ann", [])
    seal = matches.seal(shown)
    again = Matches(responses(), ["base", "iteration 1"], KEY)  # after a restart
    assert again.opened(seal) == shown
    assert "base" not in seal and "YmFzZQ" not in seal
    forged = ["", "a.b", None, 7, seal[:-1] + ("0" if seal[-1] != "0" else "1"), "f" * 32 + seal[32:]]
    for wrong in forged:
        with pytest.raises(RefusedVote):
            matches.opened(wrong)
    with pytest.raises(RefusedVote):
        Matches(responses(), ["base", "iteration 1"], b"other").opened(seal)
    changed = responses()
    for of_prompt in changed.values():
        of_prompt[shown.prompt_id] = ("another prompt", of_prompt[shown.prompt_id][1])
    with pytest.raises(RefusedVote):
        Matches(changed, ["base", "iteration 1"], KEY).opened(seal)
