"""Folders of models of every kind that hold what must not be loaded, or cannot be: each is refused in words."""

import json
import os
import shutil
import struct

import pytest
import torch
from pairrm_checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from sppo.oracle.general_preference import GeneralPreference
from sppo.oracle.pairrm import PairRM
from sppo.oracle.reward_model import RewardModel
from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy import model_files
from sppo.policy.adapter import BasePolicy
from sppo.tinyworld import POLICY

KINDS = ("policy", "adapter", "reward_model", "general_preference", "pairrm")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit, name="model.safetensors"):
    weights = load_file(folder / name)
    edit(weights)
    save_file(weights, folder / name, {"format": "pt"})


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory):
    """An adapter that names its base by a path beside its own folder."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(policies.load(POLICY, dtype="float32"), config)
    adapters.save(model, folder, BasePolicy("/no/such/folder", relative="../model"))
    return folder


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind, tmp_path, adapter_folder):
    """The folder that holds the weights of a model of the kind."""
    folder = tmp_path / "model"
    if kind == "pairrm":
        return make_checkpoint(folder)
    shutil.copytree(POLICY, folder)
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    if kind == "adapter":
        shutil.copytree(adapter_folder, tmp_path / "adapter")
    if kind == "reward_model":
        edit_json(folder / "config.json", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
        edit_weights(folder, lambda weights: weights.update({"score.weight": torch.ones(1, hidden)}))
    if kind == "general_preference":
        edit_weights(folder, lambda weights: weights.update({"value_head.weight": torch.ones(2, hidden)}))
    return folder


def load(kind, folder):
    if kind == "policy":
        return policies.load(policies.folder(str(folder)), dtype="float32")
    if kind == "adapter":
        return policies.load(folder.parent / "adapter", dtype="float32")
    makers = {"reward_model": RewardModel, "general_preference": GeneralPreference, "pairrm": PairRM}
    return makers[kind].from_pretrained(folder, device="cpu")


def index_of(folder, file):
    """Replace the weights by an index that names a file for all of them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    placed = {"metadata": {}, "weight_map": dict.fromkeys(weights, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(placed))


def index_to_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "weights.bin")
    index_of(folder, "weights.bin")


def index_to_another_folder(folder):
    index_of(folder, "../model/model-00001-of-00001.safetensors")


def index_to_a_system_file(folder):
    index_of(folder, "/etc/passwd")


def index_to_a_number(folder):
    index_of(folder, 7)


def index_to_nothing(folder):
    index_of(folder, "other.safetensors")


