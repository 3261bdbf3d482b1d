"""A PairRM that can be trained: it is made from scratch or from a pretrained encoder, and saved as a folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sppo import randomness
from sppo.oracle import OracleError, pairrm_checkpoint
from sppo.oracle.pairrm_checkpoint import READS
from sppo.oracle.pairrm_encoder import deberta, row_encoder
from sppo.oracle.pairrm_input import (
    CANDIDATE,
    CANDIDATE_1,
    CANDIDATE_2,
    PREFIXES,
    SOURCE,
    Limits,
    PairInput,
    Reads,
    Truncation,
)
from sppo.oracle.training.fit import item_of, numbers
from sppo.oracle.training.pairs import JudgedPair
from sppo.policy import adapter as adapters
from sppo.policy import load as policy
from sppo.policy import model_files
from sppo.policy.model_files import WEIGHTS, load_errors
from sppo.recipe.oracle_training import Encoder, OracleTraining

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
TOKENIZER_TEXTS, TOKENIZER_CHARACTERS = 4_000, 2_000
"""The most pairs that a tokenizer is trained on, and the most characters of each text."""


class PairRMNetwork(nn.Module):
    """The network of :mod:`sppo.oracle.pairrm` with gradients and dropout; its weights are named as there.

    Args:
        encoder: the encoder, or one with an adapter.
        dropout: that of the head.
    """

    def __init__(self, encoder: Any, dropout: float) -> None:
        super().__init__()
        self.pretrained_model = encoder
        self._rows = row_encoder(
            encoder
        )  # with an adapter it is the model's own forward, which the adapter changes
        self.head_layer = pairrm_checkpoint.new_head(encoder.config.hidden_size, 1, dropout)

    @property
    def encoder(self) -> Any:
        """The pretrained part."""
        return self.pretrained_model

    def rows(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "pairs 3 hidden"]:
        """The hidden states that the head reads, without gradients."""
        device = next(self.pretrained_model.parameters()).device
        placed = [batch[name].to(device) for name in ("ids", "lengths", "rows")]
        with torch.inference_mode():
            return self._rows.differentiable(*placed).float().cpu()

    def forward(
        self,
        ids: Int[Tensor, "pairs tokens"],
        lengths: Int[Tensor, " pairs"],
        rows: Int[Tensor, "pairs 3"],
        probability: Float[Tensor, " pairs"],
        weight: Float[Tensor, " pairs"],
    ) -> dict[str, Tensor]:
        """The weighted cross entropy of sigma(M) with the probability that the first response is preferred, and M itself."""
        source, first, second = self._rows.differentiable(ids, lengths, rows).float().unbind(1)
        logits = [self.head_layer(torch.cat([source, candidate], -1)) for candidate in (first, second)]
        margin = (logits[0] - logits[1]).mean(-1)
        return {"loss": binary_cross_entropy_with_logits(margin, probability, weight), "logits": margin}


class PairRMInputs:
    """The inputs of a :class:`PairRMNetwork`."""

    def __init__(self, inputs: PairInput, padding: int) -> None:
        self.inputs, self.padding = inputs, padding

    @property
    def truncation(self) -> Truncation:
        """The numbers of texts that have been encoded, and of those that were truncated."""
        return self.inputs.truncation

    def item(self, pair: JudgedPair, swapped: bool, weight: float) -> dict[str, Any]:
        """The ids of a pair, the rows that are read, its target and its weight."""
        source, (a, b) = self.inputs.parts(pair.prompt, [pair.response_a, pair.response_b])
        ids, rows = self.inputs.pair(source, b, a) if swapped else self.inputs.pair(source, a, b)
        return {"ids": ids, "rows": rows, **item_of(pair, swapped, weight)}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded on the right."""
        longest = max(len(item["ids"]) for item in items)
        ids = torch.full((len(items), longest), self.padding)
        for row, item in enumerate(items):
            ids[row, : len(item["ids"])] = torch.tensor(item["ids"])
        return {
            "ids": ids,
            "lengths": torch.tensor([len(item["ids"]) for item in items]),
            "rows": torch.tensor([item["rows"] for item in items]),
            **numbers(items),
        }


@dataclass(frozen=True)
class Folder:
    """The contents of a trained PairRM's folder beside its weights."""

    config: dict[str, Any]
    tokenizer: Tokenizer
    markers: tuple[str, str]


