"""An adapter's folder: its base found again, and no other accepted."""

import json
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.adapter import AdapterError, BasePolicy
from sppo.policy.export import export
from sppo.policy.opening import open_policy

IDS = torch.arange(20, 40)[None]


@pytest.fixture
def base(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("llama-3"), tmp_path / "together" / "base")


@pytest.fixture
def adapter(base, tmp_path):
    """An adapter of that base whose matrices B are not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(policies.load(base, dtype="float32"), config)
    folder = tmp_path / "together" / "adapter"
    known = BasePolicy(
        str(base), relative=adapters.relative_path(base, folder), sha256=policies.weights_digest(base)
    )
    adapters.save(model, folder, known)
    return folder


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_an_adapter_loads_as_peft_loads_it(base, adapter):
    from peft import PeftModel

    found = logits(policies.load(adapter, dtype="float32"))
    peft = PeftModel.from_pretrained(policies.load(base, dtype="float32"), adapter).eval()
    assert torch.equal(found, logits(peft))
    assert (found - logits(policies.load(base, dtype="float32"))).abs().max() > 0.1


def test_the_files_are_the_same_every_time(base, adapter, tmp_path):
    model = policies.load(adapter, dtype="float32")
    adapters.save(model, tmp_path / "two", BasePolicy(str(base)))
    one, two = (json.loads((folder / adapters.CONFIG).read_text()) for folder in (adapter, tmp_path / "two"))
    assert one == two
    assert one["target_modules"] == sorted(one["target_modules"])
    assert (adapter / adapters.WEIGHTS).read_bytes() == (tmp_path / "two" / adapters.WEIGHTS).read_bytes()


def test_folders_that_move_together_stay_together(adapter, tmp_path):
    before = logits(policies.load(adapter, dtype="float32"))
    (tmp_path / "together").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "adapter"
    assert policies.base_folder(moved) == tmp_path / "elsewhere" / "base"
    assert torch.equal(logits(policies.load(moved, dtype="float32")), before)


def test_a_base_that_is_gone_is_said_with_the_way_out(adapter, base):
    base.rename(base.parent / "renamed")
    with pytest.raises(
        AdapterError, match=r"is an adapter of '.*base', which cannot be found .*write its folder"
    ):
        policies.load(adapter, dtype="float32")
    config = json.loads((adapter / adapters.CONFIG).read_text())
    config["base_model_name_or_path"] = str(base.parent / "renamed")
    (adapter / adapters.CONFIG).write_text(json.dumps(config))
    policies.load(adapter, dtype="float32")


def test_other_weights_of_the_same_shape_are_another_base(adapter, base):
    tiny_models.make("llama-3", base, seed=1)
    with pytest.raises(AdapterError, match=r"an adapter for another base: the weights or config\.json"):
        policies.load(adapter, dtype="float32")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama-3", {"hidden_size": 64}, r"size mismatch"),
        ("llama-3", {"num_hidden_layers": 1}, r"weights for layers that the base does not have.*layers.1"),
        ("llama-3", {"num_hidden_layers": 3}, r"lacks .*layers.2.*it is an adapter of another base"),
        ("phi-3", {}, r"for layers that the base does not have"),
    ],
)
def test_a_base_of_another_shape_is_refused_without_our_record_too(adapter, base, family, changes, message):
    (adapter / adapters.BASE).unlink()
    shutil.rmtree(base)
    tiny_models.make(family, base, **changes)
    with pytest.raises(AdapterError, match=rf"(?s)does not fit the base policy .*{message}"):
        policies.load(adapter, dtype="float32")


def test_names_that_match_nothing_are_refused(adapter, base):
    (adapter / adapters.BASE).unlink()
    config = json.loads((adapter / adapters.CONFIG).read_text())
    (adapter / adapters.CONFIG).write_text(json.dumps(config | {"target_modules": ["c_attn"]}))
    with pytest.raises(AdapterError, match="does not fit the base policy"):
        policies.load(adapter, dtype="float32")


def test_missing_and_damaged_parts_are_named(adapter):
    weights = load_file(adapter / adapters.WEIGHTS)
    gone = next(name for name in weights if "layers.1" in name and "lora_B" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, adapter / adapters.WEIGHTS)
    with pytest.raises(AdapterError, match=r"lacks .*layers.1.*lora_B"):
        policies.load(adapter, dtype="float32")
    (adapter / adapters.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="does not fit"):
        policies.load(adapter, dtype="float32")
    (adapter / adapters.WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"not the weights adapter_model\.safetensors"):
        policies.load(adapter, dtype="float32")
    for text in ("{", "[]", '{"peft_type": "LORA"}', '{"base_model_name_or_path": 3, "revision": null}'):
        (adapter / adapters.CONFIG).write_text(text)
        with pytest.raises(AdapterError, match="damaged"):
            policies.load(adapter, dtype="float32")


def test_other_adapters_than_lora_are_refused(adapter):
    config = json.loads((adapter / adapters.CONFIG).read_text())
    (adapter / adapters.CONFIG).write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(AdapterError, match="type IA3; only LORA"):
        policies.load(adapter, dtype="float32")


def test_an_adapted_head_is_for_export_alone(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(policies.load(base, dtype="float32"), config)
    adapters.save(model, tmp_path / "head", BasePolicy(str(base)))
    with pytest.raises(AdapterError, match=r"output head.*sppo export"):
        policies.load(tmp_path / "head", dtype="float32")
    merged = logits(policies.load_merged(tmp_path / "head", dtype="float32"))
    torch.testing.assert_close(merged, logits(model.eval()), atol=1e-4, rtol=1e-4)


def test_the_digest_of_an_adapter_depends_on_its_base(adapter, base):
    (adapter / adapters.BASE).unlink()
    before = policies.digest(adapter)
    assert policies.digest(adapter) == before
    tiny_models.make("llama-3", base, seed=1)
    assert policies.digest(adapter) != before


def test_tokenizer_and_context_of_a_bare_adapter_are_its_bases(adapter, base):
    from sppo.policy import chat_format as chat

    assert policies.context_length(adapter) == policies.context_length(base)
    found = chat.load(str(policies.tokenizer_folder(adapter)), config=str(policies.config_folder(adapter)))
    assert found.end_of_turn == chat.load(str(base)).end_of_turn


@pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("layers", [["q_proj", "lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_an_adapter_on_shared_weights_is_merged_into_one_of_the_two_layers(tmp_path, layers):
    from peft import LoraConfig, get_peft_model

    base = tiny_models.make("qwen2", tmp_path / "base")
    model = policies.load(base, dtype="float32")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False)).eval()
    adapters.save(model, tmp_path / "adapter", BasePolicy(str(base)))
    expected = logits(model)
    export(open_policy(tmp_path / "adapter"), tmp_path / "out", lambda name, folder: "card")
    exported = policies.load(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(exported), expected, atol=1e-4, rtol=1e-4)
    assert (expected - logits(policies.load(base, dtype="float32"))).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
    ],
)
def test_an_adapter_for_more_tokens_than_its_base_has_says_to_resize_it(base, tmp_path, settings):
    from peft import LoraConfig, get_peft_model

    model = policies.load(base, dtype="float32")
    model.resize_token_embeddings(410)
    peft = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
    peft.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match=r"is for 410 tokens, but the base has 400.*resize_token_embeddings\(410\)"
    ):
        policies.load_merged(tmp_path / "adapter", dtype="float32")
    resized = policies.load(base, dtype="float32")
    resized.resize_token_embeddings(410)
    resized.save_pretrained(base)
    merged = policies.load_merged(tmp_path / "adapter", dtype="float32")
    assert merged.lm_head.weight.shape[0] == 410
