"""Each causal family of transformers is trained with the right log-probabilities and gradients."""

import model_families
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sppo.policy.load import PolicyError
from sppo.training.log_probs import (
    Tree,
    measure_capabilities,
    measure_noise,
    response_log_probs,
    set_training_mode,
)
from sppo.training.worker import disable_dropout

BEYOND_ITS_LIMIT = {"llama, dynamic NTK", "phi3, longrope"}
"""Their context ends at the limit of their RoPE, so the trees are shorter than it."""


def trees(limited):
    ids = iter(model_families.draw_ids(400))

    def take(count):
        return [next(ids) for _ in range(count)]

    prompt, *responses = (8, 22, 3, 12) if limited else (30, 40, 17, 35)
    return [Tree(take(prompt), [take(count) for count in responses]), Tree(take(3), [take(responses[0])])]


def one_at_a_time(model, tree, response):
    """log pi(y|x) of one sequence without padding, written out."""
    ids = torch.tensor([tree.prompt + response])
    logits = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    predicted = logits[len(tree.prompt) - 1 : -1]
    return predicted.gather(1, torch.tensor(response)[:, None]).sum()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", model_families.NAMES)
def test_training_computes_what_one_sequence_at_a_time_does(name):
    model = model_families.make(name)
    capabilities = measure_capabilities(model)
    packed = trees(name in BEYOND_ITS_LIMIT)
    expected = torch.stack([one_at_a_time(model, tree, y) for tree in packed for y in tree.responses])
    weights = torch.linspace(-1, 1, len(expected))
    (expected * weights).sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    disable_dropout(model)
    set_training_mode(model, measure_noise(model, capabilities))
    values = response_log_probs(model, packed, capabilities)
    torch.testing.assert_close(values, expected, atol=2e-3, rtol=1e-4)
    (values * weights).sum().backward()
    total = sum(float(value.square().sum()) for value in gradients.values()) ** 0.5
    for key, parameter in model.named_parameters():
        if key in gradients:
            assert (parameter.grad - gradients[key]).norm() <= 2e-3 * total, key


def configured(kind, **settings):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**sizes, **heads, **special, **settings})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "settings", "attention"),
    [
        ("llama", {}, "pieces"),
        ("mistral", {"sliding_window": 300}, "pieces"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}, "pieces"),
        (
            "gpt_neo",
            {
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 100,
            },
            "rows",
        ),
        (
            "llama4_text",
            {"attention_chunk_size": 300, "num_local_experts": 2, "intermediate_size_mlp": 64},
            "rows",
        ),
    ],
)
def test_windows_and_chunks_longer_than_the_measured_trees_are_found(kind, settings, attention):
    model = configured(kind, **settings)
    before = model.config.to_dict()
    assert measure_capabilities(model).attention == attention
    assert model.config.to_dict() == before


def test_a_model_whose_rows_depend_on_their_padding_is_refused():
    model = configured("doge", keep_window_size=16)
    with pytest.raises(PolicyError, match="beside a longer one, because of keep_window_size: 16"):
        measure_capabilities(model)


def test_a_model_that_fails_is_refused_with_its_error(monkeypatch):
    model = configured("llama")

    def fail(*args, **kwargs):
        raise ValueError("this layer needs something else")

    monkeypatch.setattr(model.model.layers[0], "forward", fail)
    with pytest.raises(
        PolicyError, match=r"LlamaForCausalLM fails to compute .* this layer needs something else"
    ):
        measure_capabilities(model)


NOISY = [
    ("seed_oss", {"residual_dropout": 0.3}, False),
    ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.3}, False),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "embd_pdrop": 0.3, "attn_pdrop": 0.3}, False),
    ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, True),
    ("mixtral", {"num_local_experts": 2, "router_jitter_noise": 0.3}, True),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("kind", "settings", "noisy"), NOISY)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_noise_of_every_kind_is_off_while_training(kind, settings, noisy, checkpointing):
    model = configured(kind, **settings)
    packed = trees(limited=True)
    packed = [Tree([i % 60 for i in t.prompt], [[i % 60 for i in y] for y in t.responses]) for t in packed]
    capabilities = measure_capabilities(model)
    expected = response_log_probs(model, packed, capabilities)
    expected.sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    disable_dropout(model)
    assert measure_noise(model, capabilities) is noisy
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_training_mode(model, noisy)
    assert any(module.training for module in model.modules()) == (checkpointing or not noisy)
    values = response_log_probs(model, packed, capabilities)
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=1e-4)
    values.sum().backward()
    for key, value in gradients.items():
        torch.testing.assert_close(model.get_parameter(key).grad, value, atol=1e-3, rtol=1e-3)


def test_noise_that_cannot_be_switched_off_is_refused(monkeypatch):
    model = configured("llama")
    capabilities = measure_capabilities(model)
    block, forward = model.model.layers[0].mlp, model.model.layers[0].mlp.forward
    monkeypatch.setattr(block, "forward", lambda states: forward(states + torch.rand_like(states)))
    with pytest.raises(PolicyError, match="LlamaForCausalLM adds noise while it is trained"):
        measure_noise(model, capabilities)
