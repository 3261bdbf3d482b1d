import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppo.policy import load as policy
from sppo.tinyworld import POLICY


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
