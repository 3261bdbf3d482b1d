import io

import pytest
from rich.console import Console
from safetensors import safe_open

from sppo import dry_run
from sppo.policy.load import count_parameters
from sppo.progress import Terminal
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


RECIPE = {
    "policy": {"model": "tinyworld"},
    "prompts": {"train": {"source": "tinyworld/train", "limit": 40}, "held_out": 8},
    "oracle": {"type": "panel"},
    "iterations": 2,
    "sampling": {"max_new_tokens": 96},
}


def shown(**changes):
    console = Console(file=io.StringIO(), width=200)
    dry_run.show(parse(RECIPE, changes), Terminal(console))
    return console.file.getvalue()


def test_few_optimiser_steps_are_said_before_the_run():
    assert "WARNING: iterations 1 and 2: only 1 optimiser step; " in shown(**{"training.batch_prompts": 64})
    assert "WARNING" not in shown(**{"training.batch_prompts": 4})


def test_the_number_of_threads_is_said_or_how_it_will_be_found():
    assert "threads     1 on a CPU (cpu_threads)" in shown(cpu_threads=1)
    assert "threads     on a CPU as many as a measurement of about a second finds fastest" in shown()


def test_what_lies_on_this_machine_is_checked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dry_oracle.py").write_text("def prefer(prompts, responses):\n    return 0.5\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Describe a fox."}\n{"prompt": ""}\n' * 10)
    for changes, said in (
        ({"oracle": {"type": "function", "function": "dry_oracle:missing"}}, r"dry_oracle"),
        (
            {"oracle": {"type": "function", "function": "dry_oracle:prefer"}},
            r"oracle: a trial.*the shape \[\]",
        ),
        ({"sampling.max_new_tokens": 5000}, r"max_new_tokens: 5000, but 'tinyworld' takes \d+ tokens in all"),
        ({"prompts.train": str(tmp_path / "prompts.jsonl")}, r"prompts\.jsonl, line 2: "),
    ):
        with pytest.raises(ValueError, match=said):
            shown(**changes)
    skipped = {"prompts.train": str(tmp_path / "prompts.jsonl"), "prompts.invalid": "skip"}
    assert "held-out prompts" in shown(**skipped)
