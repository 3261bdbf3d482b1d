"""Oracles from pretrained backbones whose weights are trained, wholly or by an adapter, and pair classifiers on any backbone."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.oracle import OracleError, load
from sppo.oracle.pairrm import PairRM
from sppo.oracle.training import backbones, exchanges, fit, network, pair_heads, train
from sppo.oracle.training.pairs import read
from sppo.oracle.training.results import predict
from sppo.progress import Terminal
from sppo.recipe import RecipeError, load_oracle_training

ADAPTER = {"r": 4, "lora_alpha": 8}
STEPS = {"epochs": 6, "batch_pairs": 16, "learning_rate": 1e-2, "warmup_ratio": 0, "weight_decay": 0}
SHORT = {"source_maxlength": 24, "candidate_maxlength": 16}


def quiet():
    return Terminal(Console(quiet=True, width=200))


def rows(count=48):
    """The text of a's is preferred, by two votes of three on every third pair."""
    found = []
    for n in range(count):
        good, bad = "a" * (3 + n % 4), "z" * (3 + n % 5)
        side = n % 2
        votes = (2, 1) if n % 3 == 0 else (1, 0)
        found.append(
            {
                "prompt": f"Which {n % 16}?",
                "response_a": (good, bad)[side],
                "response_b": (bad, good)[side],
                "votes_a": votes[side],
                "votes_b": votes[1 - side],
            }
        )
    return found


def settings(tmp_path, **sections):
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return load_oracle_training(
        {"pairs": {"source": str(source), "held_out": 0.25}, "cpu_threads": 1, **sections}
    )


def agrees(folder, kind, of, result):
    """The folder as an oracle answers what the training has measured, and has learnt the rule."""
    given = {"probability": "calibrated"} if kind == "pairrm" else {}
    oracle = load({"type": kind, "model": str(folder), **given})
    asked = read(of.pairs)
    right = predict(oracle, asked, quiet()) > 0.5
    assert np.mean(right == [pair.probability > 0.5 for pair in asked]) > 0.95
    assert result["held_out"]["log_loss"] < 0.6 < 0.69 < result["length_only"]["log_loss"] + 0.1
    return oracle


WAYS = pytest.mark.parametrize(
    "adapter",
    [pytest.param(None, marks=pytest.mark.slow, id="all weights"), pytest.param(ADAPTER, id="adapter")],
)


