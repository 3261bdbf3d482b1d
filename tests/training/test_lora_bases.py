"""Adapters on bases that are quantised, and on bases that keep weights in other layers than linear ones."""

import json

import pytest
import tiny_models
import torch
from training_jobs import TREES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig

from sppo import recipe
from sppo.policy import load as policies
from sppo.policy.load import PolicyError
from sppo.recipe import RecipeError
from sppo.training import lora
from sppo.training.log_probs import measure_capabilities, response_log_probs


def check(folder, adapter, quantization=None):
    lora.check(
        None if adapter is None else recipe.Lora(**adapter),
        folder,
        sampling=recipe.parse(RECIPE).sampling,
        quantization=quantization,
        trust_remote_code=False,
    )


RECIPE = {
    "policy": {"model": "tinyworld"},
    "prompts": {"train": "tinyworld/train"},
    "oracle": {"type": "panel"},
}


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_quantised_weights_are_not_trained_without_an_adapter(tmp_path, method):
    folder = tiny_models.make("llama-3", tmp_path / "base")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    check(folder, None)
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(
        RecipeError, match=rf"weights of .* are quantised \({method}\).*set training\.adapter"
    ):
        check(folder, None)
    with pytest.raises(RecipeError, match=rf"training\.adapter\.merge: true, but .*quantised \({method}\)"):
        check(folder, {"merge": True})
    with pytest.raises(
        PolicyError, match=rf"policy\.quantization: nf4, but .* already quantised \({method}\)"
    ):
        policies.load(folder, dtype="float32", device="cpu", quantization="nf4")


@pytest.mark.parametrize(
    ("family", "quant_type", "double"),
    [("llama-3", "nf4", True), ("llama-3", "nf4", False), ("qwen2", "fp4", False), ("gemma-2", "fp4", True)],
)
def test_gradients_on_a_quantised_folder_are_those_on_the_values_of_its_weights(
    tmp_path, family, quant_type, double
):
    pytest.importorskip("bitsandbytes")
    plain = tiny_models.make(family, tmp_path / "plain")
    rounding = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double
    )
    quantised = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=rounding, dtype=torch.float32, device_map="cpu"
    )
    quantised.save_pretrained(tmp_path / "base")
    assert policies.quantization_method(tmp_path / "base") == "bitsandbytes"
    gradients = []
    for dequantised in (False, True):
        model = policies.load(tmp_path / "base", dtype="float32", device="cpu")
        assert "Linear4bit" in {type(module).__name__ for module in model.modules()}
        model = lora.prepare(model.dequantize() if dequantised else model, recipe.Lora(r=4), seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
        capabilities = measure_capabilities(model)
        model.train()
        response_log_probs(model, TREES, capabilities).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "qwen3_moe", "llama"])
def test_experts_that_all_linear_does_not_adapt_are_named(tmp_path, kind, caplog):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 32}
    experts = {} if kind == "llama" else {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    config = CONFIG_MAPPING[kind](**sizes, **heads, **experts, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    check(tmp_path / "base", {"r": 2})
    messages = [record.getMessage() for record in caplog.records if record.name == "sppo.training.lora"]
    assert len(messages) == (kind != "llama")
    if messages:
        assert "all-linear does not adapt the experts" in messages[0] and "gate_up_proj" in messages[0]
