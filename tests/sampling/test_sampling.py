import numpy as np
import pytest
import torch
from small_runs import small

from sppo import sampling
from sppo.policy import load as policies
from sppo.recipe import parse_sampling
from sppo.sampling import PromptBatch, dtype, memory
from sppo.sampling.decoding import TransformersSampler
from sppo.sampling.drawing import choose, warped
from sppo.sampling.key_values import Cohorts, OneBatch
from sppo.sampling.transformers import TransformersSampling
from sppo.stages.models import Models
from sppo.tinyworld import POLICY
from sppo.training.log_probs import Tree, log_probs

PROMPT = "Describe a fox in one sentence."


@pytest.fixture(scope="module")
def tinyworld():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    model = policies.load(POLICY, dtype="float32", device="cpu")

    def ids(text):
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )

    return model, tokenizer, ids


def sampler(model, tokenizer, **settings):
    return TransformersSampler(
        model, TransformersSampling(**{"max_new_tokens": 60, **settings}), [tokenizer.eos_token_id]
    )


def test_responses_end_with_the_end_of_turn_or_are_cut_at_the_limit(tinyworld):
    model, tokenizer, ids = tinyworld
    drawn = sampler(model, tokenizer, max_new_tokens=20).sample([ids(PROMPT)], [("a",)], 16)[0]
    assert {response.finish_reason for response in drawn} == {"stop", "length"}
    for response in drawn:
        if response.finish_reason == "stop":
            assert response.token_ids[-1] == tokenizer.eos_token_id
        else:
            assert len(response.token_ids) == 20
        assert tokenizer.eos_token_id not in response.token_ids[:-1]


def batches(ids, sizes):
    """Batches of different prompts and keys, with the number of each size."""
    numbers = iter(range(sum(sizes)))
    for size in sizes:
        mine = [next(numbers) for _ in range(size)]
        yield PromptBatch(
            [ids(f"Describe {'a very ' * (n % 3)}old drum number {n}.") for n in mine],
            [(3, n) for n in mine],
        )


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("kind", [Cohorts, OneBatch])
def test_batches_give_the_same_responses_as_one_by_one(tinyworld, monkeypatch, crosses, kind):
    """Only a sampler that crosses batches begins one while another is running, and one batch of a cache has no room."""
    model, tokenizer, ids = tinyworld
    engine = sampler(model, tokenizer, batch_tokens=1000)
    monkeypatch.setattr(engine, "_key_values", kind)
    engine.crosses_batches = crosses
    sizes = [3, 0, 1, 4, 2]
    expected = [engine.sample(batch.prompts, batch.keys, 3) for batch in batches(ids, sizes)]
    taken, finished, responses = 0, {}, []

    def counted():
        nonlocal taken
        for batch in batches(ids, sizes):
            taken += 1
            yield batch

    begun_early = False
    for number, drawn in engine.stream(counted(), 3, responses.append):
        begun_early |= taken > len(finished) + 1
        finished[number] = drawn
    assert begun_early == (crosses and kind is Cohorts)
    assert sum(responses) == 3 * sum(sizes)
    assert sorted(finished) == list(range(len(sizes)))
    for number, batch in enumerate(expected):
        for one, other in zip(batch, finished[number], strict=True):
            assert [r.token_ids for r in one] == [r.token_ids for r in other]
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a.token_log_probs, b.token_log_probs, atol=1e-5)


@pytest.mark.parametrize("change", [{"batch_tokens": 1}, {"batch_tokens": 700}])
def test_draws_do_not_depend_on_what_shares_the_batch(tinyworld, change):
    model, tokenizer, ids = tinyworld
    prompts = [ids(PROMPT), ids("Tell me about the rain, please, and be kind."), ids("Describe a drum.")]
    keys = [(0, 1, f"p{number}") for number in range(3)]
    together = sampler(model, tokenizer).sample(prompts, keys, 3)
    apart = sampler(model, tokenizer, **change).sample(prompts, keys, 3)
    alone = [sampler(model, tokenizer).sample([prompt], [key], 3)[0] for prompt, key in zip(prompts, keys)]
    for one, two, three in zip(together, apart, alone, strict=True):
        assert [r.token_ids for r in one] == [r.token_ids for r in two] == [r.token_ids for r in three]
        np.testing.assert_allclose([r.log_prob for r in one], [r.log_prob for r in three], atol=1e-4)


