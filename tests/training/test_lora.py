"""The adapter that is trained: its opponent, its steps, what is kept of it."""

import dataclasses
import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import digests, play, rows, small
from training_jobs import FAMILIES, OPPONENT, TREES, examples_table, metrics

from sppo import recipe
from sppo.algorithms.sppo import SPPO
from sppo.policy import load as policies
from sppo.policy.adapter import AdapterError
from sppo.rundir.shards import write_shard
from sppo.training import TrainingJob, lora, train
from sppo.training.log_probs import Capabilities, Tree, log_probs, measure_capabilities, response_log_probs

LORA = {"r": 4, "lora_alpha": 8}
PLAYED = {
    "training.adapter": LORA,
    "training.learning_rate": 3e-3,
    "iterations": 3,
    "prompts.train.limit": 18,
    "prompts.per_iteration": 6,
    "prompts.held_out.limit": 4,
    "sampling.k": 2,
    "evaluation.responses": 1,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "kept"
    play(small(**PLAYED), folder)
    return folder


@pytest.fixture
def job(tiny_model, tmp_path):
    def make(name="run", folder=None, **changes):
        policy = folder or tiny_model("llama-3")
        adapter = changes.pop("adapter", LORA)
        job_changes = {key: changes.pop(key) for key in ("dtype", "quantization") if key in changes}
        dtype, quantization = job_changes.get("dtype", "float32"), job_changes.get("quantization")
        model = policies.load(policy, dtype=dtype, device="cpu", quantization=quantization)
        shard, work = tmp_path / f"part-{name}.parquet", tmp_path / f"work-{name}"
        write_shard(shard, examples_table(model), {})
        work.mkdir()
        return TrainingJob(
            policy=str(policy),
            opponent=OPPONENT,
            shards=[str(shard)],
            output=str(tmp_path / f"out-{name}"),
            work=str(work),
            metrics=str(tmp_path / f"{name}.jsonl"),
            prompts=12,
            seed=7,
            dtype=dtype,
            attn_implementation=None,
            trust_remote_code=False,
            chat_template=None,
            algorithm=SPPO(eta=2.0),
            settings=recipe.Training.model_validate(
                {"learning_rate": 1e-2, "batch_prompts": 4, "epochs": 2, "adapter": adapter, **changes}
            ),
            quantization=quantization,
        )

    return make


def trained(job):
    train(job)
    return load_file(f"{job.output}/adapter_model.safetensors")


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **tolerance)


def flat(values):
    return torch.tensor([value for of_prompt in values for value in of_prompt])


def first_step(run, iteration):
    lines = (run / f"iter-{iteration}" / "metrics.jsonl").read_text().splitlines()
    return next(record for record in map(json.loads, lines) if "log_ratio_winners" in record)


# The loop


def test_the_opponent_is_the_adapter_as_it_was_at_the_start_of_the_iteration(kept):
    for iteration in (1, 2, 3):
        step = first_step(kept, iteration)
        assert step["log_ratio_winners"] == pytest.approx(0, abs=1e-5)
        assert step["log_ratio_losers"] == pytest.approx(0, abs=1e-5)
    # and it is not the base: at the start of iteration 3 the policy is nats away from that
    trained_on = rows(kept / "iter-3" / "training")
    base = policies.load(policies.base_folder(kept / "iter-2" / "policy"), dtype="float32")
    apart = [
        abs(value - response["opponent_log_prob"])
        for row, values in zip(trained_on, log_probs(base, trees_of(trained_on), pack_tokens=4096))
        for response, value in zip(row["responses"], values)
    ]
    assert max(apart) > 0.1


def trees_of(rows):
    return [
        Tree(row["prompt_token_ids"], [response["token_ids"] for response in row["responses"]])
        for row in rows
    ]


