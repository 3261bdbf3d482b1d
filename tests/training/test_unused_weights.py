"""The weights that get no gradient are known before several processes wait for it."""

import logging

import model_families
import pytest
import torch
from torch import nn

from sppo.training.log_probs import measure_capabilities, response_log_probs, small_trees
from sppo.training.unused_weights import has_weights_without_gradient


def with_adapters(model):
    peft = pytest.importorskip("peft")
    model.requires_grad_(False)
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules="all-linear"), model)


class Experts(nn.Module):
    """Experts of a layer, of which one gets all tokens."""

    def __init__(self, expert):
        super().__init__()
        self.experts = nn.ModuleList([expert, nn.Linear(64, 64)])

    def forward(self, states):
        return self.experts[0](states)


def with_an_idle_expert(model):
    model.model.layers[1].mlp = Experts(model.model.layers[1].mlp)
    return model


CASES = {
    "mistral": ("mistral", None),
    "gemma2": ("gemma2", None),
    "mixtral": ("mixtral", None),
    "deepseek_v32": ("deepseek_v32", None),
    "hy_v4": ("hy_v4", None),
    "axk2": ("axk2", None),
    "adapters": ("mistral", with_adapters),
    "adapters of an indexer": ("deepseek_v32", with_adapters),
    "an idle expert": ("mistral", with_an_idle_expert),
}
WITHOUT = {
    "deepseek_v32": "indexer",
    "hy_v4": "indexer",
    "axk2": "indexer",
    "adapters of an indexer": "indexer",
    "an idle expert": "mlp.experts.*.weight",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_weights_without_a_gradient_are_found_and_named(case, caplog):
    name, change = CASES[case]
    model = model_families.make(name)
    model = change(model) if change else model
    capabilities = measure_capabilities(model)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sppo.training.unused_weights"):
        assert has_weights_without_gradient(model, capabilities) == (case in WITHOUT)
    response_log_probs(model, small_trees(model, 2), capabilities).sum().backward()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    without = {key for key, value in trained.items() if value.grad is None}
    assert bool(without) == (case in WITHOUT)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (case in WITHOUT)
    if messages:
        assert messages[0].startswith(f"{len(without)} weights of {type(model).__name__} get no gradient")
        assert WITHOUT[case] in messages[0]
    assert all(torch.isfinite(value.grad).all() for key, value in trained.items() if key not in without)
