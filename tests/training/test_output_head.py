import math

import pytest
import torch
import transformers
from torch import nn

from sppo.policy import load as policies
from sppo.training import output_head
from sppo.training.log_probs import Capabilities, Tree, measure_capabilities, response_log_probs
from sppo.training.output_head import Logits, causal_model, fused, measure_logits, token_log_probs

TREES = [Tree([5, 6, 7], [[40, 41, 3], [50, 3]]), Tree([10, 11], [[7, 9, 8, 3]])]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def written_out(hidden, weight, bias, targets, logits):
    z = nn.functional.linear(hidden, weight, bias) * logits.scale
    if logits.cap is not None:
        z = logits.cap * torch.tanh(z / logits.cap)
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (23, 8), "weight": (1100, 8), "bias": (1100,)}
    found = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}
    return found, torch.randint(0, 1100, (23,), generator=generator)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("logits", [Logits(), Logits(0.25), Logits(3.0, 2.0), Logits(cap=30.0)])
def test_log_probabilities_and_gradients_are_those_of_the_plain_computation(operands, with_bias, logits):
    values, targets = operands
    values = {**values, "bias": values["bias"] if with_bias else None}  # three tiles of the vocabulary

    def gradients(function):
        inputs = {name: v.clone().requires_grad_() for name, v in values.items() if v is not None}
        found = function(inputs["hidden"], inputs["weight"], inputs.get("bias"), targets, logits)
        (found * torch.arange(len(found))).sum().backward()
        return [found.detach(), *(value.grad for value in inputs.values())]

    for one, two in zip(gradients(token_log_probs), gradients(written_out), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_a_frozen_head_gets_no_gradient(operands):
    values, targets = operands
    hidden = values["hidden"].requires_grad_()
    token_log_probs(hidden, values["weight"], None, targets).sum().backward()
    assert values["weight"].grad is None and hidden.grad is not None


def test_bfloat16_products_are_summed_in_float32(operands):
    values, targets = operands
    hidden, weight = (values[name].bfloat16().requires_grad_() for name in ("hidden", "weight"))
    found = token_log_probs(hidden, weight, None, targets)
    assert found.dtype == torch.float32
    exact = written_out(hidden.double(), weight.double(), None, targets, Logits())
    torch.testing.assert_close(found, exact.float(), atol=0.05, rtol=0.01)
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    (given,) = torch.autograd.grad(found.sum(), hidden)
    assert given.dtype == torch.bfloat16
    assert (given - wanted).norm() < 0.01 * wanted.norm()


def test_no_tensor_of_tokens_times_vocabulary_is_made(operands, monkeypatch):
    """No tensor that either pass allocates is larger than a tile or the weight."""
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens, width, vocabulary = 600, 4, 20_000
    monkeypatch.setattr(output_head, "_TILE", {"cpu": tokens * 1000})
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for value in found if isinstance(found, tuple | list) else [found]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes() // value.element_size())
            return found

    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with Sizes():
        token_log_probs(hidden, weight, None, torch.randint(0, vocabulary, (tokens,))).sum().backward()
    assert tokens * 1000 <= largest < 2 * tokens * 1000 < tokens * vocabulary


# how a model's logits come of its head

ODD = {
    "biased": (transformers.PhiConfig, {}, Logits()),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0}, Logits(0.25)),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.0625}, Logits(0.0625)),
    "gemma-2": (
        transformers.Gemma2Config,
        {"final_logit_softcapping": 2.0, "head_dim": 8, "num_key_value_heads": 4},
        Logits(cap=2.0),
    ),
    "tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}, Logits()),
}


@pytest.mark.parametrize("name", ODD)
def test_scaled_capped_biased_and_tied_heads_give_the_models_own_log_probabilities(name):
    config, settings, expected = ODD[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**SMALL, **settings})).eval()
    if name == "biased":
        nn.init.normal_(model.lm_head.bias)
    assert measure_logits(model) == expected
    own = response_log_probs(model, TREES, Capabilities("mask", None))
    mine = response_log_probs(model, TREES, Capabilities("mask", expected))
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(own.square().sum(), list(model.parameters()))
    given = torch.autograd.grad(mine.square().sum(), list(model.parameters()))
    for one, two in zip(given, wanted, strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm()


def test_a_head_that_is_no_plain_product_keeps_the_models_own(tiny_model, caplog):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    expected = response_log_probs(model, TREES, Capabilities("mask", None))

    class Squashed(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).abs().sqrt()

    model.lm_head.__class__ = Squashed
    found = measure_capabilities(model)
    assert (found.attention, found.logits) == ("pieces", None)
    assert "the output head of LlamaForCausalLM is not fused" in caplog.text
    model.lm_head.__class__ = nn.Linear
    torch.testing.assert_close(response_log_probs(model, TREES, found), expected)


def test_wrappers_hooks_and_forwards_are_as_before(tiny_model):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    called = []
    model.lm_head.register_forward_hook(lambda module, args, output: called.append(output.shape))
    model.register_forward_pre_hook(lambda module, args: called.append("model"))

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    wrapped = Wrapper(model)
    assert causal_model(wrapped) is model
    found = measure_capabilities(wrapped)
    assert found.logits == Logits()
    called.clear()
    response_log_probs(wrapped, TREES, found)
    assert called == ["model", torch.Size([9])]
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids).logits.shape == (1, 3, 400)
    with pytest.raises(RuntimeError), fused(model, Logits(), ids[0], ids[0]):
        raise RuntimeError
    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head)


def test_of_an_adapter_only_the_adapter_gets_gradients(tiny_model):
    peft = pytest.importorskip("peft")
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    expected = response_log_probs(model, TREES, measure_capabilities(model)).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"]))
    assert causal_model(adapted) is model
    found = measure_capabilities(adapted)
    assert found.logits == Logits()
    mine = response_log_probs(adapted, TREES, found)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)  # B is zero at first
    mine.sum().backward()
    assert model.lm_head.weight.grad is None
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, reentrant):
    model = policies.load(tiny_model("gemma-2"), dtype="float32", device="cpu").train()
    found = measure_capabilities(model)
    wanted = torch.autograd.grad(response_log_probs(model, TREES, found).sum(), list(model.parameters()))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    response_log_probs(model, TREES, found).sum().backward()
    for parameter, two in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, two)
        assert math.isfinite(float(two.sum()))


def test_autocast_makes_the_products_in_bfloat16(tiny_model):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    found = measure_capabilities(model)
    exact = response_log_probs(model, TREES, found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = response_log_probs(model, TREES, found)
        own = response_log_probs(model, TREES, Capabilities("mask", None))
    assert not torch.equal(mine, exact)
    torch.testing.assert_close(mine, own, rtol=0.02, atol=0.05)
    mine.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.float32