def test_the_same_key_gives_the_same_draw_and_another_key_another(tinyworld):
    model, tokenizer, ids = tinyworld
    engine = sampler(model, tokenizer)
    first, again, other = (
        engine.sample([ids(PROMPT)], [key], 2)[0] for key in [("x", 1), ("x", 1), ("x", 2)]
    )
    assert first == again
    assert first != other
    assert first[0].token_ids != first[1].token_ids
    # response k is the same whatever K is
    assert engine.sample([ids(PROMPT)], [("x", 1)], 1)[0][0].token_ids == first[0].token_ids


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"])
def test_log_probabilities_agree_with_the_trainers(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    engine = TransformersSampler(model, TransformersSampling(max_new_tokens=30), [3])
    prompts = [[5, 6, 7, 8, 9], [10, 11], list(range(20, 60))]
    drawn = engine.sample(prompts, [(number,) for number in range(3)], 3)
    trees = [Tree(prompt, [r.token_ids for r in responses]) for prompt, responses in zip(prompts, drawn)]
    per_token = [
        abs(value - response.log_prob) / len(response.token_ids)
        for values, responses in zip(log_probs(model, trees, pack_tokens=200), drawn)
        for value, response in zip(values, responses)
    ]
    assert max(per_token) < 1e-4


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"])
def test_the_most_probable_tokens_are_those_of_generate(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    # sharper, so that rounding does not decide between near-ties of random weights
    settings = TransformersSampling(max_new_tokens=24).model_copy(update={"temperature": 1e-4})
    engine = TransformersSampler(model, settings, [399])
    prompts = [[5, 6, 7, 8, 9], list(range(20, 50))]
    ours = [responses[0].token_ids for responses in engine.sample(prompts, [(0,), (1,)], 1)]
    for prompt, found in zip(prompts, ours):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=399,
            pad_token_id=0,
        )
        assert found == theirs[0, len(prompt) :].tolist()


def first_token_frequencies(model, tokenizer, prompt, count=4000, **settings):
    engine = sampler(model, tokenizer, max_new_tokens=1, **settings)
    drawn = engine.sample([prompt], [("frequencies",)], count)[0]
    tokens = torch.tensor([response.token_ids[0] for response in drawn])
    return torch.bincount(tokens, minlength=model.config.vocab_size) / count


def test_tokens_are_drawn_with_the_models_probabilities(tinyworld):
    model, tokenizer, ids = tinyworld
    prompt = ids(PROMPT)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    for temperature in (1.0, 0.5):
        expected = (logits / temperature).softmax(-1)
        found = first_token_frequencies(model, tokenizer, prompt, temperature=temperature)
        # five standard errors of a frequency among 4000 draws
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


def test_truncated_tokens_are_never_drawn_and_log_probabilities_stay_untruncated(tinyworld):
    model, tokenizer, ids = tinyworld
    prompt = ids(PROMPT)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    order = logits.argsort(descending=True)
    assert set(
        first_token_frequencies(model, tokenizer, prompt, top_k=2).nonzero().flatten().tolist()
    ) <= set(order[:2].tolist())
    nucleus = int((logits.softmax(-1)[order].cumsum(0) < 0.5).sum()) + 1
    drawn = set(first_token_frequencies(model, tokenizer, prompt, top_p=0.5).nonzero().flatten().tolist())
    assert drawn == set(order[:nucleus].tolist())
    response = sampler(model, tokenizer, max_new_tokens=1, top_k=1, temperature=0.3).sample(
        [prompt], [(0,)], 1
    )[0][0]
    assert response.log_prob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)


def test_load_gives_the_engine_of_the_recipe():
    engine = sampling.load(TransformersSampling(top_p=0.5), POLICY, stop_ids=[5], decode=str, dtype="float32")
    assert isinstance(engine, TransformersSampler)
    assert engine.settings.max_new_tokens == 512
    assert engine.settings.top_p == 0.5


# truncation


def reference(logits, *, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0):
    """Probabilities after temperature, min-p, top-k and top-p, one token after another."""
    probabilities = (logits.double() / temperature).softmax(-1).tolist()
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    kept = [token for token in order if probabilities[token] >= min_p * probabilities[order[0]]]
    kept = kept[:top_k] if top_k else kept
    total, nucleus, reached = sum(probabilities[token] for token in kept), [], 0.0
    for token in kept:
        if reached >= top_p * total:
            break
        nucleus.append(token)
        reached += probabilities[token]
    total = sum(probabilities[token] for token in nucleus)
    return {token: probabilities[token] / total for token in nucleus}