@WAYS
@pytest.mark.parametrize("kind", ["reward_model", pytest.param("general_preference", marks=pytest.mark.slow)])
def test_a_backbone_is_trained_with_its_head(tmp_path, tiny_model, kind, adapter):
    """Also without a padding token; the folder holds whole weights, of which an adapter has changed the linear layers only."""
    shutil.copytree(tiny_model("llama-3"), backbone := tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    of = settings(
        tmp_path,
        head={"type": kind, "model": str(backbone), "frozen": False},
        training={**STEPS, "adapter": adapter},
    )
    result = train(of, tmp_path / "oracle", quiet())
    agrees(tmp_path / "oracle", kind, of, result)
    assert not list((tmp_path / "oracle").glob("adapter*"))
    before, after = (load_file(folder / "model.safetensors") for folder in (backbone, tmp_path / "oracle"))
    names = {name.removeprefix("model."): value for name, value in before.items()}
    trained = {name.removeprefix("model."): value for name, value in after.items()}
    changed = {name for name in names.keys() & trained.keys() if not torch.equal(names[name], trained[name])}
    assert "layers.0.mlp.up_proj.weight" in changed
    assert ("embed_tokens.weight" in changed) == (adapter is None)


def made(tmp_path, tiny_model, **training):
    of = settings(
        tmp_path,
        head={"type": "reward_model", "model": str(tiny_model("llama-3")), "frozen": False},
        training={**STEPS, "epochs": 1, **training},
    )
    backbone = backbones.load(of.head, of.seed)
    model = exchanges.ExchangeNetwork(backbone, of.training.adapter, of.seed)
    return of, model, exchanges.ExchangeInputs(backbone), read(of.pairs)


def test_pairs_that_are_computed_one_after_the_other_train_the_same_oracle(tmp_path, tiny_model):
    trained = {}
    for count in (16, 4):
        of, model, inputs, pairs = made(tmp_path, tiny_model, adapter=ADAPTER, device_pairs=count)
        assert fit.fit(model, inputs, pairs, of, tmp_path / str(count))
        trained[count] = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, value in trained[16].items():
        torch.testing.assert_close(trained[4][name], value, atol=1e-5, rtol=1e-4)


def test_as_many_pairs_at_a_time_as_the_memory_holds(tmp_path, tiny_model, monkeypatch):
    of, model, inputs, pairs = made(tmp_path, tiny_model)
    counts = []
    for megabytes in (1e6, 40, 10, 1):
        monkeypatch.setattr("sppo.policy.memory.machine_memory", lambda size=megabytes: int(size * 1e6))
        counts.append(fit.pairs_at_a_time(model, inputs, pairs, of, 1))
    assert counts[0] == 16 and counts[-1] == 1 and counts == sorted(counts, reverse=True)
    monkeypatch.undo()
    assert fit.pairs_at_a_time(model, inputs, pairs, of, 2) == 8
    with pytest.raises(OracleError, match=r"training\.batch_pairs: 16 cannot be shared by 3 processes"):
        fit.pairs_at_a_time(model, inputs, pairs, of, 3)
    of = settings(tmp_path, training={**STEPS, "device_pairs": 5})
    with pytest.raises(OracleError, match=r"training\.device_pairs: 5 does not divide the 16 pairs"):
        fit.pairs_at_a_time(model, inputs, pairs, of, 1)


@pytest.mark.slow
def test_an_interrupted_training_of_an_adapter_goes_on_to_the_same_weights(tmp_path, tiny_model, monkeypatch):
    head = {"type": "reward_model", "model": str(tiny_model("llama-3")), "frozen": False}
    training = {**STEPS, "epochs": 4, "adapter": ADAPTER, "checkpoint_steps": 3}
    of = settings(tmp_path, head=head, training=training)
    train(of, tmp_path / "whole", quiet())

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit._Report, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(of, tmp_path / "stopped", quiet())
    assert not (tmp_path / "stopped").exists()
    shutil.copytree(tmp_path / ".stopped.training", tmp_path / ".divided.training")
    train(of, tmp_path / "stopped", quiet())
    divided = of.model_copy(update={"training": of.training.model_copy(update={"device_pairs": 4})})
    train(divided, tmp_path / "divided", quiet())
    names = ("whole", "stopped", "divided")
    whole, stopped, divided = (load_file(tmp_path / name / "model.safetensors") for name in names)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, atol=1e-4, rtol=1e-3)


def encoder(folder, tokenizer, kind):
    """A tiny encoder with a tokenizer without a chat template."""
    shutil.copytree(
        tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "chat_template*", "config.json")
    )
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = kind.config_class(vocab_size=size, pad_token_id=0, max_position_embeddings=130, **sizes)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_encoders_take_every_head(tmp_path, tiny_model):
    """RoBERTa's head has a layer that is random: a frozen one is refused, and beside an adapter it is trained."""
    roberta = encoder(tmp_path / "roberta", tiny_model("llama-3"), transformers.RobertaModel)
    head = {"type": "reward_model", "model": roberta}
    with pytest.raises(OracleError, match=r"classifier\.dense.*head\.frozen: false"):
        train(settings(tmp_path, head=head), tmp_path / "frozen", quiet())
    training = {**STEPS, "epochs": 10, "adapter": ADAPTER}
    of = settings(tmp_path, head={**head, "frozen": False}, training=training)
    agrees(tmp_path / "roberta-rm", "reward_model", of, train(of, tmp_path / "roberta-rm", quiet()))
    bert = encoder(tmp_path / "bert", tiny_model("llama-3"), transformers.BertModel)
    of = settings(
        tmp_path, head={"type": "general_preference", "model": bert, "frozen": False}, training=training
    )
    agrees(tmp_path / "bert-gpm", "general_preference", of, train(of, tmp_path / "bert-gpm", quiet()))


@WAYS
def test_a_causal_model_classifies_pairs(tmp_path, tiny_model, adapter):
    """It is read at the ends of the parts, where it has seen them, and the folder is a PairRM like any other."""
    training = {**STEPS, "adapter": adapter}
    of = settings(tmp_path, encoder={"model": str(tiny_model("llama-3"))}, **SHORT, training=training)
    agrees(tmp_path / "pairs", "pairrm", of, train(of, tmp_path / "pairs", quiet()))
    config = json.loads((tmp_path / "pairs" / "config.json").read_text())
    assert (config["architectures"], config["pairrm_reads"]) == (["LlamaPairRM"], "ends")
    oracle = PairRM.from_pretrained(tmp_path / "pairs", device="cpu")
    first, second = oracle.logits(["Which?"] * 2, [["aaaa", "zz"], ["aaaa", "z"]])
    assert first[0, 1] != second[0, 1] and first[1, 0] != second[1, 0]
    alone = PairRM.from_pretrained(tmp_path / "pairs", batch_pairs=1, device="cpu")
    np.testing.assert_allclose(alone.logits(["Which?"], [["aaaa", "zz"]])[0], first, atol=1e-5)


