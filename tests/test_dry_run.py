import pytest
from safetensors import safe_open

from sppo import dry_run
from sppo.policy.load import count_parameters
from sppo.recipe import parse
from sppo.tinyworld import POLICY


def test_the_dry_run_counts_an_adapter_from_the_headers():
    plain = {"policy": {"model": "tinyworld"}, "prompts": {"train": "tinyworld/train"}}
    plain |= {"oracle": {"type": "panel"}, "iterations": 1}
    changes = {"training.adapter": {"target_modules": ["q_proj"], "r": 4}}
    estimate = dry_run.estimate(parse(plain, changes))
    with safe_open(POLICY / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if "q_proj" in name]  # noqa: SIM118
    adapter = sum(4 * (rows + columns) for rows, columns in shapes)
    whole = count_parameters(POLICY)
    assert estimate.training_bytes == 4 * whole + 4 * adapter * (1 + 1 + 2)
    assert estimate.policy_bytes == 4 * adapter
    full = dry_run.estimate(parse(plain)).training_bytes
    assert full == 4 * whole * 4
    rounded = dry_run.estimate(parse(plain, changes | {"policy.quantization": "nf4"})).training_bytes
    adapted = sum(rows * columns for rows, columns in shapes)
    assert estimate.training_bytes - rounded == pytest.approx(adapted * (4 - 4.127 / 8), rel=1e-3)
