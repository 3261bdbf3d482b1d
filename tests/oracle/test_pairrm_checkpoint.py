"""PairRM checkpoints: what is refused, several files of weights, names on the hub, pickled weights."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from pairrm_checkpoints import (
    PROMPTS,
    RESPONSES,
    SMALL,
    as_shards,
    edit_json,
    edit_weights,
    refused,
)
from safetensors.torch import load_file
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.oracle import OracleError
from sppo.oracle.pairrm import PairRM
from sppo.oracle.pairrm_checkpoint import convert_bin


def test_missing_weights(broken):
    edit_weights(broken, lambda weights: weights.pop("head_layer.4.bias"))
    refused(broken, r"1 missing: head_layer\.4\.bias")


def test_missing_embedding(broken):
    edit_weights(broken, lambda weights: weights.pop("pretrained_model.embeddings.word_embeddings.weight"))
    refused(broken, "1 missing: .*word_embeddings")


def test_extra_weights(broken):
    edit_weights(broken, lambda weights: weights.update(value_head=torch.zeros(1)))
    refused(broken, "1 not of a PairRM: value_head")


def test_weights_of_a_wrong_shape(broken):
    edit_json(broken / "config.json", n_tasks=3)
    refused(broken, r"head_layer\.4\.weight has the shape \[2, 24\] instead of \[3, 24\]")


def test_positions_of_old_checkpoints_are_no_weights(broken):
    positions = {"pretrained_model.embeddings.position_ids": torch.arange(64)[None]}
    edit_weights(broken, lambda weights: weights.update(positions))
    PairRM.from_pretrained(broken, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files(broken, name):
    (broken / name).unlink()
    refused(broken, "there is no such file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_damaged_files(broken, name):
    (broken / name).write_text("{")
    refused(broken, f"{name}.* read")


def test_other_architectures(broken):
    (broken / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    refused(broken, "BertForSequenceClassification.*not a PairRM")
    (broken / "config.json").write_text("[]")
    refused(broken, "a mapping")


def test_other_rankers(broken):
    edit_json(broken / "config.json", ranker_type="summareranker")
    refused(broken, "ranker_type: 'summareranker'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"source_maxlength": 2}, "source_maxlength: 2"),
        ({"candidate_maxlength": "many"}, "candidate_maxlength: 'many'"),
        ({"n_tasks": 0}, "n_tasks: 0"),
        ({"model_name": None}, "model_name: None"),
        ({"model_name": "/nowhere/at all"}, "no such folder"),
    ],
    ids=str,
)
def test_wrong_fields_of_the_ranker(broken, change, match):
    edit_json(broken / "config.json", **change)
    refused(broken, match)


def test_other_backbones(broken):
    edit_json(broken.parent / "backbone" / "config.json", model_type="roberta")
    refused(broken, "the backbone is a 'roberta'")


def test_a_backbone_of_nonsense(broken):
    edit_json(broken.parent / "backbone" / "config.json", hidden_size="wide")
    refused(broken, "not a configuration of DeBERTa-v2")


def test_too_few_absolute_positions(broken):
    edit_json(broken.parent / "backbone" / "config.json", position_biased_input=True)
    refused(broken, "64 absolute positions, but a pair may have 80")


def test_a_tokenizer_of_another_checkpoint(broken):
    edit_weights(
        broken,
        lambda weights: weights.update(
            {"pretrained_model.embeddings.word_embeddings.weight": torch.zeros(20, SMALL["hidden_size"])}
        ),
    )
    refused(broken, "tokenizer and model are not of one checkpoint")


def test_no_such_folder(tmp_path):
    refused(tmp_path / "absent", "no such folder")
    refused("not a name", "no such folder")


def test_wrong_arguments(small):
    for argument in ({"probability": "mean"}, {"dtype": "float16"}, {"batch_pairs": 0}):
        with pytest.raises(ValueError, match=next(iter(argument))):
            PairRM.from_pretrained(small, device="cpu", **argument)


def test_pickled_weights_are_refused_and_converted_on_demand(broken):
    expected = load_file(broken / "model.safetensors")
    torch.save(expected, broken / "pytorch_model.bin")
    with pytest.raises(OracleError, match="exists already"):
        convert_bin(broken)
    (broken / "model.safetensors").unlink()
    refused(broken, "sppo oracle convert")
    assert convert_bin(broken) == broken / "model.safetensors"
    found = load_file(broken / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    PairRM.from_pretrained(broken, device="cpu")


class Payload:
    def __reduce__(self):
        return (warnings.warn, ("code in a pickle was run",))


def test_pickled_code_is_not_run(tmp_path):
    with pytest.raises(OracleError, match="no such file"):
        convert_bin(tmp_path)
    torch.save({"weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OracleError, match="nothing in it was run"):
        convert_bin(tmp_path)
    torch.save({"weight": torch.zeros(1), "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OracleError, match="other than named tensors"):
        convert_bin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_weights_in_several_files(small, broken):
    as_shards(broken)
    expected = PairRM.from_pretrained(small, device="cpu").logits(PROMPTS, RESPONSES)
    found = PairRM.from_pretrained(broken, device="cpu").logits(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_index_that_does_not_fit_its_files(broken):
    placed = as_shards(broken)
    index = broken / "model.safetensors.index.json"
    moved = dict(placed) | {"head_layer.4.bias": "model-00002-of-00003.safetensors"}
    moved["head_layer.4.weight"] = "model-00001-of-00003.safetensors"
    if moved == placed:  # pragma: no cover
        raise AssertionError("the test moves nothing")
    index.write_text(json.dumps({"weight_map": moved}))
    refused(broken, "does not hold what model.safetensors.index.json says")
    index.write_text(json.dumps({"weight_map": placed | {"x": "../model.safetensors"}}))
    refused(broken, "is not the name of a file beside it that ends in .safetensors")
    index.write_text(json.dumps({"weight_map": {}}))
    refused(broken, "weight_map: missing")
    index.write_text(json.dumps({"weight_map": placed}))
    (broken / "model-00003-of-00003.safetensors").unlink()
    refused(broken, "model-00003-of-00003.safetensors, which is not there")


def test_names_on_the_hub(small, tmp_path, monkeypatch):
    """Through huggingface_hub's own cache, as it lies on a disk after a download."""
    from huggingface_hub import constants

    for name, source in {"someone/ranker": small, "someone/backbone": small.parent / "backbone"}.items():
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
        if source == small:
            edit_json(repository / "snapshots" / ("0" * 40) / "config.json", model_name="someone/backbone")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = PairRM.from_pretrained("someone/ranker", device="cpu").logits(PROMPTS, RESPONSES)
    expected = PairRM.from_pretrained(small, device="cpu").logits(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    refused("someone/else", "the Hugging Face hub does not provide it")


def test_pickled_shards_are_converted_by_the_command(broken):
    expected = load_file(broken / "model.safetensors")
    names = sorted(expected)
    for part in range(2):
        of_part = {name: expected[name] for name in names[part::2]}
        torch.save(of_part, broken / f"pytorch_model-{part + 1:05d}-of-00002.bin")
    (broken / "model.safetensors").unlink()
    refused(broken, f"sppo oracle convert {broken}")
    done = CliRunner().invoke(app, ["oracle", "convert", str(broken), "--json"])
    assert json.loads(done.stdout) == {"file": str(broken / "model.safetensors")}
    found = load_file(broken / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert CliRunner().invoke(app, ["oracle", "convert", str(broken)]).exit_code == 1
