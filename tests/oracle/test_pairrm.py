"""PairRM against the recorded answers of the original, and against a plain re-implementation."""

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from sppo.oracle import OracleError, load
from sppo.oracle.pairrm import PairRM, averaged, calibrated, pairwise
from sppo.oracle.pairrm_checkpoint import convert_bin
from sppo.oracle.pairrm_encoder import deberta
from sppo.oracle.pairrm_input import PREFIXES, Limits, PairInput

FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pairrm"
recorded = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the recorded answers of the original are not here"
)


@pytest.fixture(scope="module")
def expected():
    return json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def groups():
    return json.loads((FIXTURES / "inputs.json").read_text(encoding="utf-8"))["groups"]


@pytest.fixture(scope="module")
def original():
    return PairRM.from_pretrained(FIXTURES / "PairRM", device="cpu")


@pytest.fixture(scope="module")
def logits_of(original):
    """M of one prompt, computed once for each different input: most recorded calls share theirs."""
    known = {}

    def answer(prompt, candidates):
        ids = json.dumps(original.inputs.parts(prompt, candidates))
        if ids not in known:
            known[ids] = original.logits([prompt], [candidates])[0]
        return known[ids]

    return answer


def sha(ids):
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BatchLimits(Limits):
    """The original's limit of a candidate: that of the longest source of its batch."""

    longest: int = 0

    def of_candidate(self, source_length):
        return super().of_candidate(self.longest)


# --- the recorded answers ---


@recorded
@pytest.mark.parametrize("call", range(35))
def test_every_logit_and_every_id_is_the_originals(call, original, logits_of, expected, groups, monkeypatch):
    call = expected["calls"][call]
    default = Limits()
    size = call["batch_size"]
    for start in range(0, len(call["group_ids"]), size):
        batch = [groups[g] for g in call["group_ids"][start : start + size]]
        sources = [(g["instruction"] if call["use_instruction"] else "") + g["source"] for g in batch]
        limits = {
            "source": call.get("source_max_length") or default.source,
            "candidate": call.get("candidate_max_length") or default.candidate,
        }
        monkeypatch.setattr(original.inputs, "limits", Limits(**limits))
        longest = max(len(original.inputs.parts(source, [])[0]) for source in sources)
        monkeypatch.setattr(original.inputs, "limits", BatchLimits(**limits, longest=longest))
        for n, (group, source) in enumerate(zip(batch, sources, strict=True), start):
            if call["call"] == "rank":
                ids = original.inputs.parts(source, group["candidates"])
                recorded_ids = call["tokens"][n]
                assert len(ids[0]) == recorded_ids["source_len"]
                assert [len(candidate) for candidate in ids[1]] == recorded_ids["candidate_lens"]
                assert sha(list(ids)) == recorded_ids["sha"]
                if "source_ids" in recorded_ids:
                    assert list(ids) == [recorded_ids["source_ids"], recorded_ids["candidate_ids"]]
                found = logits_of(source, group["candidates"])
            else:
                candidates = [group["candidates"][call[name]] for name in ("a", "b")]
                (_, forth), (back, _) = logits_of(source, candidates)
                found = {"[A,B]": forth, "[B,A]": back, "[A,B]+[B,A]": forth - back}[call["mode"]]
            np.testing.assert_allclose(found, call["logits"][n], rtol=0, atol=1e-5)


@recorded
def test_all_recorded_calls_are_compared(expected):
    assert len(expected["calls"]) == 35


@recorded
def test_averaged_is_the_released_codes_probability(logits_of, expected, groups):
    for record in expected["sppo_compute_prob"]:
        group = groups[record["group_id"]]
        logits = logits_of(group["source"], group["candidates"])
        scores = (logits - logits.T).mean(-1)
        np.testing.assert_allclose(scores, record["rm_scores"], atol=1e-5)
        probability = averaged(logits)
        np.testing.assert_allclose(probability, record["probability"], atol=1e-5)
        win_rates = probability.mean(-1)
        chosen, rejected = scores.argmax(), scores.argmin()
        assert (chosen, rejected) == (record["chosen_index"], record["rejected_index"])
        found = probability[chosen, rejected], win_rates[chosen], win_rates[rejected]
        names = "chosen_probs", "chosen_probs_win", "chosen_probs_lose"
        np.testing.assert_allclose(found, [record[name] for name in names], atol=1e-5)