@pytest.mark.slow
def test_a_frozen_causal_model_classifies_pairs(tmp_path, tiny_model, monkeypatch):
    """Hidden states that are there are not computed again, and a special token that stands in a text is text."""
    of = settings(tmp_path, encoder={"model": str(tiny_model("llama-3")), "frozen": True}, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(pair_heads, "fit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(of, tmp_path / "pairs", quiet())
    with monkeypatch.context() as patch:
        patch.setattr(network.PairRMNetwork, "rows", None)
        result = train(of, tmp_path / "pairs", quiet())
    agrees(tmp_path / "pairs", "pairrm", of, result)
    inputs = PairRM.from_pretrained(tmp_path / "pairs", device="cpu").inputs
    begin = transformers.AutoTokenizer.from_pretrained(tiny_model("llama-3")).bos_token
    source, (response,) = inputs.parts(f"x{begin}", [f"{begin}y"])
    assert source.count(source[0]) == response.count(response[0]) == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"head": {"type": "reward_model", "model": "x"}, "training": {"epochs": 2}}, "head.frozen is true.*leave training out"),
        ({"encoder": {"model": "x", "frozen": True}, "training": {"epochs": 2}}, "encoder.frozen is true"),
        ({"encoder": {"frozen": True}}, "frozen: true needs a pretrained model"),
        ({"head": {"type": "reward_model", "model": "x", "frozen": False, "l2": 1.0}}, "head.l2.*training.weight_decay"),
        ({"training": {"adapter": {"r": 2}}}, "a network from scratch has no weights to stand beside"),
        ({"encoder": {"model": "x"}, "training": {"adapter": {"merge": False}}}, "always merged"),
    ],
)  # fmt: skip
def test_settings_that_exclude_each_other_are_named(sections, message):
    with pytest.raises(RecipeError, match=message):
        load_oracle_training({"pairs": {"source": "x.jsonl"}, **sections})


def test_an_adapter_of_layers_that_are_not_there_is_refused(tmp_path, tiny_model):
    adapter = {"target_modules": ["q_proj", "query"]}
    for sections in (
        {"head": {"type": "reward_model", "model": str(tiny_model("llama-3")), "frozen": False}},
        {"encoder": {"model": str(tiny_model("llama-3"))}, **SHORT},
    ):
        of = settings(tmp_path, **sections, training={"adapter": adapter})
        with pytest.raises(
            OracleError, match=r"training\.adapter: target_modules: 'query' matches no layer.*q_proj"
        ):
            train(of, tmp_path / sections.popitem()[0], quiet())


def test_pairs_that_the_backbone_cannot_hold_are_refused_before_anything_is_computed(tmp_path, tiny_model):
    of = settings(tmp_path, encoder={"model": str(tiny_model("llama-3"))}, source_maxlength=10**6)
    with pytest.raises(
        OracleError, match=r"encoder\.model: .* positions, but a pair may have 1000824 tokens; lower"
    ):
        train(of, tmp_path / "pairs", quiet())


def test_from_votes_to_a_checked_oracle_by_the_command_line(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings(tmp_path)
    recipe = {
        "pairs": {"source": "pairs.jsonl", "held_out": 0.25},
        "head": {"type": "general_preference", "model": str(tiny_model("llama-3")), "frozen": False},
        "training": {"epochs": 1, "adapter": ADAPTER},
    }
    (tmp_path / "votes.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["train-oracle", "votes.yaml"])
    assert done.exit_code == 0, done.output
    assert "{type: general_preference, model: oracles/votes}" in done.output
    (tmp_path / "judge.yaml").write_text("oracle: {type: general_preference, model: oracles/votes}\n")
    (tmp_path / "responses.jsonl").write_text(
        json.dumps({"prompt": "Which?", "responses": ["aaa", "zz", "az"]})
    )
    done = CliRunner().invoke(app, ["oracle", "check", "judge.yaml", "--responses", "responses.jsonl"])
    assert done.exit_code == 0 and "mean P of the longer response" in done.output, done.output