CONTROLS = [
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 7},
    {"min_p": 0.05},
    {"temperature": 1.5, "min_p": 0.1, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.6},
    {"top_k": 300, "min_p": 1e-4, "top_p": 0.99, "temperature": 2.0},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_every_uniform_number_gives_the_token_of_the_truncated_distribution(controls):
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(1, 500, generator=generator)
    expected = reference(logits[0], **controls)
    count = 20001
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    chosen, log_prob = choose(logits.expand(count, -1), uniform, TransformersSampling(**controls))
    found = torch.bincount(chosen, minlength=500) / count
    assert set(found.nonzero().flatten().tolist()) == {t for t, p in expected.items() if p > 2 / count}
    for token, probability in expected.items():
        assert float(found[token]) == pytest.approx(probability, abs=1.5 / count)
    torch.testing.assert_close(log_prob.float(), logits[0].log_softmax(-1)[chosen], atol=1e-5, rtol=1e-5)


def test_uniform_numbers_at_the_ends_never_draw_an_impossible_token():
    logits = torch.full((2, 50), -torch.inf)
    logits[:, 10], logits[:, 20] = 0.0, 1.0
    chosen, _ = choose(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), TransformersSampling())
    assert chosen.tolist() == [10, 20]


def test_a_flat_distribution_has_a_nucleus_beyond_the_first_candidates():
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    chosen, _ = choose(torch.zeros(1, 1000).expand(4000, -1), uniform, TransformersSampling(top_p=0.5))
    assert sorted(set(chosen.tolist())) == list(range(500))  # of tied tokens, only as many as are needed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("logits", "settings", "kept"),
    [
        ([2.0, 0.0, 1.0, 1.0, 1.0, 0.0], {"top_k": 2}, [0, 2]),
        # the probabilities are 0.41, 0.06, and three times 0.15: two of the three are needed for 0.7
        ([2.0, 0.0, 1.0, 1.0, 1.0, 0.0], {"top_p": 0.7}, [0, 2, 3]),
        ([1.0, 1.0, 1.0, 1.0], {"top_k": 3}, [0, 1, 2]),
        ([1.0, 1.0, 1.0, 1.0], {"top_p": 0.4}, [0, 1]),
        ([0.0, 3.0, 3.0, 0.0], {"top_k": 1}, [1]),
        ([2.0, 0.0, 1.0, 1.0, 1.0, 0.0], {"top_k": 3, "top_p": 0.7}, [0, 2]),
    ],
)
def test_ties_at_the_edge_keep_as_many_tokens_as_are_needed(logits, settings, kept, dtype):
    found = warped(torch.tensor([logits], dtype=dtype), TransformersSampling(**settings))
    assert found[0].nonzero().flatten().tolist() == kept


# stop strings


