"""The trial of the oracles before a run."""

import json

import numpy as np
import pytest
from small_runs import play, small

from sppo.rundir.reader import RunReader
from sppo.stages.models import Models
from sppo.stages.oracle_trial import try_oracles

THINGS = ("a fox", "a drum", "rain", "soup", "a tram", "a hat")


@pytest.fixture
def verifiable(tmp_path):
    """A verifiable oracle and its prompts: it answers no prompt but these."""
    prompts = [f"Describe {thing}." for thing in THINGS]
    constraint = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [{"key": key, "prompt": prompt, **constraint} for key, prompt in enumerate(prompts)]
    (tmp_path / "constraints.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return {"type": "verifiable", "constraints": str(tmp_path / "constraints.jsonl")}


@pytest.mark.parametrize(
    "around",
    [
        lambda oracle: oracle,
        lambda oracle: {**oracle, "tie_break": {"type": "panel"}},
        lambda oracle: {"type": "panel", "members": [{"type": "panel"}, oracle]},
        lambda oracle: {"type": "near_tie", "oracle": oracle},
        lambda oracle: {"type": "length_matched", "oracle": {"type": "panel", "members": [oracle]}},
    ],
    ids=["alone", "with a tie break", "in a panel", "in a wrapper", "in a panel in a wrapper"],
)
def test_an_oracle_that_knows_its_prompts_only_is_not_asked_about_others(verifiable, around):
    oracle = around(verifiable)
    for changes in ({"oracle": oracle}, {"evaluation.oracle": oracle}):
        try_oracles(Models(small(**changes)))


def test_a_run_learns_from_a_verifiable_oracle(verifiable, tmp_path):
    changes = {
        "iterations": 1,
        "prompts": {"train": str(tmp_path / "prompts.jsonl"), "held_out": 2},
        "oracle": verifiable,
    }
    play(small(**changes), tmp_path / "run")
    compared = list(RunReader(tmp_path / "run").compared(1))
    assert len(compared) == len(THINGS) - 2
    for row, matrix in compared:
        kept = np.array(["," not in text for text in row.texts], dtype=float)
        np.testing.assert_array_equal(matrix, 0.5 + (kept[:, None] - kept[None, :]) / 2)
