"""What is measured of a model is measured once for all models that differ in the values of their weights only."""

import model_families
import pytest
import torch

from sppo.policy.structure import measured_once, structure
from sppo.sampling.key_values import OneBatch, _Cohort
from sppo.sampling.probe import fastest_right_way
from sppo.training.log_probs import measure_capabilities, measure_noise
from sppo.training.worker import disable_dropout


def narrower(model):
    model.config.sliding_window = 8


def with_an_adapter(model):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules="all-linear"), model)


CHANGES = {
    "the configuration": narrower,
    "its layers": with_an_adapter,
    "the data type": lambda model: model.to(torch.bfloat16),
    "the attention": lambda model: model.set_attn_implementation("eager"),
    "a forward method of its own": lambda model: vars(model.lm_head).update(forward=model.lm_head.forward),
}


def test_models_with_other_weights_are_not_measured_again():
    forwards = []
    for seed in (0, 1):
        model = model_families.make("mistral", seed)
        disable_dropout(model)
        with_forwards = model.model.register_forward_hook(lambda *_: forwards.append(1))
        fastest_right_way(model)
        model.set_attn_implementation("sdpa")
        capabilities = measure_capabilities(model)
        assert not measure_noise(model, capabilities)
        assert (
            model.config._attn_implementation == "sppo_pieces"
        )  # the attention is set without a measurement, too
        with_forwards.remove()
        if seed == 0:
            measured = len(forwards)
    assert len(forwards) == measured


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_differs_otherwise_is_measured(change):
    seen = []
    measure = measured_once(seen.append)
    models = [model_families.make("mistral", seed) for seed in (0, 1)]
    assert structure(models[0]) == structure(models[1])
    change(models[1])
    for model in models:
        measure(model)
    assert seen == models


@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen2"])
@pytest.mark.parametrize("error", [-1, 1, 1000])
def test_the_probe_of_sampling_notices_a_window_that_is_wrong_by_a_token(monkeypatch, name, error):
    right = _Cohort.mask
    monkeypatch.setattr(
        _Cohort, "mask", lambda self, window, dtype: right(self, window and window + error, dtype)
    )
    assert fastest_right_way.__wrapped__(model_families.make(name)) is OneBatch


def test_noise_that_changes_few_tokens_is_found_by_the_random_numbers_that_it_takes(monkeypatch):
    model = model_families.make("mistral")
    capabilities = measure_capabilities(model)
    block, forward = model.model.layers[0].mlp, model.model.layers[0].mlp.forward

    def rarely_noisy(states):
        return forward(states + 9.0 * (torch.rand(()) < 1e-9) if block.training else states)

    monkeypatch.setattr(block, "forward", rarely_noisy)
    assert measure_noise(model, capabilities)