def test_a_stop_string_ends_the_response_whose_ids_keep_its_tokens(tinyworld):
    model, tokenizer, ids = tinyworld
    free = sampler(model, tokenizer).sample([ids(PROMPT)], [("s",)], 6)[0]
    engine = TransformersSampler(
        model,
        TransformersSampling(max_new_tokens=60, stop=["fox is"]),
        [tokenizer.eos_token_id],
        tokenizer.decode,
    )
    found = engine.sample([ids(PROMPT)], [("s",)], 6)[0]
    stopped = 0
    for before, after in zip(free, found, strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        text = tokenizer.decode(before.token_ids)
        if "fox is" in text:
            stopped += 1
            assert after.finish_reason == "stop"
            assert "fox is" in tokenizer.decode(after.token_ids)
            assert "fox is" not in tokenizer.decode(after.token_ids[:-1])
            assert engine.stop_strings.trim(text) == text.partition("fox is")[0]
            assert engine.stop_strings.shortened(before).token_ids == after.token_ids
        else:
            assert before.token_ids == after.token_ids
    assert stopped


# the two ways of keeping keys and values


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"])
def test_both_ways_of_keeping_keys_and_values_draw_the_same(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    settings = TransformersSampling(max_new_tokens=40, batch_tokens=400)
    engine = TransformersSampler(model, settings, [3, 4])
    assert engine._key_values is Cohorts
    prompts = [[5, 6, 7, 8, 9], [10, 11], list(range(20, 60)), [9] * 12]
    keys = [(number,) for number in range(4)]
    fast = engine.sample(prompts, keys, 7)  # the longest prompt's seven do not fit at once
    engine._key_values = OneBatch
    slow = engine.sample(prompts, keys, 7)
    for one, other in zip(fast, slow, strict=True):
        assert [r.token_ids for r in one] == [r.token_ids for r in other]
        np.testing.assert_allclose([r.log_prob for r in one], [r.log_prob for r in other], atol=1e-3)


def test_a_model_with_attention_of_its_own_is_sampled_all_the_same(tiny_model):
    fast, eager = (
        TransformersSampler(
            policies.load(tiny_model("llama-3"), dtype="float32", device="cpu", attn_implementation=kind),
            TransformersSampling(max_new_tokens=20),
            [3],
        )
        for kind in (None, "eager")
    )
    assert eager._key_values is OneBatch
    drawn = [engine.sample([[5, 6, 7]], [(0,)], 3)[0] for engine in (fast, eager)]
    assert [r.token_ids for r in drawn[0]] == [r.token_ids for r in drawn[1]]


# memory and models that are missing


def test_a_policy_that_does_not_fit_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: (1 << 20, "this machine"))
    with pytest.raises(sampling.SamplingError, match=r"weights of .* set sampling.dtype: bfloat16"):
        sampling.load(TransformersSampling(), POLICY, stop_ids=[5], decode=str, dtype="float32")
    monkeypatch.setattr(memory, "free_memory", lambda: (12 << 20, "this machine"))
    with pytest.raises(sampling.SamplingError, match="lower it to") as error:
        sampling.load(TransformersSampling(), POLICY, stop_ids=[5], decode=str, dtype="float32")
    fitting = int(str(error.value).split("lower it to ")[1].split()[0])
    sampling.load(
        TransformersSampling(batch_tokens=fitting), POLICY, stop_ids=[5], decode=str, dtype="float32"
    ).close()


def test_a_policy_that_vllm_could_not_hold_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: (1 << 20, "this machine"))  # 3.5 are needed
    of = parse_sampling({"engine": "vllm", "engine_args": {"tensor_parallel_size": 4}})
    with pytest.raises(sampling.SamplingError, match=r"weights of .* raise sampling.engine_args.tensor_par"):
        sampling.load(of, POLICY, stop_ids=[5], decode=str, dtype="float32")
    monkeypatch.setattr(memory, "free_memory", lambda: (1 << 20, "the GPU"))
    with pytest.raises(sampling.SamplingError):
        memory.check_weights(POLICY, "float32", {}, devices=3)
    memory.check_weights(POLICY, "float32", {}, devices=4)
    memory.check_weights(POLICY, "float32", {"quantization": "fp8"}, devices=1)


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(sampling.SamplingError, match=r"pip install 'sppo\[vllm\]'"):
        parse_sampling({"engine": "vllm"}).check()


@pytest.mark.parametrize(
    ("settings", "more", "native", "expected"),
    [
        ({}, {}, True, "bfloat16"),
        ({}, {}, False, "float32"),
        ({"dtype": "float32"}, {}, True, "float32"),
        ({"dtype": "bfloat16"}, {}, False, "bfloat16"),
        ({}, {"parameters": 49e6}, True, "float32"),
        ({}, {"is_quantised": True}, True, "float32"),
        ({"engine": "vllm"}, {}, True, "bfloat16"),
        ({"engine": "openai", "endpoint": {"url": "http://x/v1", "model": "{policy}"}}, {}, True, "float32"),
    ],
)
def test_bfloat16_is_taken_where_it_is_native_and_nothing_says_otherwise(
    monkeypatch, settings, more, native, expected
):
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = dtype.weights_dtype(parse_sampling(settings), "float32", **{"parameters": 50e6, **more})
    assert found == expected


def test_the_chosen_type_is_that_of_the_loaded_weights(monkeypatch):
    monkeypatch.setattr(dtype, "LEAST_PARAMETERS", 1)
    for native in (True, False):
        monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda native=native: native)
        loaded = sampling.load(TransformersSampling(), POLICY, stop_ids=[5], decode=str, dtype="float32")
        on_cpu = loaded.model.device.type == "cpu"
        assert loaded.model.dtype == (torch.bfloat16 if native and on_cpu else torch.float32)
        loaded.close()


def test_log_probabilities_that_are_trained_on_are_the_samplers_in_the_policys_own_type(monkeypatch):
    monkeypatch.setattr(dtype, "LEAST_PARAMETERS", 1)
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda: True)
    for source, expected in (("sampler", torch.float32), ("trainer", torch.bfloat16)):
        models = Models(small(training={"opponent_log_probs": source}))
        if models.sampler(None).model.device.type == "cpu":
            assert models.sampler(None).model.dtype == expected
        models.release()
