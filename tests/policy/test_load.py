import shutil

import multimodal_models
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from training_jobs import TREES

from sppo.policy import load as policy
from sppo.tinyworld import POLICY
from sppo.training.log_probs import measure_capabilities, response_log_probs
from sppo.training.unused_weights import freeze_beside_text


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(POLICY, tmp_path / "policy")
    return tmp_path / "policy"


def test_pickled_weights_are_refused_with_the_way_out(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(
        policy.PolicyError, match=r"only pytorch_model.bin; .*safetensors only.*save_pretrained"
    ):
        policy.folder(str(copied))


def test_missing_weights_are_named(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(policy.PolicyError, match=r"lacks weights.*model.layers.1.mlp.up_proj.weight"):
        policy.load(copied, dtype="float32")


def test_damaged_weights_are_named(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(policy.PolicyError, match=r"cannot be loaded|damaged"):
        policy.load(copied, dtype="float32")


def test_code_that_comes_with_a_model_does_not_run_unless_asked(copied, monkeypatch):
    import json

    config = json.loads((copied / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(policy.PolicyError):
        policy.load(copied, dtype="float32")


def test_the_digest_depends_on_every_file_and_on_nothing_else(copied):
    first = policy.digest(copied)
    assert first == policy.digest(POLICY)
    (copied / "README.md").write_text("notes")
    assert policy.digest(copied) == first
    (copied / "chat_template.jinja").write_text((copied / "chat_template.jinja").read_text() + " ")
    assert policy.digest(copied) != first


def test_parameters_are_counted_from_the_headers():
    from transformers import AutoModelForCausalLM

    assert policy.count_parameters(POLICY) == AutoModelForCausalLM.from_pretrained(POLICY).num_parameters()


@pytest.mark.parametrize(
    ("kind", "beside_text"),
    [
        ("qwen3_5", ["model.visual"]),
        ("qwen3_5_moe", ["model.visual"]),
        ("llama4", ["multi_modal_projector", "vision_model"]),
    ],
)
def test_weights_that_the_language_model_does_not_contain_are_named(tmp_path, kind, beside_text, caplog):
    folder = multimodal_models.make(tmp_path / "base", kind)
    model = policy.load(folder, dtype="float32", device="cpu")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "sppo.policy.load"]
    names = set(load_file(folder / "model.safetensors"))
    beside = {name for name in names if name.startswith(tuple(beside_text))}
    assert f"without {len(beside)} of the {len(names)} weights" in message
    assert all(part in message.rpartition(": ")[2] for part in beside_text)
    assert "vision_config" not in model.config.to_dict()


@pytest.mark.parametrize("family", ["llama-3", "qwen2", "gemma-2", "gemma3"])
def test_nothing_is_named_where_all_weights_are_part_of_the_model(tmp_path, family, caplog):
    folder = tmp_path / "base"
    multimodal_models.make(folder, family) if family == "gemma3" else tiny_models.make(family, folder)
    policy.load(folder, dtype="float32", device="cpu")
    assert not [record for record in caplog.records if record.name == "sppo.policy.load"]


@pytest.mark.parametrize("kind", ["gemma3", "gemma4", "got_ocr2"])
def test_weights_that_text_never_reaches_are_frozen(tmp_path, kind):
    model = policy.load(multimodal_models.make(tmp_path / "base", kind), dtype="float32", device="cpu")
    freeze_beside_text(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all("vision" in name or "multi_modal" in name for name in frozen)
    response_log_probs(model, TREES, measure_capabilities(model)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_a_whole_policy_of_text_has_nothing_to_freeze(tmp_path):
    for family in ("llama-3", "qwen2", "gemma-2"):
        model = policy.load(tiny_models.make(family, tmp_path / family), dtype="float32", device="cpu")
        freeze_beside_text(model)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("rope", ["longrope", "default", "linear"])
def test_the_context_ends_where_the_rope_of_all_positions_changes(tmp_path, rope):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if rope == "longrope" else {}
    factors |= {"factor": 2.0} if rope == "linear" else {}
    folder = tiny_models.make(
        "phi-3" if rope == "longrope" else "llama-3",
        tmp_path / "base",
        original_max_position_embeddings=128,
        rope_parameters={"rope_type": rope, "rope_theta": 1e4, **factors},
    )
    assert policy.context_length(folder) == (128 if rope == "longrope" else tiny_models.CONTEXT)
