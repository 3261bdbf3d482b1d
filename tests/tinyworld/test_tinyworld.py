import json
import random
import time
import warnings
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest

from sppo import tinyworld
from sppo.tinyworld import annotators, build, grammar

PANEL = (annotators.scholar, annotators.editor, annotators.host)
FOX = "Describe a fox."
ROOT = Path(__file__).resolve().parents[2]


def _prompts(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _majority(prompts, responses):
    return np.mean([annotator(prompts, responses) for annotator in PANEL], axis=0)


def _cyclic_share(matrix: np.ndarray) -> float:
    """Share of triples of responses on which the majority goes round; matrix is [N, K, K]."""
    wins = matrix > 0.5
    triples = list(combinations(range(matrix.shape[-1]), 3))
    cycles = [wins[:, i, j] & wins[:, j, k] & wins[:, k, i] for i, j, k in triples]
    cycles += [wins[:, j, i] & wins[:, k, j] & wins[:, i, k] for i, j, k in triples]
    return float(np.sum(cycles)) / (len(triples) * len(matrix))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tinyworld.POLICY, local_files_only=True)


@pytest.fixture(scope="module")
def sampled():
    """40 held-out prompts with five responses each: the policy's token ids, texts, and whether they ended."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tinyworld.POLICY, local_files_only=True)
    policy = AutoModelForCausalLM.from_pretrained(tinyworld.POLICY, local_files_only=True)
    prompts = [row["prompt"] for row in _prompts(tinyworld.HELD_OUT_PROMPTS)[::6]]
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    # Matrices this small are slower on several threads, far slower on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = policy.generate(
        **inputs, do_sample=True, temperature=1.0, max_new_tokens=96, num_return_sequences=5
    )
    torch.set_num_threads(threads)
    ids = ids[:, inputs["input_ids"].shape[1] :]
    ended = (ids == tokenizer.eos_token_id).any(dim=1)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return prompts, [texts[5 * n : 5 * n + 5] for n in range(len(prompts))], ended.numpy()


# Files


def test_the_world_is_small():
    folder = Path(tinyworld.__file__).parent
    size = sum(path.stat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert size <= 6 * 2**20


def test_prompts_are_enough_and_held_out_ones_are_new():
    train, held_out = _prompts(tinyworld.TRAIN_PROMPTS), _prompts(tinyworld.HELD_OUT_PROMPTS)
    assert len(train) >= 1200
    assert len(held_out) >= 240
    for key in ("prompt_id", "prompt"):
        values = [row[key] for row in (*train, *held_out)]
        assert len(set(values)) == len(values)
    topics = [{annotators.topic_of(row["prompt"]) for row in split} for split in (train, held_out)]
    assert topics[0] == topics[1] == set(range(len(grammar.TOPICS)))


def test_every_instruction_names_its_own_topic():
    for split in grammar.instructions():
        assert all(annotators.topic_of(prompt) == index for _, prompt, index in split)


def test_prompts_and_tokenizer_are_rebuilt_identically(tmp_path):
    build.main(["--only", "prompts", "tokenizer", "--output", str(tmp_path)])
    rebuilt = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(rebuilt) == 5
    for path in rebuilt:
        shipped = Path(tinyworld.__file__).parent / path.relative_to(tmp_path)
        assert path.read_bytes() == shipped.read_bytes(), path.name


# Tokenizer


@pytest.mark.parametrize("text", ["A fox hunts in the dark.", "  two\n\nlines\t", "naïve 狐 🦊 \u202e", ""])
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_chat_template_with_system_and_several_turns(tokenizer):
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Describe a fox."},
        {"role": "assistant", "content": "A fox hunts."},
        {"role": "user", "content": "More."},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|system|>Be kind.<|end|><|user|>Describe a fox.<|end|>"
        "<|assistant|>A fox hunts.<|end|><|user|>More.<|end|><|assistant|>"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(Exception, match="unknown role: wizard"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


def test_ids_of_the_folder_agree(tokenizer):
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(tinyworld.POLICY)
    generation = GenerationConfig.from_pretrained(tinyworld.POLICY)
    assert tokenizer.eos_token == "<|end|>"
    assert config.eos_token_id == generation.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id == generation.pad_token_id == tokenizer.pad_token_id
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == 512


def test_the_policy_loads_without_warnings(caplog):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    root = logging.get_logger("transformers")
    root.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AutoTokenizer.from_pretrained(tinyworld.POLICY, local_files_only=True)
            policy = AutoModelForCausalLM.from_pretrained(tinyworld.POLICY, local_files_only=True)
    finally:
        root.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert 0.8e6 < policy.num_parameters() < 1.2e6


# PairRM


def test_the_shipped_pairrm_is_what_its_settings_train():
    from sppo.recipe import load_oracle_training

    settings = load_oracle_training(ROOT / "recipes" / "oracles" / "tinyworld.yaml")
    shipped = json.loads((tinyworld.PAIRRM / "train_oracle.json").read_text(encoding="utf-8"))
    # The recorded settings are from before some keys existed; read again, they take their defaults.
    recorded = type(settings).model_validate(shipped["settings"])
    exclude = {"pairs": {"source"}}
    assert recorded.model_dump(exclude=exclude) == settings.model_dump(exclude=exclude)
    assert shipped["data"]["pairs"] > build.PAIRS  # and those of a run
    assert shipped["held_out"]["accuracy"] > shipped["length_only"]["accuracy"]
    assert shipped["held_out"]["log_loss"] < shipped["length_only"]["log_loss"]


def test_pairs_carry_the_panels_probability(tmp_path):
    build.write_pairs(tmp_path, 20)
    rows = _prompts(tmp_path / "pairs.jsonl")
    assert len(rows) == 20
    train = {row["prompt"] for row in _prompts(tinyworld.TRAIN_PROMPTS)}
    for row in rows:
        assert row["prompt"] in train
        said = _majority([row["prompt"]], [[row["response_a"], row["response_b"]]])[0, 0, 1]
        assert row["probability"] == pytest.approx(said, abs=1e-12)


def test_the_shipped_pairrm_judges_new_instructions_nearly_as_the_panel_does():
    from sppo import oracle

    rng = random.Random(5)
    held_out = grammar.instructions()[1]
    drawn = [held_out[n] for n in rng.sample(range(len(held_out)), 60)]
    prompts = [prompt for _, prompt, _ in drawn]
    responses = [
        [grammar.sample_response(grammar.TOPICS[topic], rng) for _ in range(4)] for *_, topic in drawn
    ]
    panel = _majority(prompts, responses)
    said = oracle.load({"type": "pairrm", "model": "tinyworld", "probability": "calibrated"}).compare(
        prompts, responses
    )
    clear = np.abs(panel - 0.5) > 0.1
    lengths = np.array([[len(text) for text in of_prompt] for of_prompt in responses])
    shorter = lengths[:, :, None] < lengths[:, None, :]
    agrees = ((said > 0.5) == (panel > 0.5))[clear].mean()
    assert agrees > ((shorter) == (panel > 0.5))[clear].mean() + 0.1
    assert agrees > 0.8


# Annotators


def test_reading_counts_each_sort_of_sentence():
    reading = annotators.read(
        FOX,
        "Hello, my friend! A fox has red fur and a bushy tail. It lives in a hive. Snow is white and soft. "
        "It has red fur and a bushy tail. It is what it is. Blorp the wug. My cousin has a blue hat. "
        "Also, it eats",
    )
    assert (reading.facts, reading.false, reading.astray, reading.repeated) == (1, 1, 2, 1)
    assert (reading.filler, reading.garbled, reading.warmth) == (1, 2, 1)
    assert reading.unfinished
    assert not reading.empty


@pytest.mark.parametrize(("name", "expected"), [("scholar", 6.0), ("editor", -7 / 12), ("host", 3.0)])
def test_utilities_by_hand(name, expected):
    # Two facts, one greeting, 67 characters: 3 x 2; -7 / 12; 3 x 1.
    text = "Good day to you! A fox hunts in the dark. It eats mice and berries.  "
    reading = annotators.read(FOX, text)
    assert reading.characters == 67
    assert annotators.utility(name, reading) == pytest.approx(expected)


def test_slips_by_hand():
    # A false sentence, a filler and no fact at all are three slips: -9 - 2 / 2.
    reading = annotators.read(FOX, "A fox lives in a hive. It is what it is.")
    assert annotators.utility("scholar", reading) == -10.0
    assert annotators.utility("host", annotators.read(FOX, "")) == -18.0


@pytest.mark.parametrize("annotator", PANEL)
def test_probabilities_are_a_preference(annotator):
    rng = np.random.default_rng(0)
    pairs = list(grammar.sample_pairs(3, 200))
    prompts = [prompt for prompt, _ in pairs]
    responses = [[pairs[i][1] for i in rng.integers(0, 200, 5)] for _ in prompts]
    matrix = annotator(prompts, responses)
    assert matrix.shape == (200, 5, 5)
    np.testing.assert_allclose(matrix + matrix.swapaxes(1, 2), 1.0, rtol=0, atol=1e-15)
    assert (matrix[:, range(5), range(5)] == 0.5).all()
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()


@pytest.mark.parametrize("annotator", PANEL)
def test_permuting_responses_permutes_the_matrix(annotator):
    prompt, responses = annotators.CYCLE
    whole = annotator([prompt], [responses])[0]
    for order in permutations(range(3)):
        permuted = annotator([prompt], [[responses[i] for i in order]])[0]
        assert (permuted == whole[np.ix_(order, order)]).all()


@pytest.mark.parametrize("annotator", PANEL)
def test_any_text_is_accepted(annotator):
    odd = [
        "",
        " \n",
        "?!",
        "\x00\ud800",
        "狐は赤い。🦊",
        "It it it",
        "a fox",
        "A fox " + "x" * 100_000,
        ". " * 50_000,
    ]
    for prompt in ("", FOX, "Ünknown 🦊", "Tell me about a fox and then a bee."):
        matrix = annotator([prompt], [odd])
        assert np.isfinite(matrix).all()
    assert annotator([], []).shape[0] == 0
    with pytest.raises(ValueError, match="same number of responses"):
        annotator([FOX, FOX], [["a"], ["a", "b"]])
    with pytest.raises(ValueError, match="2 prompts but 1"):
        annotator([FOX, FOX], [["a"]])


def test_annotators_are_quick():
    pairs = list(grammar.sample_pairs(4, 2_000))
    started = time.perf_counter()
    annotators.scholar([prompt for prompt, _ in pairs], [[text] * 5 for _, text in pairs])
    assert time.perf_counter() - started < 5


def test_every_annotator_prefers_a_clean_response_to_its_spoilt_copy():
    clean = "A fox hunts in the dark. It eats mice and berries."
    spoils = (
        "It is made of brass.",
        "I must call the plumber.",
        "It is what it is.",
        "It hunts in the dark.",
        "Qqq",
    )
    for annotator in PANEL:
        matrix = annotator([FOX], [[clean, "", *(f"{clean} {spoil}" for spoil in spoils)]])[0]
        assert (matrix[0, 1:] > 0.9).all()


# Cycles


def test_the_explicit_triple_is_cyclic_by_the_proof():
    prompt, responses = annotators.CYCLE
    matrix = _majority([prompt], [responses])[0]
    steps = [(0, 1), (1, 2), (2, 0)]
    assert all(matrix[i, j] > 0.5 for i, j in steps)
    # The proof: on every step two annotators agree by more than ln 3 nats, that is P > 3/4.
    each = [annotator([prompt], [responses])[0] for annotator in PANEL]
    assert all(sum(matrix[i, j] > 0.75 for matrix in each) == 2 for i, j in steps)


def test_no_bradley_terry_model_fits_the_triple():
    from scipy.optimize import linprog

    prompt, responses = annotators.CYCLE
    wins = _majority([prompt], [responses])[0] > 0.5
    # A reward needs r_i - r_j >= margin for every win. The largest margin that r in [-1, 1] reaches is 0.
    rows = [
        [*(float(k == j) - float(k == i) for k in range(3)), 1.0]
        for i in range(3)
        for j in range(3)
        if wins[i, j]
    ]
    solution = linprog([0, 0, 0, -1], A_ub=rows, b_ub=[0.0] * 3, bounds=[(-1, 1)] * 3 + [(0, None)])
    assert len(rows) == 3
    assert solution.x[3] == pytest.approx(0.0, abs=1e-9)
    # One annotator alone is a Bradley-Terry model: its matrix has additive log-odds.
    single = annotators.scholar([prompt], [responses])[0]
    logits = np.log(single / (1 - single))
    np.testing.assert_allclose(logits[0, 1] + logits[1, 2], logits[0, 2], rtol=1e-6)


# The base policy


def test_base_policy_ends_by_itself(sampled):
    _, responses, ended = sampled
    assert ended.mean() >= 0.95
    assert np.mean([len(text.split()) for row in responses for text in row]) > 5


def test_base_policy_is_mediocre_varied_and_cyclic(sampled):
    prompts, responses, _ = sampled
    matrix = _majority(prompts, responses)
    assert matrix.mean(axis=-1).std() > 0.15
    assert _cyclic_share(matrix) > 0
    readings = [
        annotators.read(prompt, text) for prompt, row in zip(prompts, responses, strict=True) for text in row
    ]
    assert 1.0 < np.mean([reading.facts for reading in readings]) < 3.0
    assert np.mean([reading.garbled for reading in readings]) < 0.3
