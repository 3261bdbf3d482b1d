"""Weights divided over processes make the steps of one process that holds them all."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training_jobs import assert_same_weights, metrics

from sppo.recipe import RecipeError, Training
from sppo.training import check, train
from sppo.training.checkpoints import resumed

NEEDS_DEEPSPEED = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]
SHARDINGS = ["fsdp2", pytest.param("zero3", marks=NEEDS_DEEPSPEED)]
# few tokens in a pack: the processes have different numbers of them, and none of the last step's two prompts is left
UNEVEN = {"count": 9, "pack_tokens": 60}


def assert_same_trajectory(one, two):
    for name in ("loss", "grad_norm"):
        values = [[record[name] for record in metrics(which)] for which in (one, two)]
        # Adam divides by small numbers, which enlarges rounding: 1.6e-5 on a processor with AMX, less on others
        assert values[0] == pytest.approx(values[1], rel=4e-5), name
    assert_same_weights(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sharded_processes_follow_one(job, sharding):
    one = job("one", **UNEVEN)
    two = job("two", devices=2, sharding=sharding, checkpoint_steps=2, **UNEVEN)
    train(one)
    train(two)
    assert_same_trajectory(one, two)
    # sharded they were: each process wrote a part of the weights into the checkpoint
    parts = {"fsdp2": "pytorch_model_fsdp_0/__*_0.distcp", "zero3": "global_step4/*_model_states.pt"}
    assert len(list((Path(two.work) / "checkpoint-4").glob(parts[sharding]))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_sharded_training_that_goes_on_from_a_checkpoint_is_the_same_to_the_bit(job, sharding):
    two = job("two", devices=2, sharding=sharding, checkpoint_steps=2, **UNEVEN)
    train(two)
    again = dataclasses.replace(two, output=f"{two.output}-again", metrics=f"{two.metrics}-again")
    again = resumed(again, lambda text: None)
    assert again.begun == 4
    train(again)
    assert_same_weights(two, again, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", pytest.param("zero3", marks=NEEDS_DEEPSPEED)])
def test_sharding_composes_with_mixed_precision_and_checkpointed_activations(job, sharding):
    mixed = {"mixed_precision": "bf16", "gradient_checkpointing": True, "save_dtype": "bfloat16", "epochs": 1}
    one, two = job("one", **UNEVEN, **mixed), job("two", devices=2, sharding=sharding, **UNEVEN, **mixed)
    train(one)
    train(two)
    losses = [[record["loss"] for record in metrics(which)] for which in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    saved = load_file(Path(two.output) / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.bfloat16"}
    assert json.loads((Path(two.output) / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same_weights(one, two, atol=0.01, rtol=0.01)


def test_sharding_over_one_device_is_refused():
    with pytest.raises(ValueError, match="sharding: fsdp2 needs several devices; set devices"):
        Training(sharding="fsdp2")
    assert Training(sharding="zero3", devices="auto").sharding == "zero3"


def test_where_auto_finds_one_device_nothing_is_sharded():
    found = Training(sharding="fsdp2", devices="auto")
    assert Training.model_validate(found.on_devices(1).model_dump()).sharding is None
    assert found.on_devices(4).sharding == "fsdp2"


def test_zero3_without_deepspeed_is_refused_before_anything_is_computed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name)
    )
    with pytest.raises(RecipeError, match=r"zero3 needs DeepSpeed; pip install 'sppo\[deepspeed\]'"):
        check(Training(sharding="zero3", devices=2), [])
    check(Training(sharding="fsdp2", devices=2), [])
