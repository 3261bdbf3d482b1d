import json

import golden_training
import pytest


def deviation(found, stored):
    """The largest difference of a figure, in units of what rounding is allowed: 0.1% and 0.0005."""
    return max(
        abs(step[name] - was[name]) / (1e-3 * abs(was[name]) + 5e-4)
        for step, was in zip(found, stored, strict=True)
        for name in golden_training.FIGURES
    )


@pytest.fixture(scope="module")
def stored():
    return json.loads(golden_training.FILE.read_text())


@pytest.mark.parametrize("settings", [{}, {"pack_tokens": 1}, {"gradient_checkpointing": True}])
def test_twenty_steps_go_as_they_went(tmp_path, stored, settings):
    assert deviation(golden_training.trajectory(tmp_path, **settings), stored) < 1


def test_another_formula_would_show(stored, tmp_path, monkeypatch):
    """A log-partition off by a hundredth of eta is ten times what rounding is allowed."""
    from sppo import objectives

    formula = objectives.sppo

    def slipped(*args, eta, log_partition):
        return formula(*args, eta=eta, log_partition=log_partition + 0.01 * eta)

    monkeypatch.setattr(objectives, "sppo", slipped)
    assert deviation(golden_training.trajectory(tmp_path), stored) > 10