def test_a_kept_adapter_is_small_and_says_what_its_base_is(kept):
    folder = kept / "iter-3" / "policy"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["peft_type"]) == ("tinyworld", 4, "LORA")
    base = policies.base_folder(folder)
    assert json.loads((folder / "base_policy.json").read_text())["sha256"] == policies.weights_digest(base)
    assert not (folder / "model.safetensors").exists()
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_kept_and_merged_are_the_same_policy_after_an_iteration(kept, tmp_path):
    play(small(**PLAYED | {"training.adapter": LORA | {"merge": True}, "iterations": 2}), tmp_path / "merged")
    for iteration in (1, 2):
        step = first_step(tmp_path / "merged", iteration)
        assert step["log_ratio_winners"] == pytest.approx(0, abs=1e-5)
    adapter, whole = (run / "iter-1" / "policy" for run in (kept, tmp_path / "merged"))
    assert not (whole / "adapter_config.json").exists()
    models = [policies.load(folder, dtype="float32") for folder in (adapter, whole)]
    trees = trees_of(rows(kept / "iter-1" / "training"))
    values = [flat(log_probs(model, trees, pack_tokens=4096)) for model in models]
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)
    ids = torch.tensor([trees[0].prompt])
    greedy = [model.generate(ids, max_new_tokens=30, do_sample=False) for model in models]
    assert torch.equal(*greedy)


def test_a_run_with_adapters_starts_again_where_it_was(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "iter-2" / "policy")
    (tmp_path / "again" / "iter-2" / "train.json").unlink()
    play(small(**PLAYED), tmp_path / "again")
    assert digests(tmp_path / "again") == digests(kept)


@pytest.mark.parametrize("change", [{"r": 8}, {"merge": True}])
def test_adapter_settings_belong_to_the_training(kept, change):
    with pytest.raises(ValueError, match=r"stale:\n  iteration 1: train") as caught:
        play(small(**PLAYED | {"training.adapter": LORA | change}), kept)
    assert "iteration 1: select" not in str(caught.value)


# The step


def test_gradients_reach_the_adapter_alone(tiny_model):
    folder = tiny_model("qwen2")
    model = lora.prepare(policies.load(folder, dtype="float32"), recipe.Lora(r=4), seed=1)
    before = policies.load(folder, dtype="float32").state_dict()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = measure_capabilities(model)
    for _ in range(2):  # in the first step B is zero, and so are the gradients of A
        response_log_probs(model, TREES, found).sum().backward()
        optimizer.step()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    for name, parameter in model.named_parameters():
        assert ("lora_" in name) == (name in trainable) == (parameter.grad is not None)
        if name in trainable:
            assert parameter.grad.abs().sum() > 0, name
    after = model.unload().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_responses_share_their_prompt_through_an_adapter(tiny_model, family):
    model = lora.prepare(policies.load(tiny_model(family), dtype="float32"), recipe.Lora(r=4), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    found = measure_capabilities(model)
    assert found.attention == "pieces"
    assert found.logits is not None  # the head is fused
    plain = Capabilities("rows", None)
    shared, alone = (
        flat(log_probs(model, TREES, pack_tokens=400, capabilities=how)) for how in (found, plain)
    )
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-5)
    plain = policies.load(tiny_model(family), dtype="float32")
    base = flat(log_probs(plain, TREES, pack_tokens=400))
    assert (shared - base).abs().max() > 0.1
    merged = lora.merged(model, torch.float32)
    values = flat(log_probs(merged, TREES, pack_tokens=400))
    torch.testing.assert_close(shared, values, atol=1e-4, rtol=1e-5)


def test_a_fresh_adapter_computes_what_its_base_computes_to_the_bit(tiny_model):
    model = policies.load(tiny_model("llama-3"), dtype="float32")
    before = log_probs(model, TREES, pack_tokens=400)
    assert log_probs(lora.prepare(model, recipe.Lora(), seed=1), TREES, pack_tokens=400) == before


