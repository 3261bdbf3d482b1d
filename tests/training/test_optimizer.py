import importlib.util
import math

import pytest
import torch
from training_jobs import assert_same_weights, metrics
from transformers import trainer_optimizer

from sppo.recipe import RecipeError, Training
from sppo.training import train
from sppo.training.optimizer import arguments, check

BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "rmsprop", "sgd", "adafactor"])
def test_what_comes_with_torch_and_transformers_works(name):
    check(Training(optimizer=name))


@BITSANDBYTES
@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "rmsprop_bnb_8bit"])
def test_8_bit_optimisers_train(job, name):
    one, two = job("one", optimizer=name), job("two", optimizer=name.replace("_8bit", "_torch"))
    check(one.settings)
    train(one)
    assert all(math.isfinite(record["loss"]) for record in metrics(one))
    if name == "adamw_8bit":
        # states in 8 bits make nearly the steps of states in 32
        train(two)
        assert_same_weights(one, two, atol=5e-3, rtol=0.1)


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "ademamix", "lion_32bit", "rmsprop_bnb"])
def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch, name):
    monkeypatch.setattr(trainer_optimizer, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(RecipeError, match=rf"training.optimizer: '{name}' .*pip install.* bitsandbytes"):
        check(Training(optimizer=name))


def test_optimisers_that_need_another_training_step_are_refused():
    with pytest.raises(RecipeError, match="'lomo' is not supported"):
        check(Training(optimizer="lomo"))
    with pytest.raises(RecipeError, match=r"'adamw_torhc' is unknown; did you mean 'adamw_torch'"):
        check(Training(optimizer="adamw_torhc"))


def test_arguments_reach_the_optimiser_or_are_refused():
    check(Training(optimizer="rmsprop", optimizer_args={"alpha": 0.9, "momentum": 0.5}))
    with pytest.raises(RecipeError, match=r"'alhpa' has no effect on 'rmsprop'"):
        check(Training(optimizer="rmsprop", optimizer_args={"alpha": 0.9, "alhpa": 0.9}))
    with pytest.raises(RecipeError, match=r"optimizer_args {'alpha': 'much'} does not work on this machine"):
        check(Training(optimizer="rmsprop", optimizer_args={"alpha": "much"}))


def test_rmsprop_is_that_of_the_released_code():
    """torch's, at its defaults: v = 0.99 v + 0.01 g^2, x = x - lr g / (sqrt(v) + 1e-8)."""
    from sppo.training.optimizer import _resolve

    made, options, _ = _resolve(Training(optimizer="rmsprop", learning_rate=0.1))
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    weight.grad = torch.tensor([2.0])
    made([weight], **options).step()
    assert weight.item() == pytest.approx(1 - 0.1 * 2 / math.sqrt(0.01 * 4), abs=1e-6)
    assert arguments(Training(optimizer="rmsprop"))["optim_args"] is None
