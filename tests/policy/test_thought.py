"""Thoughts are left out of what is read of a response, and a thought without an end is no answer."""

import pytest

from sppo.policy.thought import Thought

MARKS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<reasoning>", "</reasoning>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
]


@pytest.mark.parametrize(("start", "end"), MARKS)
@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("A fox.", "A fox."),
        (" A fox. ", " A fox. "),  # without a thought the text stays as it is
        ("{start}Is it a dog?{end}\n\nA fox.", "A fox."),
        ("{start}{end}A fox.", "A fox."),
        ("Well. {start}Hm.{end}A {start}Or?{end}fox.", "Well. A fox."),
        ("Hm.{end}A fox.", "A fox."),  # it ends a thought that it has not begun
        ("{start}Hm.{end}", ""),
        ("{start}Hm", None),
        ("A fox. {start}Or a d", None),
        ("{start}Hm.{end}A {start}fox", None),
        ("", ""),
    ],
)
def test_an_answer_is_what_stands_outside_of_thoughts(start, end, response, answer):
    response = response.replace("{start}", start).replace("{end}", end)
    assert Thought(start, end).answer(response) == answer


@pytest.mark.parametrize(("start", "end"), MARKS)
@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Hm.{end}A fox.", "A fox."),
        ("{start}Hm.{end}A fox.", "A fox."),
        ("Hm.{end}A fox {start}Or?{end}.", "A fox ."),
        ("A fox.", None),
        ("", None),
    ],
)
def test_where_the_template_begins_the_thought_a_response_begins_within_it(start, end, response, answer):
    response = response.replace("{start}", start).replace("{end}", end)
    assert Thought(start, end, opened=True).answer(response) == answer