@recorded
def test_the_hf_layout_gives_the_same_answers(logits_of, expected, groups):
    oracle = PairRM.from_pretrained(FIXTURES / "PairRM-hf", device="cpu")
    for record in expected["hf_native_pair01"]:
        group = groups[record["group_id"]]
        prompt, pair = group["source"], group["candidates"][:2]
        if "[SEP]" in prompt + "".join(pair):
            continue  # that recorder left it in the text
        source, candidates = oracle.inputs.parts(prompt, pair)
        ids, _ = oracle.inputs.pair(source, *candidates)
        assert (len(ids), sha(ids)) == (record["n_tokens"], record["sha"])
        if len(ids) > 500:
            continue  # slow, and of the same weights
        logits = oracle.logits([prompt], [pair])[0]
        np.testing.assert_array_equal(logits, logits_of(prompt, pair))
        assert logits[0, 1] == pytest.approx(record["logit"], abs=1e-5)


@recorded
def test_comparison_with_the_longest_candidate(logits_of, expected, groups):
    record = expected["rank_with_ref_longest"]
    for n, group in enumerate(record["group_ids"]):
        candidates = groups[group]["candidates"]
        reference = max(range(len(candidates)), key=lambda index: len(candidates[index]))
        logits = logits_of(groups[group]["source"], candidates)
        found = logits[:, reference] - logits[reference]
        np.testing.assert_allclose(found, record["scores"][n], atol=1e-5)


@recorded
def test_conversations_as_the_original_writes_them_out(logits_of, expected):
    conversations = json.loads((FIXTURES / "inputs.json").read_text(encoding="utf-8"))["conversations"]
    task = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
    for n, conversation in enumerate(conversations):
        users = [turn["content"] for turn in conversation["a"][::2]]
        turns = [f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(users, 1)]
        replies = [[turn["content"] for turn in conversation[name][1::2]] for name in ("a", "b")]
        candidates = ["\n".join(f"<Response {i}>: {t}" for i, t in enumerate(texts, 1)) for texts in replies]
        (_, forth), (back, _) = logits_of(task + "\n".join(turns), candidates)
        recorded_logits = expected["compare_conversations"]
        assert forth == pytest.approx(recorded_logits["[A,B]"][n], abs=1e-5)
        assert forth - back == pytest.approx(recorded_logits["[A,B]+[B,A]"][n], abs=1e-5)


# --- a checkpoint made here: other sizes, two tasks ---