def index_without_a_map(folder):
    index_of(folder, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def weights_named_by_the_configuration(folder):
    edit_json(folder / "config.json", transformers_weights="adapter_model.bin")


def kernel_from_the_hub(folder):
    edit_json(folder / "config.json", _attn_implementation="someone/kernel")


def kernel_for_a_part(folder):
    edit_json(folder / "config.json", text_config={"attn_implementation": {"": "paged|someone/kernel@v1"}})


def kernel_of_experts(folder):
    edit_json(folder / "config.json", list_of=[{"_experts_implementation_internal": "someone/kernel:x"}])


def pipe(folder):
    os.mkfifo(folder / "special_tokens_map.json")


def pipe_for_weights(folder):
    (folder / "model.safetensors").rename(folder / "more.safetensors")
    os.mkfifo(folder / "model.safetensors")


def link_to_a_device(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").symlink_to("/dev/zero")


def broken_link(folder):
    (folder / "merges.txt").symlink_to(folder / "nowhere")


def huge_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def header_of_wrong_types(folder):
    header = json.dumps(
        {"model.norm.weight": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def deep_configuration(folder):
    (folder / "config.json").write_text("[" * 100_000)


def configuration_that_is_a_list(folder):
    (folder / "config.json").write_text("[1, 2]")


def configuration_with_a_huge_number(folder):
    (folder / "config.json").write_text('{"vocab_size": ' + "9" * 5000 + "}")


def weight_that_is_not_a_number(folder):
    edit_weights(folder, lambda weights: list(weights.values())[-1].view(-1)[-1].fill_(float("nan")))


def infinite_weight(folder):
    edit_weights(folder, lambda weights: next(iter(weights.values())).view(-1)[0].fill_(float("-inf")))


ATTACKS = (
    index_to_a_pickle,
    index_to_another_folder,
    index_to_a_system_file,
    index_to_a_number,
    index_to_nothing,
    index_without_a_map,
    weights_named_by_the_configuration,
    kernel_from_the_hub,
    kernel_for_a_part,
    kernel_of_experts,
    pipe,
    pipe_for_weights,
    link_to_a_device,
    broken_link,
    huge_header,
    header_of_wrong_types,
    empty_weights,
    deep_configuration,
    configuration_that_is_a_list,
    configuration_with_a_huge_number,
    weight_that_is_not_a_number,
    infinite_weight,
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_folder_is_refused_in_words(kind, model, attack):
    attack(model)
    with pytest.raises(ValueError, match=r"\w") as refusal:
        load(kind, model)
    assert type(refusal.value).__module__.startswith("sppo."), repr(refusal.value)
    assert len(str(refusal.value)) < 5000


def test_the_folders_are_loaded_as_they_are(kind, model):
    load(kind, model)


def test_an_index_of_files_in_the_folder_is_loaded(kind, model):
    index_of(model, "model-00001-of-00001.safetensors")
    load(kind, model)


def test_what_an_index_names_is_in_the_digest(model):
    index_of(model, "model-00001-of-00001.safetensors")
    before = model_files.digest(model)
    edit_weights(
        model, lambda weights: list(weights.values())[-1].add_(1), "model-00001-of-00001.safetensors"
    )
    assert model_files.digest(model) != before


@pytest.mark.parametrize("name", ["modeling_own.py", "own.tiktoken", "additional_chat_templates/x.jinja"])
def test_every_file_that_can_be_loaded_is_in_the_digest(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a")
    before = model_files.digest(tmp_path)
    (tmp_path / name).write_text("b")
    assert model_files.digest(tmp_path) != before


def test_a_file_that_is_named_like_a_digest_is_read_nevertheless(tmp_path):
    blob = tmp_path / "elsewhere" / ("0" * 64)
    blob.parent.mkdir()
    blob.write_text("a")
    (tmp_path / "model.safetensors").symlink_to(blob)
    before = model_files.digest(tmp_path)
    blob.write_text("b")
    assert model_files.digest(tmp_path) != before


def test_an_adapter_that_names_a_module_is_refused(tmp_path, adapter_folder):
    shutil.copytree(POLICY, tmp_path / "model")
    shutil.copytree(adapter_folder, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", megatron_config={}, megatron_core="antigravity")
    with pytest.raises(adapters.AdapterError, match="megatron_config"):
        policies.load(tmp_path / "adapter", dtype="float32")


@pytest.mark.parametrize("attack", [huge_header, header_of_wrong_types, empty_weights])
def test_damaged_headers_are_not_an_end_of_the_dry_run(tmp_path, attack):
    from typer.testing import CliRunner

    from sppo.cli.main import app

    shutil.copytree(POLICY, tmp_path / "model")
    attack(tmp_path / "model")
    options = ["--dry-run", "--run-dir", str(tmp_path / "run"), "--set", f"policy.model={tmp_path / 'model'}"]
    result = CliRunner().invoke(app, ["run", "quickstart", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output


def test_a_panic_of_rust_is_an_error_in_words():
    class PanicException(BaseException):
        """What pyo3 raises where Rust panics."""

    def load(error):
        with model_files.load_errors("it does not load", policies.PolicyError):
            raise error

    with pytest.raises(policies.PolicyError, match="it does not load: PanicException: called"):
        load(PanicException("called `Option::unwrap()` on a `None` value"))
    with pytest.raises(KeyboardInterrupt):
        load(KeyboardInterrupt())
