"""A real vLLM, on the CPU: `make test-vllm`."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_runs import rows

from sppo import sampling
from sppo.policy import load as policies
from sppo.recipe import parse_sampling
from sppo.sampling import PromptBatch, SamplingError
from sppo.sampling.decoding import TransformersSampler
from sppo.sampling.drawing import warped
from sppo.sampling.engine_keepers import end_kept_engines
from sppo.sampling.transformers import TransformersSampling
from sppo.sampling.vllm import VllmSampling
from sppo.tinyworld import POLICY
from sppo.training.log_probs import Tree, log_probs

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ENGINE_ARGS = {"enforce_eager": True, "kv_cache_memory_bytes": 100_000_000, "max_model_len": 256}
TEXTS = ["Describe a fox in one sentence.", "Tell me about the rain, please.", "Describe a drum."]
STOP = 5


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Engines are kept although other programs may fill the memory of the machine that tests run on."""
    monkeypatch.setattr("sppo.sampling.engine_keepers.has_room_to_keep", lambda: True)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in TEXTS
    ]


@pytest.fixture(scope="module")
def model():
    return policies.load(POLICY, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def engine(tokenizer):
    of = parse_sampling({"engine": "vllm", "max_new_tokens": 60, "engine_args": ENGINE_ARGS})
    engine = sampling.load(of, POLICY, stop_ids=[STOP], decode=tokenizer.decode, dtype="float32")
    yield engine
    process = engine.engine.process
    engine.close()
    end_kept_engines()
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing of its group is left, so nothing of its memory


@pytest.fixture
def sampler(engine):
    """The same engine with other settings."""

    def of(**settings):
        engine.settings = VllmSampling(**{"max_new_tokens": 60, **settings})
        engine.stop_strings = dataclasses.replace(engine.stop_strings, strings=tuple(engine.settings.stop))
        return engine

    return of


def keys(count=3):
    return [("sample", 1, 0, f"p{number}") for number in range(count)]


def ids(drawn):
    return [[response.token_ids for response in of_prompt] for of_prompt in drawn]


def test_responses_end_with_the_end_of_turn_or_are_cut_at_the_limit(sampler, prompts):
    counted = []
    drawn = sampler(max_new_tokens=20).sample(prompts, keys(), 8, counted.append)
    assert [len(of_prompt) for of_prompt in drawn] == [8, 8, 8] and sum(counted) == 24
    assert {response.finish_reason for of_prompt in drawn for response in of_prompt} == {"stop", "length"}
    for response in (response for of_prompt in drawn for response in of_prompt):
        if response.finish_reason == "stop":
            assert response.token_ids[-1] == STOP
        else:
            assert len(response.token_ids) == 20
        assert STOP not in response.token_ids[:-1]
        assert len(response.token_log_probs) == len(response.token_ids)


def test_a_response_depends_on_its_key_alone(sampler, prompts):
    engine = sampler()
    together = ids(engine.sample(prompts, keys(), 4))
    assert together == ids(engine.sample(prompts, keys(), 4))
    alone = [ids(engine.sample([p], [key], 2))[0] for p, key in zip(prompts, keys())]
    assert [of_prompt[:2] for of_prompt in together] == alone
    assert ids(engine.sample(prompts[:1], [("sample", 2, 0, "p0")], 4))[0] != together[0]
    assert len({tuple(response) for response in together[0]}) == 4


@pytest.mark.parametrize("controls", [{}, {"temperature": 0.7, "top_p": 0.9}])
def test_log_probabilities_are_the_policys_own_and_agree_with_the_trainers(sampler, prompts, model, controls):
    drawn = sampler(**controls).sample(prompts, keys(), 4)
    trees = [Tree(p, [r.token_ids for r in responses]) for p, responses in zip(prompts, drawn)]
    for values, responses in zip(log_probs(model, trees, pack_tokens=500), drawn):
        for value, response in zip(values, responses):
            assert abs(value - response.log_prob) / len(response.token_ids) < 1e-4


@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.5, "min_p": 0.05, "top_p": 0.8},
    ],
    ids=str,
)
def test_controls_mean_the_same_as_in_the_other_sampler(sampler, prompts, model, controls):
    with torch.no_grad():
        logits = model(torch.tensor([prompts[0]])).logits[:, -1]
    count = 1000
    weights = warped(logits, TransformersSampling(**controls))[0]
    expected = weights / weights.sum()
    engine = sampler(max_new_tokens=1, **controls)
    drawn = [r for seed in range(4) for r in engine.sample(prompts[:1], [("f", seed)], count // 4)[0]]
    tokens = torch.tensor([response.token_ids[0] for response in drawn])
    found = torch.bincount(tokens, minlength=logits.shape[1]) / count
    assert set(found.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    # five standard errors of a frequency among so many draws
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 2e-3).all()


def test_stop_strings_mean_the_same_as_in_the_other_sampler(sampler, prompts, tokenizer):
    free = sampler().sample(prompts[:1], keys(1), 8)[0]
    engine = sampler(stop=["fox is"])
    stopped = 0
    for before, after in zip(free, engine.sample(prompts[:1], keys(1), 8)[0]):
        length = engine.stop_strings.length(before.token_ids)
        assert after.token_ids == before.token_ids[:length]
        stopped += length is not None
        assert after.finish_reason == ("stop" if length else before.finish_reason)
    assert stopped


def test_prompts_beyond_one_batch_of_the_engine_are_all_sampled(tokenizer, model):
    """64 prompts of 100 to 300 tokens are about 12,800 tokens; vLLM computes 2,048 at a time."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(100, 301, size=64)
    prompts = [generator.integers(8, len(tokenizer), size=length).tolist() for length in lengths]
    engine = started(POLICY, tokenizer, max_model_len=384)
    try:
        drawn = engine.sample(prompts, keys(64), 8)
        assert [len(responses) for responses in drawn] == [8] * 64
        again = engine.sample(prompts[:5], keys(5), 8)
        assert ids(again) == ids(drawn[:5])
        trees = [Tree(prompt, [r.token_ids for r in responses]) for prompt, responses in zip(prompts, drawn)]
        for values, responses in zip(log_probs(model, trees, pack_tokens=2000), drawn):
            for value, response in zip(values, responses):
                assert float(value) == pytest.approx(sum(response.token_log_probs), abs=2e-3)
    finally:
        engine.close()


def started(policy, tokenizer, **engine_args):
    settings = {"engine": "vllm", "max_new_tokens": 60, "engine_args": {**ENGINE_ARGS, **engine_args}}
    return sampling.load(
        parse_sampling(settings), policy, stop_ids=[STOP], decode=tokenizer.decode, dtype="float32"
    )


def test_an_engine_that_cannot_start_says_why(tokenizer):
    with pytest.raises(SamplingError, match="no_such"):
        started(POLICY, tokenizer, no_such=1)
    with pytest.raises(SamplingError, match=r"enable_chunked_prefill: true; on a CPU .* Remove the setting"):
        started(POLICY, tokenizer, enable_chunked_prefill=True)


def test_the_next_batch_begins_while_the_one_before_is_running(tokenizer, prompts):
    """The engine decodes 6 responses side by side here. It is killed in the middle, which changes no response."""
    sampler = started(POLICY, tokenizer, max_num_seqs=6)
    batches = [PromptBatch(prompts, [(key, number) for number in range(3)]) for key in "abcd"]
    expected = [ids(sampler.sample(batch.prompts, batch.keys, 2)) for batch in batches]
    taken, finished, reported, begun_early = 0, {}, [], False

    def counted():
        nonlocal taken
        for batch in batches:
            taken += 1
            yield batch

    for number, drawn in sampler.stream(counted(), 2, reported.append):
        begun_early |= taken > len(finished) + 1
        finished[number] = ids(drawn)
        if number == 1:
            os.kill(sampler.engine.process.pid, signal.SIGKILL)
    assert begun_early
    assert [finished[number] for number in range(4)] == expected
    assert sum(reported) == 4 * 3 * 2
    sampler.close()


def test_an_engine_that_is_left_in_the_middle_is_not_kept(tokenizer, prompts):
    end_kept_engines()
    sampler = started(POLICY, tokenizer)
    process = sampler.engine.process
    drawing = sampler.stream([PromptBatch(prompts, keys()), PromptBatch(prompts, keys())], 2)
    next(drawing)
    drawing.close()
    sampler.close()
    assert process.poll() is not None


def test_an_engine_that_is_killed_is_replaced_and_three_are_an_error(tokenizer, prompts):
    sampler = started(POLICY, tokenizer)
    expected, reported = ids(sampler.sample(prompts, keys(), 2)), []
    os.kill(sampler.engine.process.pid, signal.SIGKILL)
    assert ids(sampler.sample(prompts, keys(), 2, reported.append)) == expected
    assert sum(reported) == 6

    def kill_all():
        while not finished.wait(0.05):
            with contextlib.suppress(ProcessLookupError):
                os.kill(sampler.engine.process.pid, signal.SIGKILL)

    finished = threading.Event()
    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(SamplingError, match=r"vllm has ended with exit code -9[\s\S]*engine number 3"):
            sampler.sample(prompts, keys(), 2)
    finally:
        finished.set()
        killer.join()
        sampler.close()


def moved(folder, scale, seed):
    """The policy with noise on every weight."""
    shutil.copytree(POLICY, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    for weight in weights.values():
        weight += scale * torch.randn(weight.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_one_engine_serves_one_policy_after_another_as_fresh_engines_would(tmp_path, tokenizer, prompts):
    """The weights are swapped twice; long common prefixes would show keys and values of the policy before."""
    long = [tokenizer.encode(text * 20)[:150] for text in TEXTS]
    folders = [POLICY, moved(tmp_path / "second", 0.02, 1), moved(tmp_path / "third", 0.05, 2)]
    end_kept_engines()
    processes, swapped = set(), []
    for folder in folders:
        sampler = started(folder, tokenizer)
        processes.add(sampler.engine.process.pid)
        swapped.append(sampler.sample(prompts + long, keys(6), 4))
        sampler.close()
    assert len(processes) == 1
    for folder, in_place in zip(folders, swapped):
        end_kept_engines()
        sampler = started(folder, tokenizer)
        fresh = sampler.sample(prompts + long, keys(6), 4)
        sampler.close()
        assert ids(fresh) == ids(in_place)
        for one, other in zip(fresh, in_place):
            for response, swap in zip(one, other):
                assert swap.token_log_probs == pytest.approx(response.token_log_probs, abs=1e-4)
    assert ids(swapped[0]) != ids(swapped[1]) != ids(swapped[2])


@pytest.mark.parametrize(
    "change", ["another shape", "a resized vocabulary", "other arguments", "a dead engine"]
)
def test_a_kept_engine_that_does_not_fit_is_replaced(tmp_path, tokenizer, prompts, change):
    sampler = started(POLICY, tokenizer)
    kept = sampler.engine.process
    sampler.close()
    folder, arguments = POLICY, {}
    if change == "a dead engine":
        os.kill(kept.pid, signal.SIGKILL)
    elif change == "other arguments":
        arguments = {"max_model_len": 200}
    else:
        model = policies.load(POLICY, dtype="float32", device="cpu")
        if change == "a resized vocabulary":
            model.resize_token_embeddings(model.config.vocab_size + 64)
        else:
            model.config.num_hidden_layers -= 1
            del model.model.layers[-1]
        folder = tmp_path / "policy"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    sampler = started(folder, tokenizer, **arguments)
    assert sampler.engine.process.pid != kept.pid
    assert len(sampler.sample(prompts, keys(), 2)) == 3
    sampler.close()
    assert kept.poll() is not None


# The same in the processes of a run.
ROOM = """
import psutil
measured = psutil.virtual_memory
psutil.virtual_memory = lambda: measured()._replace(available=measured().total)
"""


def engines(process):
    """The processes of vLLM that a process or one of its workers has started, and who has started each."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "sppo.sampling.vllm_worker" in child.cmdline():
                    found[child.pid] = child.ppid()
    # An engine may fork, which for a moment is another process of the same name.
    return {pid: parent for pid, parent in found.items() if parent not in found}


def test_a_whole_run_by_two_workers(tmp_path):
    """Each worker starts one engine, which serves all policies. The trainer's log-probabilities agree with theirs, also in
    the second iteration, whose policy was loaded into running engines."""
    recipe = {
        "iterations": 2,
        "cpu_threads": 1,
        "shard_prompts": 4,
        "policy": {"model": "tinyworld"},
        "prompts": {"train": {"source": "tinyworld/train", "limit": 40}, "held_out": 8},
        "sampling": {
            "engine": "vllm",
            "k": 3,
            "max_new_tokens": 60,
            "engine_args": {**ENGINE_ARGS, "max_num_seqs": 6},
        },
        "workers": {"sample": 2},
        "oracle": {"type": "panel"},
        "training": {"learning_rate": 1e-3, "batch_prompts": 8},
        "evaluation": {"responses": 2},
        "guard": {"on_failure": "keep"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "sitecustomize.py").write_text(ROOM)
    command = [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", "--run-dir", "run"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    started: dict[int, int] = {}
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}
        )
        while process.poll() is None:
            started |= engines(process)
            time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(started) == len(set(started.values())) == 2, started
    ours = {*started, *started.values()}
    left = [process for process in psutil.process_iter() if process.pid in ours]
    assert not psutil.wait_procs(left, timeout=10)[1], "nothing is left"
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert len(summary["iterations"]) == 2
    for iteration in (1, 2):
        folder = tmp_path / f"run/iter-{iteration}"
        drawn = {row["prompt_id"]: row["responses"] for row in rows(folder / "responses")}
        deviations = [
            abs(response["opponent_log_prob"] - drawn[row["prompt_id"]][response["k"]]["log_prob"])
            / len(response["token_ids"])
            for row in rows(folder / "training")
            for response in row["responses"]
        ]
        assert deviations
        assert max(deviations) < 1e-4


def said(log):
    return Path(log.name).read_text()[-3000:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """vLLM's own OpenAI-compatible server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    arguments = ["--enforce-eager", "--kv-cache-memory-bytes", "100000000", "--max-model-len", "256"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(POLICY),
            "--dtype",
            "float32",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *arguments,
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 400
        while True:
            assert process.poll() is None, said(log)
            assert time.monotonic() < end, said(log)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def test_a_policy_behind_vllms_own_server(server, tmp_path, tokenizer, prompts, model):
    endpoint = {"url": server, "model": "{policy}", "cache": str(tmp_path / "answers")}
    values = {"engine": "openai", "endpoint": endpoint, "max_new_tokens": 60}
    of = parse_sampling(values)
    served = sampling.load(of, POLICY, stop_ids=[STOP], decode=tokenizer.decode, dtype="float32")
    drawn = served.sample(prompts, keys(), 4)
    again = served_again(of, tmp_path, tokenizer).sample(prompts, keys(), 4)
    assert ids(drawn) == ids(again)  # by its seeds, not from the cache
    trees = [Tree(p, [r.token_ids for r in responses]) for p, responses in zip(prompts, drawn)]
    for found, responses in zip(log_probs(model, trees, pack_tokens=500), drawn):
        for value, response in zip(found, responses):
            assert abs(value - response.log_prob) / len(response.token_ids) < 1e-4
            assert response.finish_reason == ("stop" if response.token_ids[-1] == STOP else "length")


def served_again(of, folder, tokenizer):
    endpoint = of.endpoint.model_copy(update={"cache": str(folder / "other-answers")})
    return sampling.load(
        of.model_copy(update={"endpoint": endpoint}),
        POLICY,
        stop_ids=[STOP],
        decode=tokenizer.decode,
        dtype="float32",
    )


def test_both_engines_answer_with_the_same_length_distribution(sampler, prompts, model):
    count = 60
    ours = TransformersSampler(model, TransformersSampling(max_new_tokens=60), [STOP])
    lengths = [
        np.array([len(response.token_ids) for response in one.sample(prompts[:1], [("l",)], count)[0]])
        for one in (ours, sampler())
    ]
    error = np.sqrt(sum(of.var() / count for of in lengths))
    assert abs(lengths[0].mean() - lengths[1].mean()) < 4 * error