def write_tokenizer(path, prefixes=True):
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz.,|<>[]0123456789", "▁the", "ing", "▁source"]
    vocabulary = [(piece, 0.0) for piece in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    vocabulary += [(piece, -float(n)) for n, piece in enumerate(pieces, 2)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 3, False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    if prefixes:
        tokenizer.add_tokens([AddedToken(prefix, special=False) for prefix in PREFIXES])
    tokenizer.save(str(path))
    return len(vocabulary) + 1 + len(PREFIXES)


SMALL = {
    "model_type": "deberta-v2",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}


def make_checkpoint(folder, n_tasks=2, prefixes=True, **changes):
    """An original-layout folder beside its backbone's, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = folder.parent / "backbone"
    backbone.mkdir(exist_ok=True)
    vocabulary = write_tokenizer((folder if prefixes else backbone) / "tokenizer.json", prefixes)
    fields = {**SMALL, "vocab_size": vocabulary + 100, **changes}
    (backbone / "config.json").write_text(json.dumps(fields))
    ranker = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": "backbone",
        "n_tasks": n_tasks,
    }
    ranker |= {"source_maxlength": 40, "candidate_maxlength": 20}
    (folder / "config.json").write_text(json.dumps(ranker))
    torch.manual_seed(0)
    fields = {name: value for name, value in fields.items() if name != "model_type"}
    config = deberta.DebertaV2Config(**fields | {"vocab_size": vocabulary, "initializer_range": 0.3})
    model = deberta.DebertaV2Model(config)
    hidden = config.hidden_size
    weights = {f"pretrained_model.{name}": value for name, value in model.state_dict().items()}
    for name, shape in {"1.weight": (hidden, 2 * hidden), "4.weight": (n_tasks, hidden)}.items():
        weights[f"head_layer.{name}"] = torch.randn(shape) / hidden**0.5
    weights |= {"head_layer.1.bias": torch.randn(hidden), "head_layer.4.bias": torch.randn(n_tasks)}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def plain_logits(folder, prompts, responses):
    """M by transformers' DebertaV2Model, a pair at a time, and the tokenizer as it is."""
    ranker = json.loads((folder / "config.json").read_text())
    fields = json.loads((folder.parent / "backbone" / "config.json").read_text())
    fields.pop("model_type")
    weights = load_file(folder / "model.safetensors")
    fields["vocab_size"] = len(weights["pretrained_model.embeddings.word_embeddings.weight"])
    model = deberta.DebertaV2Model(deberta.DebertaV2Config(**fields)).eval()
    encoder = {
        name.removeprefix("pretrained_model."): value for name, value in weights.items() if "model." in name
    }
    model.load_state_dict(encoder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cls, sep, *prefixes = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", *PREFIXES[:3]))

    def part(prefix, text, limit):
        return [cls, *tokenizer.encode(prefix + text, add_special_tokens=False).ids[: limit - 2], sep]

    def head(hidden):
        inner = torch.tanh(weights["head_layer.1.weight"] @ hidden + weights["head_layer.1.bias"])
        return weights["head_layer.4.weight"] @ inner + weights["head_layer.4.bias"]

    matrix = np.zeros((len(prompts), len(responses[0]), len(responses[0])))
    for n, (prompt, of_prompt) in enumerate(zip(prompts, responses, strict=True)):
        source = part(PREFIXES[0], prompt, ranker["source_maxlength"])
        limit = ranker["candidate_maxlength"] + (ranker["source_maxlength"] - len(source)) // 2
        for i, first in enumerate(of_prompt):
            for j, second in enumerate(of_prompt):
                if i == j:
                    continue
                ids = source + part(PREFIXES[1], first, limit) + part(PREFIXES[2], second, limit)
                with torch.inference_mode():
                    hidden = model(torch.tensor([ids])).last_hidden_state[0]
                    at = [hidden[ids.index(prefix)] for prefix in prefixes]
                    logits = [head(torch.cat([at[0], candidate])) for candidate in at[1:]]
                matrix[n, i, j] = (logits[0] - logits[1]).mean()
    return matrix


PROMPTS = ["the meaning of it", "  sing a song of sixpence, a pocket full of rye, four and twenty", "x"]
RESPONSES = [
    ["yes", "", "the blackbirds baked in a pie, when the pie was opened", "no"],
    ["one", "one", "three and twenty", "ﬁve　６"],
    ["a b c", "[CLS] what", "the singing " * 9, " leading"],
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"share_att_key": False},
        {"pos_att_type": "c2p"},
        {"pos_att_type": "p2c", "share_att_key": False},
        {"position_buckets": -1},
        {"norm_rel_ebd": "none", "max_relative_positions": 16},
        {"relative_attention": False},
        {"relative_attention": False, "position_biased_input": True, "max_position_embeddings": 128},
        {"conv_kernel_size": 3, "conv_act": "gelu"},
        {"conv_kernel_size": 3, "num_hidden_layers": 1},
        {"embedding_size": 16, "hidden_act": "relu", "type_vocab_size": 2},
    ],
    ids=str,
)
def test_every_configuration_of_the_backbone_is_transformers_own(tmp_path, changes):
    folder = make_checkpoint(tmp_path / "ranker", **changes)
    expected = plain_logits(folder, PROMPTS, RESPONSES)
    assert np.abs(expected).max() > 0.01
    for batch_pairs in (1, 8):
        oracle = PairRM.from_pretrained(folder, batch_pairs=batch_pairs, device="cpu")
        np.testing.assert_allclose(oracle.logits(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "ranker")


def test_a_tokenizer_without_prefixes_is_the_backbones(small, tmp_path):
    folder = make_checkpoint(tmp_path / "ranker", prefixes=False)
    assert not (folder / "tokenizer.json").exists()
    found = PairRM.from_pretrained(folder, device="cpu").logits(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(
        found, PairRM.from_pretrained(small, device="cpu").logits(PROMPTS, RESPONSES)
    )


def test_an_absolute_model_name(small, tmp_path):
    shutil.copytree(small, tmp_path / "ranker")
    config = json.loads((small / "config.json").read_text()) | {"model_name": str(small.parent / "backbone")}
    (tmp_path / "ranker" / "config.json").write_text(json.dumps(config))
    PairRM.from_pretrained(tmp_path / "ranker", device="cpu")


def test_probabilities_by_hand():
    logits = np.array([[0.0, 1.0, 3.0], [-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])
    sigma = {x: 1 / (1 + np.exp(-x)) for x in (2.0, 1.0, 8 / 3)}
    # M - M^T has 2 at (0, 1), 2 at (0, 2), 0 at (1, 2); s = (4/3, -2/3, -2/3), s_0 - s_1 = 2
    assert pairwise(logits)[0, 1] == pytest.approx(sigma[2.0])
    assert calibrated(logits)[0, 1] == pytest.approx(sigma[1.0])
    assert pairwise(logits)[1, 2] == calibrated(logits)[2, 1] == 0.5
    assert averaged(logits)[0, 1] == pytest.approx(sigma[2.0])
    logits[1, 2] = 2.5  # s = (4/3, 0, -4/3)
    assert averaged(logits)[0, 2] == pytest.approx(sigma[8 / 3])


@pytest.mark.parametrize("probability", ["pairwise", "calibrated", "averaged"])
def test_no_answer_depends_on_what_is_asked_beside_it(small, probability):
    oracle = PairRM.from_pretrained(small, probability=probability, device="cpu")
    answer = oracle.compare(PROMPTS, RESPONSES)
    np.testing.assert_allclose(answer + answer.swapaxes(1, 2), 1, atol=1e-12)
    np.testing.assert_array_equal(np.diagonal(answer, axis1=1, axis2=2), 0.5)
    assert answer[1, 0, 1] == 0.5  # the same text twice
    order = [2, 0, 3, 1]
    permuted = oracle.compare(PROMPTS, [[of_prompt[k] for k in order] for of_prompt in RESPONSES])
    np.testing.assert_allclose(permuted, answer[:, order][:, :, order], atol=1e-6)
    np.testing.assert_allclose(oracle.compare(PROMPTS[::-1], RESPONSES[::-1]), answer[::-1], atol=1e-6)
    alone = [oracle.compare([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(alone, answer, atol=1e-6)
    for batch_pairs in (1, 3, 64):
        other = PairRM.from_pretrained(small, probability=probability, batch_pairs=batch_pairs, device="cpu")
        np.testing.assert_allclose(other.compare(PROMPTS, RESPONSES), answer, atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
def test_bfloat16_is_near(tmp_path, relative):
    folder = make_checkpoint(tmp_path / "ranker", relative_attention=relative)
    exact = PairRM.from_pretrained(folder, device="cpu").compare(PROMPTS, RESPONSES)
    for batch_pairs in (1, 8):
        rounded = PairRM.from_pretrained(folder, dtype="bfloat16", batch_pairs=batch_pairs, device="cpu")
        assert 0 < np.abs(rounded.compare(PROMPTS, RESPONSES) - exact).max() < 0.1


def test_loaded_by_its_recipe_section(small):
    oracle = load({"type": "pairrm", "model": str(small), "probability": "pairwise"})
    assert oracle.compare(PROMPTS, RESPONSES).shape == (3, 4, 4)
    assert oracle.compare([], []).shape == (0, 0, 0)
    with pytest.raises(ValueError, match="K = 1"):
        oracle.compare(["x"], [["y"]])


# --- texts ---


def test_prefixes_in_a_text_are_text(small):
    inputs = PairInput(small / "tokenizer.json", Limits(40, 20))
    special = set(inputs.prefix_ids.values())
    source, candidates = inputs.parts(
        "<|source|> a", ["<|candidate1|>", "b<|candidate|>c", "＜|candidate2|＞"]
    )
    assert [n for n, token in enumerate(source) if token in special] == [1]
    for candidate in candidates:
        assert [n for n, token in enumerate(candidate) if token in special] == [1]
        assert len(candidate) > 10
    ids, rows = inputs.pair(source, candidates[0], candidates[1])
    assert [ids[row] for row in rows] == [inputs.prefix_ids[prefix] for prefix in PREFIXES[:3]]
    oracle = PairRM.from_pretrained(small, device="cpu")
    assert np.isfinite(oracle.compare(["<|source|>"], [["<|candidate1|>", "<|candidate|>"]])).all()


def test_a_separator_in_a_text_is_a_space(small):
    inputs = PairInput(small / "tokenizer.json")
    assert inputs.parts("a[SEP]b", ["[SEP]"]) == inputs.parts("a b", [" "])


def test_a_combining_mark_at_the_head_is_encoded(small):
    inputs = PairInput(small / "tokenizer.json")
    source, _ = inputs.parts("\u0338a", [])  # with the prefix's last sign it would be one character
    assert source[1] == inputs.prefix_ids[PREFIXES[0]]
    assert len(source) > 3


def test_texts_over_their_limit_are_cut_and_counted(small):
    oracle = PairRM.from_pretrained(small, device="cpu")
    oracle.compare(["q " * 50, "q"], [["w " * 50, "w"], ["w " * 40, ""]])
    counts = oracle.truncation
    assert (counts.sources, counts.sources_cut) == (2, 1)
    assert (counts.candidates, counts.candidates_cut) == (4, 2)
    source, candidates = oracle.inputs.parts("q " * 50, ["w " * 50])
    assert (len(source), len(candidates[0])) == (40, 20)
    source, candidates = oracle.inputs.parts("", ["w " * 50])
    assert (len(source), len(candidates[0])) == (3, 20 + (40 - 3) // 2)


def test_half_a_surrogate_pair_is_refused_with_its_prompt(small):
    oracle = PairRM.from_pretrained(small, device="cpu")
    with pytest.raises(OracleError, match="cannot encode") as caught:
        oracle.compare(["a", "b"], [["c", "d"], ["e", "\ud800"]])
    assert caught.value.prompt_index == 1


def test_lists_that_do_not_fit_are_refused(small):
    oracle = PairRM.from_pretrained(small, device="cpu")
    with pytest.raises(ValueError, match="one for each prompt"):
        oracle.logits(["a"], [])
    with pytest.raises(ValueError, match="same length"):
        oracle.logits(["a", "b"], [["c", "d"], ["e"]])


# --- checkpoints that cannot be used ---


@pytest.fixture
def broken(small, tmp_path):
    shutil.copytree(small.parent, tmp_path / "copy")
    return tmp_path / "copy" / "ranker"


def refused(folder, match, **arguments):
    with pytest.raises(OracleError, match=match):
        PairRM.from_pretrained(folder, device="cpu", **arguments)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


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
    refused(broken, f"{name}: .*read")


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
    with pytest.raises(OracleError, match="weights only"):
        convert_bin(tmp_path)
    torch.save({"weight": torch.zeros(1), "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OracleError, match="more than named tensors"):
        convert_bin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


# --- some pairs only, weights in several files, names on the hub, other encoders ---


def test_some_pairs_are_answered_as_among_all(small):
    oracle = PairRM.from_pretrained(small, device="cpu")
    whole = oracle.compare(PROMPTS, RESPONSES)
    asked = oracle.truncation.candidates
    wanted = np.zeros((3, 4, 4), dtype=bool)
    wanted[:, 0, 2] = wanted[:, 2, 0] = wanted[1, 3, 0] = wanted[1, 0, 3] = True
    found = oracle.compare_pairs(PROMPTS, RESPONSES, wanted)
    np.testing.assert_allclose(found[wanted], whole[wanted], atol=1e-6)
    assert oracle.truncation.candidates == 2 * asked  # each text is read once, however often it is compared
    counts = load({"type": "pairrm", "model": str(small)}).counts
    assert counts == dict.fromkeys(("sources", "sources_cut", "candidates", "candidates_cut"), 0)
    with pytest.raises(OracleError, match="averaged is made from all pairs"):
        PairRM.from_pretrained(small, probability="averaged", device="cpu").compare_pairs(
            PROMPTS, RESPONSES, wanted
        )


def as_shards(folder, parts=3):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    placed = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        of_part = {name: weights[name] for name in names[part::parts]}
        save_file(of_part, folder / file)
        placed |= dict.fromkeys(of_part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


def test_weights_in_several_files(small, broken):
    as_shards(broken)
    expected = PairRM.from_pretrained(small, device="cpu").logits(PROMPTS, RESPONSES)
    found = PairRM.from_pretrained(broken, device="cpu").logits(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@recorded
def test_the_hf_layout_in_several_files(tmp_path, expected, groups, logits_of):
    folder = tmp_path / "hf"
    shutil.copytree(FIXTURES / "PairRM-hf", folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    as_shards(folder)
    group = groups[expected["hf_native_pair01"][0]["group_id"]]
    found = PairRM.from_pretrained(folder, device="cpu").logits([group["source"]], [group["candidates"][:2]])
    wanted = logits_of(group["source"], group["candidates"][:2])
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)  # rounding depends on where weights lie in memory


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
    refused(broken, "not the name of a file beside it")
    index.write_text(json.dumps({"weight_map": {}}))
    refused(broken, "weight_map: missing")
    index.write_text(json.dumps({"weight_map": placed}))
    (broken / "model-00003-of-00003.safetensors").unlink()
    refused(broken, "model-00003-of-00003.safetensors: there is no such file")


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
    refused("someone/else", "cannot be had from the Hugging Face hub")


def test_pickled_shards_are_converted_by_the_command(broken):
    from typer.testing import CliRunner

    from sppo.cli.main import app

    expected = load_file(broken / "model.safetensors")
    names = sorted(expected)
    for part in range(2):
        of_part = {name: expected[name] for name in names[part::2]}
        torch.save(of_part, broken / f"pytorch_model-{part + 1:05d}-of-00002.bin")
    (broken / "model.safetensors").unlink()
    refused(broken, f"sppo oracle convert {broken}")
    assert CliRunner().invoke(app, ["oracle", "convert", str(broken)]).exit_code == 0
    found = load_file(broken / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert CliRunner().invoke(app, ["oracle", "convert", str(broken)]).exit_code == 1


def test_gradients_are_transformers_own(small):
    from sppo.oracle.pairrm_encoder import RowEncoder

    oracle = PairRM.from_pretrained(small, device="cpu")
    model = deberta.DebertaV2Model(oracle._encoder.model.config).eval()
    fast = RowEncoder(model)
    torch.manual_seed(0)
    ids = torch.randint(5, 40, (3, 17))
    lengths = torch.tensor([17, 9, 17])
    rows = torch.tensor([[1, 4, 7], [1, 3, 6], [2, 8, 11]])
    direction = torch.randn(3, 3, model.config.hidden_size)
    real = torch.arange(17) < lengths[:, None]
    hidden = model(ids, attention_mask=real.long()).last_hidden_state
    hidden = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
    (hidden * direction).sum().backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    found = fast.differentiable(ids, lengths, rows)
    torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-5)
    (found * direction).sum().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)
