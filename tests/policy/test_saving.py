"""The files beside the weights in the folder of a saved policy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from training_jobs import FAMILIES

from sppo.policy import load as policies
from sppo.policy.export import export
from sppo.policy.load import PolicyError
from sppo.policy.opening import open_policy
from sppo.policy.saving import save_model, with_earlier_keys
from sppo.policy.tokenizer_files import copy_tokenizer

TRANSFORMERS_4 = Path(__file__).parents[2] / ".venv-transformers-4"
"""The folder with transformers 4.57 and what it needs in other versions than ours, which the Makefile installs."""

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
LONGROPE = {
    "original_max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 3e4, **FACTORS},
}


def saved(source, target):
    model = policies.load(source, dtype="float32", device="cpu")
    save_model(model, target, source)
    copy_tokenizer(source, target, None)
    return json.loads((target / "config.json").read_text())


@pytest.mark.parametrize(
    ("family", "overrides", "expected"),
    [
        ("llama-3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        (
            "llama-3",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0}},
            {"rope_theta": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            "phi-3",
            LONGROPE,
            {"rope_theta": 3e4, "rope_scaling": {"type": "longrope", **FACTORS}},
        ),
        ("gemma-2", {"rope_parameters": {"rope_type": "default", "rope_theta": 7e3}}, {"rope_theta": 7e3}),
    ],
)
def test_keys_of_transformers_4_stand_beside_those_that_replace_them(tmp_path, family, overrides, expected):
    source = tiny_models.make(family, tmp_path / "base", **overrides)
    config = saved(source, tmp_path / "saved")
    assert config | expected == config
    assert config["torch_dtype"] == config["dtype"] == "float32"
    again = policies.load(tmp_path / "saved", dtype="float32", device="cpu")
    before = policies.load(source, dtype="float32", device="cpu")
    assert again.config.rope_parameters | before.config.rope_parameters == again.config.rope_parameters
    ids = torch.arange(20, 60)[None]
    assert torch.equal(again(ids).logits, before(ids).logits)


def test_kinds_of_layers_with_a_rope_of_their_own_keep_it():
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = with_earlier_keys(
        {"model_type": "gemma3_text", "rope_parameters": rope}, {"model_type": "gemma3_text"}
    )
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert "rope_scaling" not in config and config["rope_parameters"] == rope


def test_a_released_configuration_keeps_its_own_keys(tmp_path):
    source = tiny_models.make("llama-3", tmp_path / "base")
    file = source / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    released = config | {
        "rope_theta": 5e5,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "pretraining_tp": 1,
    }
    file.write_text(json.dumps(released))
    written = saved(source, tmp_path / "saved")
    assert (written["rope_theta"], written["pretraining_tp"]) == (5e5, 1)
    assert written["rope_parameters"]["rope_theta"] == 5e5
    assert written["torch_dtype"] == "float32"  # the data type of what is saved


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 4, "do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"eos_token_id": [4, 5], "num_beams": 1, "early_stopping": True},
        {"do_sample": False, "top_k": 7, "unknown_to_transformers": "kept"},
        None,
    ],
)
def test_the_generation_settings_of_the_base_are_kept_as_they_are(tmp_path, settings):
    source = tiny_models.make("llama-3", tmp_path / "base")
    file = source / "generation_config.json"
    file.unlink()
    if settings is not None:
        file.write_text(json.dumps(settings))
    saved(source, tmp_path / "saved")
    export(open_policy(source), tmp_path / "exported", lambda name, folder: "card")
    for folder in ("saved", "exported"):
        copy = tmp_path / folder / "generation_config.json"
        assert (json.loads(copy.read_text()) if copy.exists() else None) == settings


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(tmp_path, value):
    source = tiny_models.make("llama-3", tmp_path / "base")
    model = policies.load(source, dtype="float32", device="cpu")
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = value
    with pytest.raises(
        PolicyError, match=rf"saved is not written: its weight {name} has values that are NaN"
    ):
        save_model(model, tmp_path / "saved", source)
    with pytest.raises(PolicyError, match=rf"its weight {name}"):
        save_model(model, tmp_path / "saved", source, state=model.state_dict())
    assert not (tmp_path / "saved").exists()
    model.save_pretrained(source)
    with pytest.raises(PolicyError, match=rf"policy.model: .*base cannot be used: its weight {name}"):
        policies.load(source, dtype="float32", device="cpu")
    with pytest.raises(PolicyError, match="NaN or infinite"):
        policies.load(source, dtype="bfloat16", device="cpu")


RELEASED = [
    *((family, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}) for family in FAMILIES),
    ("phi-3", LONGROPE),
    ("llama-3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0}}),
]
IN_TRANSFORMERS_4 = """
import sys, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.save(model(torch.arange(20, 60)[None]).logits.log_softmax(-1), f"{folder}/expected.pt")
"""


@pytest.mark.slow
def test_an_earlier_version_of_transformers_computes_the_same(tmp_path):
    if not TRANSFORMERS_4.is_dir():
        pytest.skip(
            f"there is no transformers 4.57 in {TRANSFORMERS_4.name}; make {TRANSFORMERS_4.name}/.installed"
        )
    folders = [tmp_path / f"saved-{number}" for number in range(len(RELEASED))]
    for number, ((family, overrides), folder) in enumerate(zip(RELEASED, folders)):
        saved(tiny_models.make(family, tmp_path / f"base-{number}", **overrides), folder)
    environment = {**os.environ, "PYTHONPATH": str(TRANSFORMERS_4)}
    subprocess.run([sys.executable, "-c", IN_TRANSFORMERS_4, *folders], check=True, env=environment)
    for folder in folders:
        model = policies.load(folder, dtype="float32", device="cpu")
        computed = model(torch.arange(20, 60)[None]).logits.log_softmax(-1)
        torch.testing.assert_close(computed, torch.load(folder / "expected.pt"), atol=1e-4, rtol=1e-4)


def test_weights_are_the_models_own(tmp_path):
    source = tiny_models.make("qwen2", tmp_path / "base")
    saved(source, tmp_path / "saved")
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (source, tmp_path / "saved"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
