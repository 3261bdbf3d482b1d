"""Small PairRM checkpoints with random weights, ways to damage them, and the recorded answers of the original."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from sppo.oracle import OracleError
from sppo.oracle.pairrm import PairRM
from sppo.oracle.pairrm_encoder import deberta
from sppo.oracle.pairrm_input import PREFIXES

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pairrm"
recorded = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the recorded answers of the original are not here"
)
PROMPTS = ["the meaning of it", "  sing a song of sixpence, a pocket full of rye, four and twenty", "x"]
RESPONSES = [
    ["yes", "", "the blackbirds baked in a pie, when the pie was opened", "no"],
    ["one", "one", "three and twenty", "ﬁve　６"],
    ["a b c", "[CLS] what", "the singing " * 9, " leading"],
]


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


def refused(folder, match, **arguments):
    with pytest.raises(OracleError, match=match):
        PairRM.from_pretrained(folder, device="cpu", **arguments)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


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
