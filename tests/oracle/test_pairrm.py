"""PairRM against a plain re-implementation, on small checkpoints of other sizes and two tasks."""

import json
import shutil

import numpy as np
import pytest
import torch
from pairrm_checkpoints import PROMPTS, RESPONSES, make_checkpoint
from safetensors.torch import load_file
from tokenizers import Tokenizer

from sppo.oracle import OracleError, load
from sppo.oracle.pairrm import PairRM, averaged, calibrated, pairwise
from sppo.oracle.pairrm_encoder import RowEncoder, deberta
from sppo.oracle.pairrm_input import PREFIXES, Limits, PairInput


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
    assert (counts.prompts, counts.prompts_truncated) == (2, 1)
    assert (counts.responses, counts.responses_truncated) == (4, 2)
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


def test_some_pairs_are_answered_as_among_all(small):
    oracle = PairRM.from_pretrained(small, device="cpu")
    whole = oracle.compare(PROMPTS, RESPONSES)
    asked = oracle.truncation.responses
    wanted = np.zeros((3, 4, 4), dtype=bool)
    wanted[:, 0, 2] = wanted[:, 2, 0] = wanted[1, 3, 0] = wanted[1, 0, 3] = True
    found = oracle.compare_pairs(PROMPTS, RESPONSES, wanted)
    np.testing.assert_allclose(found[wanted], whole[wanted], atol=1e-6)
    assert oracle.truncation.responses == 2 * asked  # each text is read once, however often it is compared
    counts = load({"type": "pairrm", "model": str(small)}).counts
    texts = ("prompts", "prompts_truncated", "responses", "responses_truncated")
    assert counts == dict.fromkeys((*texts, "pairs_in_both_orders", "order_flips"), 0)
    with pytest.raises(OracleError, match="averaged needs all pairs"):
        PairRM.from_pretrained(small, probability="averaged", device="cpu").compare_pairs(
            PROMPTS, RESPONSES, wanted
        )


def test_gradients_are_transformers_own(small):
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