def test_gradient_checkpointing_and_packs_do_not_change_an_adapters_step(job):
    one = trained(job("one"))
    two = trained(job("two", gradient_checkpointing=True, pack_tokens=20))
    assert_same(one, two, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(job):
    one, two = job("one"), job("two", devices=2)
    assert_same(trained(one), trained(two), atol=1e-4, rtol=1e-3)
    losses = [[record["loss"] for record in metrics(which)] for which in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_adapters_training_goes_on_from_its_checkpoint(job, tmp_path):
    alone = job("alone", checkpoint_steps=2)
    expected = trained(alone)
    checkpoint = tmp_path / "work-alone" / "checkpoint-4"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    going_on = dataclasses.replace(
        alone, output=str(tmp_path / "resumed"), checkpoint=str(checkpoint), begun=4
    )
    assert_same(expected, trained(going_on), atol=0, rtol=0)


def test_a_bfloat16_base_has_a_float32_adapter_and_a_merge_is_rounded_once(job):
    weights = trained(job("bf16", dtype="bfloat16"))
    assert {value.dtype for value in weights.values()} == {torch.float32}
    merge = job("merged", dtype="bfloat16", adapter=LORA | {"merge": True}, save_dtype="float32")
    train(merge)
    base = load_file(f"{merge.policy}/model.safetensors")
    merged = load_file(f"{merge.output}/model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    path = f"base_model.model.{name}.lora_"
    update = 2 * weights[f"{path}B.weight"] @ weights[f"{path}A.weight"]
    expected = base[f"{name}.weight"].bfloat16().float() + update
    torch.testing.assert_close(merged[f"{name}.weight"], expected, atol=1e-6, rtol=1e-5)


# What is refused


def test_names_that_match_no_layer_are_refused_before_anything_is_computed(tiny_model, tmp_path):
    changes = {"iterations": 1, "training.adapter": {"target_modules": ["q_proj", "c_attn"]}}
    with pytest.raises(ValueError, match=r"target_modules: 'c_attn' matches no layer .*q_proj"):
        play(small(**changes), tmp_path / "run")
    for end in ("lm_head", "embed_tokens"):
        changes["training.adapter"] = {"target_modules": ["q_proj", end]}
        with pytest.raises(ValueError, match="the token embeddings and the output head cannot be adapted"):
            play(small(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "iter-0").exists()


def test_without_peft_nothing_is_begun(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "peft" else found(name, *more)
    )
    with pytest.raises(AdapterError, match=r"pip install 'sppo\[peft\]'"):
        play(small(**PLAYED), tmp_path / "run")
    assert not (tmp_path / "run" / "iter-0").exists()


def test_an_adapter_given_as_the_base_policy_is_gone_on_with(kept, tmp_path):
    given = str(kept / "iter-1" / "policy")
    changes = PLAYED | {"iterations": 1, "policy.model": given}
    for wrong, message in (
        ({"training.adapter": None}, "cannot be trained without training.adapter"),
        ({"training.adapter": LORA | {"r": 8}}, r"training.adapter.r: 8, but .* has 4"),
        ({"training.adapter": LORA | {"target_modules": ["q_proj"]}}, r"has\s+others \(down_proj"),
        ({"policy.quantization": "nf4"}, "was trained on a base that is not quantised"),
    ):
        with pytest.raises(ValueError, match=message):
            play(small(**changes | wrong), tmp_path / "run")
    play(small(**changes), tmp_path / "run")
    first = first_step(tmp_path / "run", 1)
    assert first["log_ratio_winners"] == pytest.approx(0, abs=1e-5)
    after = tmp_path / "run" / "iter-1" / "policy"
    assert policies.base_folder(after) == policies.base_folder(kept / "iter-1" / "policy")
    one, two = (
        load_file(folder / "adapter_model.safetensors") for folder in (kept / "iter-1" / "policy", after)
    )
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)


# QLoRA


@pytest.mark.slow
def test_the_quantised_base_is_the_policy_in_every_stage(tmp_path):
    pytest.importorskip("bitsandbytes")
    changes = PLAYED | {"iterations": 2, "policy.quantization": "nf4", "policy.dtype": "bfloat16"}
    play(small(**changes), tmp_path / "run")
    for iteration in (1, 2):
        step = first_step(tmp_path / "run", iteration)
        assert step["log_ratio_winners"] == pytest.approx(0, abs=1e-4)
        assert step["log_ratio_losers"] == pytest.approx(0, abs=1e-4)
    folder = tmp_path / "run" / "iter-2" / "policy"
    assert json.loads((folder / "base_policy.json").read_text())["quantization"] == "nf4"
    model = policies.load(folder, dtype="bfloat16")
    assert "Linear4bit" in {type(module).__name__ for module in model.modules()}


def test_gradients_through_quantised_weights_are_those_through_their_values(tiny_model):
    """On the CPU too, where bitsandbytes' layers for inference have none."""
    pytest.importorskip("bitsandbytes")
    gradients = []
    for plain in (False, True):
        model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu", quantization="nf4")
        model = model.dequantize() if plain else model
        model = lora.prepare(model, recipe.Lora(r=4), seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
        found = measure_capabilities(model)
        assert found.attention == "pieces"
        model.train()
        response_log_probs(model, TREES, found).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert_same(*gradients, atol=1e-3, rtol=1e-4)
