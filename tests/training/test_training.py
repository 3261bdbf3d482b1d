import dataclasses
import math
import subprocess
import sys
import time
from pathlib import Path

import model_families
import multimodal_models
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from training_jobs import (
    FAMILIES,
    TREES,
    assert_same_weights,
    jobs_on,
    metrics,
)
from transformers import AutoModelForCausalLM, get_scheduler

from sppo.algorithms import sppo as sppo_algorithm
from sppo.algorithms.dpo import DPO
from sppo.policy import load as policies
from sppo.training import train
from sppo.training.examples import StepBatches, TrainingError, read
from sppo.training.log_probs import (
    Capabilities,
    Tree,
    log_probs,
    measure_capabilities,
    packs,
    response_log_probs,
)
from sppo.training.metrics import Size, matmul_rate
from sppo.training.schedule import learning_rate, plan


def ways(found):
    """All ways of computing the same: prompts shared or not, the head fused or the model's own."""
    of_attention = ("pieces", "mask", "rows")
    return [Capabilities(way, logits) for way in of_attention for logits in (found.logits, None)]


def by_hand(model, prompt, response):
    """log pi(y|x) of one unpadded sequence, written out."""
    logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + index - 1, token] for index, token in enumerate(response))


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_one_sequence_at_a_time(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    found = measure_capabilities(model)
    assert found.attention == "pieces" and found.logits is not None
    expected = [
        [by_hand(model, tree.prompt, response).item() for response in tree.responses] for tree in TREES
    ]
    for way in ways(found):
        for pack_tokens in (1, 120, 10_000):
            values = log_probs(model, TREES, pack_tokens=pack_tokens, capabilities=way)
            for one, two in zip(values, expected, strict=True):
                assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_one_sequence_at_a_time(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    weights = torch.tensor([0.3, -1.0, 0.5, 2.0, -0.4, 0.7, 1.1, -0.2])
    flat = [(tree.prompt, response) for tree in TREES for response in tree.responses]
    for weight, (prompt, response) in zip(weights, flat, strict=True):
        (by_hand(model, prompt, response) * weight).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    for way in ways(measure_capabilities(model)):
        model.zero_grad()
        (response_log_probs(model, TREES, way) * weights).sum().backward()
        for parameter, one_at_a_time in zip(model.parameters(), expected, strict=True):
            assert (parameter.grad - one_at_a_time).norm() <= 1e-5 * one_at_a_time.norm()


def test_a_window_shorter_than_the_sequence_is_kept_to(tiny_model):
    model = policies.load(tiny_model("mistral"), dtype="float32", device="cpu")
    window = model.config.sliding_window
    tree = Tree(
        list(range(10, 10 + 2 * window)), [list(range(50, 50 + window)), list(range(90, 90 + 3 * window))]
    )
    expected = [by_hand(model, tree.prompt, response).item() for response in tree.responses]
    for way in ways(measure_capabilities(model)):
        assert log_probs(model, [tree], pack_tokens=1, capabilities=way)[0] == pytest.approx(
            expected, rel=1e-5
        )


def test_a_model_that_cannot_take_the_mask_gets_rows_of_its_own(tiny_model):
    """A model whose attention ignores the mask it is given: measured, and not trusted."""
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    forward = model.forward

    def deaf(attention_mask=None, **inputs):
        return forward(attention_mask=attention_mask if attention_mask.dim() == 2 else None, **inputs)

    model.forward = deaf
    assert measure_capabilities(model).attention == "rows"
    expected = [
        [by_hand(policies_alone, tree.prompt, r).item() for r in tree.responses]
        for policies_alone in [policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")]
        for tree in TREES
    ]
    for one, two in zip(log_probs(model, TREES, pack_tokens=300), expected, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


def test_recurrent_models_get_rows_of_their_own(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=400, state_size=4)
    ).eval()
    assert measure_capabilities(model).attention == "rows"


@pytest.mark.parametrize("way", ["pieces", "mask", "rows"])
def test_packs_hold_every_tree_once_within_the_budget(way):
    trees = [
        Tree([0] * left, [[0] * right, [0]]) for left, right in ((1, 9), (50, 3), (7, 20), (7, 4), (30, 30))
    ]
    found = list(packs(trees, 125, Capabilities(way, None)))
    assert sorted(index for pack in found for index in pack.indices) == [0, 1, 2, 3, 4]
    assert len(found) < 5
    for pack in found:
        assert [trees[index] for index in pack.indices] == pack.trees
        columns = {
            "pieces": sum(tree.tokens for tree in pack.trees),
            "mask": len(pack.trees) * max(tree.tokens for tree in pack.trees),
            "rows": 2 * len(pack.trees) * max(tree.tokens - 1 for tree in pack.trees),
        }
        assert len(pack.indices) == 1 or columns[way] <= 125


# Schedules


def test_the_papers_schedule_is_left_in_its_warm_up():
    steps = plan(20_000, batch_prompts=64, epochs=18, keep_epochs=1, warmup_ratio=0.1)
    assert (steps.per_epoch, steps.scheduled, steps.warmup, steps.kept) == (313, 5634, 564, 313)
    highest = max(learning_rate(step, steps, "linear", 5e-7) for step in range(steps.kept))
    assert highest == pytest.approx(5e-7 * 312 / 564)


@pytest.mark.parametrize("prompts", [10, 64, 65, 256, 640])
def test_a_short_schedule_loses_no_step_to_its_warm_up(prompts):
    steps = plan(prompts, batch_prompts=64, epochs=1, keep_epochs=None, warmup_ratio=0.1)
    assert steps.scheduled <= 10
    assert learning_rate(0, steps, "linear", 0.3) == 0.3
    assert all(learning_rate(step, steps, "linear", 0.3) > 0 for step in range(steps.kept))


@pytest.mark.parametrize("ratio", [0, 0.01, 0.3, 0.5, 0.99])
def test_a_schedule_of_one_or_two_steps_has_a_step_that_learns(ratio):
    for prompts in (1, 2):
        steps = plan(prompts, batch_prompts=1, epochs=1, keep_epochs=None, warmup_ratio=ratio)
        assert any(learning_rate(step, steps, "linear", 0.3) for step in range(steps.kept))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_learning_rates_are_those_of_transformers(schedule):
    steps = plan(100, batch_prompts=8, epochs=3, keep_epochs=None, warmup_ratio=0.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = get_scheduler(
        schedule, optimizer, num_warmup_steps=steps.warmup, num_training_steps=steps.scheduled
    )
    for step in range(steps.scheduled):
        assert learning_rate(step, steps, schedule, 0.3) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


# Whole stages


def test_the_first_steps_log_ratios_are_zero_and_its_loss_is_known(job):
    first = job(epochs=1, algorithm={"eta": 2.0, "reduction": "sum"})
    train(first)
    step = metrics(first)[0]
    # targets are eta (P - 1/2) = +0.8 and -0.8, summed over the two responses
    assert step["loss"] == pytest.approx(2 * 0.8**2, rel=1e-4)
    assert step["log_ratio_winners"] == pytest.approx(0, abs=1e-5)
    assert step["log_ratio_losers"] == pytest.approx(0, abs=1e-5)
    mean = job("mean", epochs=1, algorithm={"eta": 2.0, "reduction": "mean"})
    train(mean)
    assert metrics(mean)[0]["loss"] == pytest.approx(0.8**2, rel=1e-4)


def test_log_ratios_reach_their_targets(job):
    trained = job("long", count=4, epochs=200, learning_rate=5e-3, logging_steps=200)
    train(trained)
    last = metrics(trained)[-1]
    assert last["loss"] < 0.1 * 0.8**2  # the mean over the whole run: it began at 0.8^2
    assert last["log_ratio_winners"] == pytest.approx(0.8, abs=0.1)
    assert last["log_ratio_losers"] == pytest.approx(-0.8, abs=0.1)


def test_the_number_of_reported_steps_is_the_plans(job):
    counted = job(epochs=4, keep_epochs=1)
    seen = []
    train(counted, lambda count, text="": seen.append(count))
    assert sum(seen) == counted.steps.kept == 3
    rates = [record["learning_rate"] for record in metrics(counted)]
    expected = [learning_rate(step, counted.steps, "linear", 1e-3) for step in range(3)]
    assert rates == pytest.approx(expected)
    assert [record["epoch"] for record in metrics(counted)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_packing_does_not_change_the_step(job):
    one, two = job("one", pack_tokens=1), job("two", pack_tokens=10_000)
    train(one)
    train(two)
    assert_same_weights(one, two, atol=2e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights_to_the_bit(job):
    one, two = job("one"), job("two")
    train(one)
    train(two)
    assert_same_weights(one, two, atol=0, rtol=0)


@pytest.mark.parametrize(("native", "as_if"), [(True, "bf16"), (False, "no")])
def test_the_precision_auto_is_that_of_the_processor(job, monkeypatch, native, as_if):
    monkeypatch.setattr("sppo.training.multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen, named = job("auto", epochs=1, mixed_precision="auto"), job(as_if, epochs=1, mixed_precision=as_if)
    for one in (chosen, named):
        train(one)
    assert_same_weights(chosen, named, rtol=0, atol=0)


def test_the_policy_is_an_ordinary_folder_with_its_tokenizer(job):
    from transformers import AutoTokenizer

    trained = job(epochs=1)
    train(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained.output)
    assert tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(trained.output)
    before = AutoModelForCausalLM.from_pretrained(trained.policy)
    assert model.generation_config.eos_token_id == before.generation_config.eos_token_id
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_weights_can_be_saved_in_bfloat16(job):
    saved = job(epochs=1, save_dtype="bfloat16")
    train(saved)
    assert AutoModelForCausalLM.from_pretrained(saved.output, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("optimizer", ["rmsprop", "adafactor", "sgd", "adamw_torch_fused"])
def test_other_optimisers_by_transformers_names(job, optimizer):
    trained = job(epochs=1, optimizer=optimizer)
    train(trained)
    assert all(math.isfinite(record["loss"]) for record in metrics(trained))


def test_gradient_checkpointing_and_accumulated_packs_give_the_same_step(job):
    one, two = job("one", epochs=1), job("two", epochs=1, gradient_checkpointing=True, pack_tokens=20)
    train(one)
    train(two)
    assert_same_weights(one, two, atol=2e-5, rtol=1e-4)


def test_offloading_keeps_the_weights_that_gradient_checkpointing_gives(job):
    one, two = (
        job(str(choice), epochs=1, gradient_checkpointing=choice, checkpoint_steps=None)
        for choice in (True, "offload")
    )
    train(one)
    train(two)
    assert_same_weights(one, two, atol=0, rtol=0)


def test_a_loss_that_is_not_finite_names_step_and_prompt_and_is_not_applied(job):
    broken = job(log_partition=lambda number: 1e30 if number == 5 else 1.0)
    with pytest.raises(TrainingError, match=r"step [123]: the loss is not finite for the prompts p5"):
        train(broken)


def test_gradients_that_are_not_finite_name_step_and_prompts_and_are_not_applied(job, monkeypatch):
    """A loss that is finite while its gradient is not: the square root of a log-ratio of 0."""
    steep = sppo_algorithm.SPPO.loss

    def loss(self, responses):
        edge = torch.where(responses.log_partition > 1.5, responses.log_ratio[responses.winner], 1.0)
        return steep(self, responses) + (edge - edge.detach()).sqrt()

    monkeypatch.setattr(sppo_algorithm.SPPO, "loss", loss)
    broken = job(log_partition=lambda number: 2.0 if number in (3, 8) else 1.0, batch_prompts=12)
    with pytest.raises(
        TrainingError, match=r"step 1: the gradient's norm is nan, for the prompts p[38], p[38]; the"
    ):
        train(broken)
    assert not Path(broken.output).exists()


def test_every_step_tells_what_it_did(job):
    told = job(epochs=1, algorithm={"eta": 2.0})
    train(told)
    first, *_, last = metrics(told)
    assert (first["target_winners"], first["target_losers"]) == pytest.approx((0.8, -0.8))
    assert (first["win_rate_winners"], first["win_rate_losers"]) == pytest.approx((0.9, 0.1))
    assert first["kl"] == pytest.approx(0, abs=1e-9) and last["kl"] > 1e-6
    assert first["grad_norm"] > 0
    batch = StepBatches(read([Path(told.shards[0])]), batch_prompts=4, steps=told.steps, seed=told.seed)[0]
    assert first["response_tokens"] == sum(len(ids) for row in batch.examples for ids in row.responses)
    assert first["response_tokens_per_second"] > 0
    assert 0.01 < first["peak_memory_gb"] < 64
    assert "mfu" not in first  # of a GPU only


def test_a_line_of_several_steps_has_their_means(job):
    each, together = job("each"), job("together", logging_steps=6)
    train(each)
    train(together)
    lines = metrics(each)
    (one,) = metrics(together)
    for name in ("loss", "log_ratio_winners", "log_prob_losers", "target_winners", "kl", "response_tokens"):
        assert one[name] == pytest.approx(sum(line[name] for line in lines) / len(lines), rel=1e-6, abs=1e-9)


def test_a_loss_of_differences_has_no_targets(job):
    told = dataclasses.replace(job(epochs=1), algorithm=DPO(beta=0.1))
    train(told)
    assert not [name for name in metrics(told)[0] if name.startswith("target")]


def test_the_opponents_log_probabilities_must_be_of_this_policy(job):
    other = dataclasses.replace(job(), opponent="pi_2")
    with pytest.raises(
        TrainingError, match="log-probabilities are of the policy pi_1, but training starts from pi_2"
    ):
        train(other)


def test_the_models_size_and_its_flops(tiny_model):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    size = Size.measure(model)
    embedding = model.get_input_embeddings().weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert size.head == embedding
    assert size.body + size.head in (total, total - embedding)  # tied or not
    assert size.flops([Tree([1, 2, 3], [[4], [5, 6]])]) == 6 * (6 * size.body + 3 * size.head)


def test_the_rate_of_a_matrix_product_is_measured():
    assert 1e7 < matmul_rate(torch.device("cpu"), torch.float32, size=128, repeats=3) < 1e15


@pytest.mark.slow
def test_two_processes_follow_one(job):
    one, two = job("one", count=10), job("two", count=10, devices=2)
    seen = []
    train(one)
    train(two, lambda count, note="": seen.append(count))
    losses = [[record["loss"] for record in metrics(which)] for which in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_same_weights(one, two, atol=5e-5, rtol=1e-3)
    assert sum(seen) == two.steps.kept


def weights_before_and_after(folder, tmp_path):
    """The weights of a policy before and after a training, which two processes do as one does."""
    make_job = jobs_on(folder, tmp_path)
    one, two = make_job("one", count=4), make_job("two", count=4, devices=2)
    train(one)
    train(two)
    assert_same_weights(one, two, atol=5e-5, rtol=1e-3)
    return [load_file(Path(path) / "model.safetensors") for path in (folder, one.output)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", pytest.param("qwen3_5", marks=pytest.mark.long)])
def test_two_processes_train_the_language_model_of_a_multimodal_base(tmp_path, kind):
    folder = multimodal_models.make(tmp_path / "base", kind)
    before, after = weights_before_and_after(folder, tmp_path)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    seen = {name for name in after if "vision" in name or "multi_modal" in name}
    assert changed and not changed & seen and bool(seen) == (kind == "gemma3")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_a_model_with_weights_that_get_no_gradient(tmp_path):
    folder = tmp_path / "base"
    model_families.make("deepseek_v32").save_pretrained(folder)
    before, after = weights_before_and_after(folder, tmp_path)
    unchanged = {name for name in after if torch.equal(after[name], before[name])}
    assert {name for name in after if "indexer" in name} <= unchanged < set(after)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")
def test_processes_end_when_the_one_that_started_them_is_killed(job, tmp_path):
    long = job("long", devices=2, epochs=10_000)
    (tmp_path / "job.json").write_text(long.to_json())
    script = (
        "import sys; from pathlib import Path; from sppo.training import TrainingJob, train\n"
        "train(TrainingJob.from_json(Path(sys.argv[1]).read_text()))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "job.json")])
    metrics_file = Path(long.metrics)
    while not metrics_file.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(400):
        size = metrics_file.stat().st_size
        time.sleep(0.25)
        if metrics_file.stat().st_size == size:
            break
    else:
        pytest.fail("the processes go on training")


@pytest.mark.slow
def test_a_failure_in_one_of_several_processes_is_said_once(job):
    broken = job(devices=2, log_partition=lambda number: 1e30 if number == 5 else 1.0)
    with pytest.raises(TrainingError, match="the loss is not finite for the prompts p5"):
        train(broken)


def test_shares_of_all_processes_are_the_step():
    rows = pa.table({"prompt_id": [str(n) for n in range(10)]})
    steps = plan(10, batch_prompts=4, epochs=2, keep_epochs=None, warmup_ratio=0)
    orders = [randomness_order(rows, steps, rank, processes=3) for rank in range(3)]
    single = randomness_order(rows, steps, 0, processes=1)
    for step in range(steps.kept):
        together = sorted(row for order in orders for row in order[step])
        assert together == sorted(single[step])
    assert sorted(row for step in single[:3] for row in step) == sorted(rows["prompt_id"].to_pylist())
    assert single[:3] != single[3:]


def randomness_order(rows, steps, rank, processes):
    from unittest import mock

    batches = StepBatches(rows, batch_prompts=4, steps=steps, seed=3, rank=rank, processes=processes)
    with mock.patch("sppo.training.examples._examples", lambda part: part["prompt_id"].to_pylist()):
        return [batches[step].examples for step in range(len(batches))]
