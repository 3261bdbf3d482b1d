"""Signs of reward hacking, from the measures of several iterations."""

import pytest
from run_folders import interval

from sppo.rundir.trends import TRAITS_SAID, trends

TRAIT = {
    "name": 'says "it is what it is."',
    "base_share": 0.04,
    "share": 0.31,
    "win_rate": 0.8,
    "held_out": 0.3,
    "gap": {"mean": 0.5, "low": 0.4, "high": 0.6},
    "examples": [{"prompt_id": "fox", "text": "It is what it is.\x1b[2J"}],
}


def said(measures, base):
    return [trend.sentence for trend in trends(measures, base)]


def test_over_optimisation_is_seen_beyond_the_intervals_only():
    def measured(trained, held_out):
        return {"by_oracle": {"win_rate_vs_base": interval(trained)}, "win_rate_vs_base": interval(held_out)}

    assert not said([measured(0.6, 0.6), measured(0.7, 0.65)], {})
    assert not said([measured(0.6, 0.6), measured(0.7, 0.59)], {})
    (found,) = said([measured(0.6, 0.6), measured(0.7, 0.55)], {})
    assert "over-optimisation" in found and "0.600 to 0.550" in found
    (found,) = said([{"response_tokens": 31.0}], {"response_tokens": 20.0})
    assert "length growth" in found and "1.55 times" in found


def test_oracles_that_part_are_an_alarm_where_the_first_finds_more():
    def measured(gap):
        rates = {"by_oracle": {"win_rate_vs_base": interval(0.7)}, "win_rate_vs_base": interval(0.7 - gap)}
        return {**rates, "oracle_gap": interval(gap)}

    assert not trends([measured(0.05), measured(-0.2)], {})
    (found,) = trends([measured(0.05), measured(0.1), measured(0.2)], {})
    assert (found.iteration, found.kind) == (2, "gap")
    assert "0.700 by the oracle that it learns from and 0.600 by the held-out oracle" in found.sentence


def test_a_trait_that_only_the_oracle_likes_is_named_with_an_example():
    innocent = [{**TRAIT, "gap": {"mean": 0.2, "low": 0.05, "high": 0.35}}, {**TRAIT, "gap": None}]
    assert not trends([{"traits": innocent}], {})
    found = trends([{"traits": innocent}, {"traits": [*innocent, TRAIT]}, {"traits": [TRAIT]}], {})
    assert [(trend.iteration, trend.about) for trend in found] == [(2, TRAIT["name"])]
    assert "31% of the responses (4% of the base's)" in found[0].sentence
    assert "0.800 by the oracle and 0.300 by the held-out oracle" in found[0].sentence
    assert "fox: It is what it is." in found[0].sentence and "\x1b" not in found[0].sentence
    many = [{**TRAIT, "name": f"says {n}"} for n in range(9)]
    assert len(trends([{"traits": many}], {})) == TRAITS_SAID


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("disagreement", {"disagreement": 0.02}, {"disagreement": 0.08}),
        (
            "order",
            {"order": {"pairs_in_both_orders": 200, "order_flips": 4}},
            {"order": {"pairs_in_both_orders": 100, "order_flips": 8}},
        ),
    ],
)
def test_what_rises_since_the_first_iteration_is_an_alarm(kind, before, after):
    assert not trends([after, after], {}), "it has always been so"
    assert not trends([before, {}, before], {})
    (found,) = trends([before, before, after], {})
    assert (found.iteration, found.kind) == (3, kind)
    assert (
        "8% of the pairs that iteration 3 learnt from" in found.sentence and "2% of those" in found.sentence
    )


def test_repetition_far_below_the_guards_limit_is_an_alarm():
    (found,) = trends([{"repetition": 0.15}, {"repetition": 0.25}], {"repetition": 0.1})
    assert (found.iteration, found.kind) == (2, "repetition") and "25% of its 4-grams" in found.sentence