def create(
    settings: OracleTraining, pairs: Sequence[JudgedPair], work: Path
) -> tuple[PairRMNetwork, PairRMInputs, Folder]:
    """The network before its first step, the encoder of its input, and what will be saved with it.

    Args:
        settings: the settings of the training.
        pairs: the pairs that the network is trained on, and its tokenizer too if none is given.
        work: a folder for the tokenizer.

    Raises:
        OracleError: the encoder or the tokenizer cannot be loaded.
    """
    of = settings.encoder
    limits = Limits(settings.source_maxlength, settings.candidate_maxlength)
    given = None if of.model is None else pairrm_checkpoint.find(of.model, of.revision)
    encoder = None if given is None else _pretrained(given, of.dtype)
    if encoder is not None:
        pairrm_checkpoint.check_positions(encoder.config, limits, f"encoder.model: {of.model}")
    tokenizer, markers = _tokenizer(of, given, pairs, settings.seed)
    tokenizer.add_tokens([AddedToken(prefix, normalized=True, special=False) for prefix in PREFIXES])
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(work / "tokenizer.json"))
    reads: Reads = "ends" if encoder is not None and _is_causal(encoder) else "prefixes"
    inputs = PairInput(work / "tokenizer.json", limits, markers=markers, reads=reads)
    torch.manual_seed(randomness.seed("train-oracle", settings.seed, "weights"))
    if encoder is None:
        pad = tokenizer.token_to_id("[PAD]") or 0
        encoder = deberta.DebertaV2Model(_from_scratch(of, inputs.vocabulary, limits, pad))
    elif encoder.get_input_embeddings().weight.shape[0] < inputs.vocabulary:
        encoder.resize_token_embeddings(inputs.vocabulary)
    names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
    ids = [inputs.prefix_ids[prefix] for prefix in (SOURCE, CANDIDATE_1, CANDIDATE_2, CANDIDATE)]
    config = {
        **encoder.config.to_dict(),
        "architectures": [type(encoder).__name__.removesuffix("Model") + pairrm_checkpoint.ARCHITECTURE],
        **dict(zip(names, ids, strict=True)),
        "sep_token_id": tokenizer.token_to_id(markers[1]),
        "n_tasks": 1,
        "drop_out": of.dropout,
        "source_maxlength": limits.source,
        "candidate_maxlength": limits.candidate,
        "vocab_size": encoder.get_input_embeddings().weight.shape[0],
        **({READS: reads} if reads != "prefixes" else {}),
    }
    padding = encoder.config.pad_token_id or 0
    adapter = settings.training.adapter
    if adapter is not None:
        encoder = adapters.added(encoder, adapter, randomness.seed("train-oracle", settings.seed, "adapter"))
    network = PairRMNetwork(encoder, of.dropout)
    return network, PairRMInputs(inputs, padding), Folder(config, tokenizer, markers)


def save(network: PairRMNetwork, folder: Folder, target: Path) -> None:
    """Write the folder in the layout of `llm-blender/PairRM-hf`, with an adapter merged."""
    if adapters.is_adapted(network.pretrained_model):
        network.pretrained_model = adapters.merge(network.pretrained_model)
    weights = {
        name: value.detach().float().cpu().contiguous() for name, value in network.state_dict().items()
    }
    with load_errors(f"{target} is not written", OracleError):
        model_files.refuse_non_finite(weights.items())
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / WEIGHTS, {"format": "pt"})
    (target / WEIGHTS).chmod(0o644)  # the library writes it for its owner alone
    folder.tokenizer.save(str(target / "tokenizer.json"))
    names = {"cls_token": folder.markers[0], "sep_token": folder.markers[1]}
    for key, token in {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}.items():
        if folder.tokenizer.token_to_id(token) is not None:
            names[key] = token
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}
    for name, content in {"config": folder.config, "tokenizer_config": described}.items():
        (target / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with DeBERTa's special tokens and no post-processing.

    DeBERTa's own tokenizer is a Unigram model, whose trainer gives another vocabulary each time.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PREFIXES),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokenizer(
    of: Encoder, given: Path | None, pairs: Sequence[JudgedPair], seed: int
) -> tuple[Tokenizer, tuple[str, str]]:
    place = given if of.tokenizer is None else Path(of.tokenizer)
    if place is None:
        drawn = sorted(range(len(pairs)), key=lambda n: randomness.digest("tokenizer", seed, n))
        chosen = drawn[:TOKENIZER_TEXTS]
        texts = (
            text[:TOKENIZER_CHARACTERS]
            for n in chosen
            for text in (pairs[n].prompt, pairs[n].response_a, pairs[n].response_b)
        )
        return train_tokenizer(texts, of.vocabulary), ("[CLS]", "[SEP]")
    file = place if place.is_file() else place / "tokenizer.json"
    with load_errors(f"encoder.tokenizer: {place}: no tokenizer that can be read", OracleError):
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, pairrm_checkpoint.markers(file.parent)


def _from_scratch(of: Encoder, vocabulary: int, limits: Limits, pad: int) -> Any:
    return deberta.DebertaV2Config(
        vocab_size=vocabulary,
        hidden_size=of.hidden_size,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        intermediate_size=of.intermediate_size,
        hidden_dropout_prob=of.dropout,
        attention_probs_dropout_prob=of.dropout,
        max_position_embeddings=limits.pair,
        relative_attention=of.relative_attention,
        max_relative_positions=-1,
        position_buckets=of.position_buckets,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"] if of.relative_attention else [],
        position_biased_input=of.absolute_positions,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        pad_token_id=pad,
    )


def _pretrained(folder: Path, dtype: str) -> Any:
    from transformers import AutoModel

    with load_errors(f"encoder.model: {folder}: no encoder that transformers loads", OracleError):
        model_files.check(folder)
        with policy.quiet():
            encoder = AutoModel.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
            )
        model_files.refuse_non_finite(encoder.named_parameters())
    return encoder


def _is_causal(encoder: Any) -> bool:
    """Whether no hidden state depends on later tokens: then those of the prefixes would not know what they stand for."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    encoder.eval()
    with torch.inference_mode():
        first, second = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return bool(torch.allclose(first, second, rtol=0, atol=1e-7))
