"""What an iteration left out or did not finish, in sentences."""

import pytest

from sppo.rundir.summary import remarks


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"sampled": {}, "oracle": {"texts": 5, "texts_truncated": 0}, "missing_end_of_turn": 0}, []),
        (
            {"sampled": {"unfinished_thoughts": 1200}},
            ["1,200 responses that it learns from ended within a thought"],
        ),
        ({"unfinished_thoughts": 1}, ["1 held-out response ended within a thought"]),
        ({"missing_end_of_turn": 2}, ["2 held-out responses ended without the template's end of turn"]),
        ({"prompts_left_out": 4}, ["4 held-out prompts without a win rate"]),
        (
            {"oracle": {"pairs_left_out": 5, "one_order_pairs": 6, "texts": 9, "texts_truncated": 7}},
            [
                "5 pairs of the responses that it learns from left out",
                "6 pairs of the responses that it learns from judged in one order only",
                "7 of 9 texts exceeded the oracle's limit and were truncated there",
            ],
        ),
    ],
)
def test_remarks(row, expected):
    found = remarks(row)
    assert len(found) == len(expected)
    assert all(remark.startswith(start) for remark, start in zip(found, expected, strict=True))
