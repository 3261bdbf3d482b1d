import datetime

import pytest

from sppo.recipe import RecipeError, parse


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"template_date": "26 Jul 2024"}, "template_date: must be a date such as 2024-07-26"),
        ({"template_date": "2024-13-01"}, "template_date: must be a date"),
        ({"template_date": 7}, "template_date: must be a date"),
        ({"thought": ["<think>"]}, "thought"),
        ({"thought": ["<think>", "<think>"]}, "thought: must be two different texts"),
        ({"thought": ["<think>", " "]}, "thought: must be two different texts"),
        ({"template_arguments": ["enable_thinking"]}, "template_arguments"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, reason):
    with pytest.raises(RecipeError, match=rf"policy\.{reason}"):
        parse({"policy": {"model": "tinyworld", **settings}, "prompts": {"train": "tinyworld/train"}})


def test_a_date_may_be_written_as_yaml_writes_dates():
    mapping = {"prompts": {"train": "tinyworld/train"}, "oracle": {"type": "panel"}}
    for date in ("2024-07-26", datetime.date(2024, 7, 26)):
        recipe = parse({"policy": {"model": "tinyworld", "template_date": date}, **mapping})
        assert recipe.policy.template_date == "2024-07-26"
        assert recipe.policy.changed_template_settings == {"template_date": "2024-07-26"}
    assert parse({"policy": {"model": "tinyworld"}, **mapping}).policy.changed_template_settings == {}
