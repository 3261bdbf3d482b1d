"""Pretrained models as backbones of a reward model or a general preference model: what a head reads, and the oracle's folder.

The feature f of an exchange is what the oracle that will load the folder hands to its head, computed by that oracle's own code
(:mod:`sppo.oracle.reward_model`, :mod:`sppo.oracle.general_preference`), so a trained head means the same there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sppo import randomness
from sppo.oracle import Oracle, OracleError
from sppo.oracle.general_preference import VALUE_HEAD, GeneralPreference, at_end, exchanges, hidden_states
from sppo.oracle.model_folder import check_weights, oracle_folder
from sppo.oracle.reward_model import RewardModel, logits
from sppo.oracle.transcript import (
    Row,
    Transcript,
    batches,
    encoded,
    load_tokenizer,
    padded,
    padding_for,
    token_limit,
)
from sppo.policy import load as policy
from sppo.policy.model_files import load_errors
from sppo.recipe.oracle_training import Head
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import nn

TAU = 0.1
"""The temperature of a general preference model, the default of the oracle that loads it."""

Features = Float[Array, "texts H"]
Weight = Float[Array, "d H"]


class Backbone(ABC):
    """A pretrained model without its head.

    Attributes:
        model: the model, which training may wrap or replace.
        head: the settings.
        width: H, the number of values that the head reads.
        lacking: the weights that the checkpoint does not have, which are drawn by the seed.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        tokenizer: Any,
        transcript: Transcript,
        width: int,
        lacking: Sequence[str],
    ) -> None:
        self.model = model.to(policy.default_device()).eval()
        self.head = head
        self.tokenizer = tokenizer
        self.transcript = transcript
        self.width = width
        self.lacking = [model.get_parameter(name) for name in lacking]

    def rows(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Row]:
        """The exchanges as token ids.

        Raises:
            OracleError: a text cannot be encoded.
        """
        return encoded(self.transcript, prompts, [[text] for text in responses])

    def inputs(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], int]:
        """A model's inputs, padded on the right, and the padding id, which none of the rows has; no padding token is needed."""
        config = self.model.config.get_text_config()
        padding = padding_for(rows, config.pad_token_id, config.vocab_size)
        return padded(rows, padding, "cpu"), padding

    @abstractmethod
    def hidden(self, inputs: Mapping[str, Tensor], padding: int) -> Float[Tensor, "rows H"]:
        """What the head reads, with gradients."""

    def features(self, prompts: Sequence[str], responses: Sequence[str]) -> Features:
        """What the head reads of each response to its prompt, without gradients.

        Raises:
            OracleError: a text cannot be encoded.
        """
        rows = self.rows(prompts, responses)
        found: Features = np.empty((len(rows), self.width))
        for batch in batches(rows, self.head.batch_tokens):
            inputs, padding = self.inputs([rows[index] for index in batch])
            placed = {name: value.to(self.model.device) for name, value in inputs.items()}
            with torch.inference_mode():
                found[batch] = self.hidden(placed, padding).float().cpu().numpy()
        return found

    @abstractmethod
    def save(self, weight: Weight, folder: Path) -> None:
        """Write the folder of the oracle with a head's weight."""

    @abstractmethod
    def reload(self, folder: Path) -> Oracle:
        """That folder as an oracle."""


def load(head: Head, seed: int) -> Backbone:
    """The backbone, loaded.

    Args:
        head: the settings.
        seed: draws the weights that the checkpoint lacks, which a frozen backbone must not.

    Raises:
        OracleError: it does not load, or weights of a frozen one other than its head's would be random.
    """
    torch.manual_seed(randomness.seed("train-oracle", seed, "weights"))
    return (RewardBackbone if head.type == "reward_model" else PreferenceBackbone).load(head)


class RewardBackbone(Backbone):
    """A classifier of sequences whose last linear layer, which gives one score, is taken off."""

    name: str
    linear: nn.Linear

    @classmethod
    def load(cls, head: Head) -> RewardBackbone:
        """Load the classifier, and take its head off."""
        from transformers import AutoConfig, AutoModelForSequenceClassification

        folder = oracle_folder(head.model, head.revision)
        with _loading(head), policy.quiet():
            config = AutoConfig.from_pretrained(folder, num_labels=1)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, head.dtype),
                use_safetensors=True,
                output_loading_info=True,
            )
        names = [
            name
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and part.out_features == 1
        ]
        if not names:
            raise OracleError(
                f"head.model: {head.model}: {type(model).__name__} has no linear head with one score"
            )
        own = names[-1]
        lacking = [name for name in report["missing_keys"] if not name.startswith(f"{own}.")]
        _check(head, model, report, lacking)
        tokenizer = load_tokenizer(folder)
        transcript = Transcript(tokenizer, token_limit(head.max_tokens, config, tokenizer))
        linear: nn.Linear = model.get_submodule(own)
        model.set_submodule(own, torch.nn.Identity())
        backbone = cls(model, head, tokenizer, transcript, linear.in_features, lacking)
        backbone.name, backbone.linear = own, linear
        return backbone

    def hidden(self, inputs: Mapping[str, Tensor], padding: int) -> Float[Tensor, "rows H"]:
        """What the classifier's last layer would read."""
        return logits(self.model, inputs, padding)

    def save(self, weight: Weight, folder: Path) -> None:
        """Write a classifier with one label."""
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(weight))
            if self.linear.bias is not None:
                self.linear.bias.zero_()  # it cancels in differences of scores
        self.model.set_submodule(self.name, self.linear)
        with policy.quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def reload(self, folder: Path) -> Oracle:
        """The reward model."""
        return RewardModel.from_pretrained(folder, max_tokens=self.head.max_tokens, dtype=self.head.dtype)


class PreferenceBackbone(Backbone):
    """A model whose last hidden state, at the end of the exchange, is read."""

    @classmethod
    def load(cls, head: Head) -> PreferenceBackbone:
        """Load the model without a head."""
        from transformers import AutoModel

        folder = oracle_folder(head.model, head.revision)
        with _loading(head), policy.quiet():
            model, report = AutoModel.from_pretrained(
                folder, dtype=getattr(torch, head.dtype), use_safetensors=True, output_loading_info=True
            )
        # A pooler stands behind the hidden states that are read.
        lacking = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
        _check(head, model, report, lacking)
        tokenizer = load_tokenizer(folder)
        if tokenizer.chat_template is not None and tokenizer.eos_token_id is None:
            raise OracleError(
                f"head.model: {head.model}: its tokenizer has no EOS, which a general preference model reads with a chat"
                " template; take another backbone, or head.type: reward_model"
            )
        transcript = Transcript(
            tokenizer, token_limit(head.max_tokens, model.config, tokenizer), bos_again=True
        )
        return cls(model, head, tokenizer, transcript, model.config.get_text_config().hidden_size, lacking)

    def rows(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Row]:
        """Like :meth:`Backbone.rows`, as the oracle ends them."""
        return exchanges(self.transcript, prompts, [[text] for text in responses])

    def hidden(self, inputs: Mapping[str, Tensor], padding: int) -> Float[Tensor, "rows H"]:
        """The last hidden state at the end of each exchange."""
        return at_end(hidden_states(self.model, inputs), inputs["attention_mask"])

    def save(self, weight: Weight, folder: Path) -> None:
        """Write the model with the head `value_head.weight` beside its weights."""
        from safetensors.torch import load_file, save_file

        with policy.quiet():
            self.model.save_pretrained(folder, max_shard_size="1000GB")
            self.tokenizer.save_pretrained(folder)
        (file,) = folder.glob("*.safetensors")
        weights = {**load_file(file), VALUE_HEAD: torch.tensor(weight, dtype=torch.float32)}
        save_file(weights, file, metadata={"format": "pt"})

    def reload(self, folder: Path) -> Oracle:
        """The general preference model."""
        return GeneralPreference.from_pretrained(
            folder, max_tokens=self.head.max_tokens, tau=TAU, dtype=self.head.dtype
        )


def _loading(head: Head) -> Any:
    return load_errors(f"head.model: {head.model}: does not load as a backbone", OracleError)


def _check(head: Head, model: Any, report: Mapping[str, Any], lacking: Sequence[str]) -> None:
    """Refuse weights that are not finite or of a wrong shape, and random ones in a backbone that stays as it is."""
    if head.frozen and lacking:
        raise OracleError(
            f"head.model: {head.model}: {len(lacking)} weights are missing: {', '.join(sorted(lacking)[:4])}; they would stay"
            " random. Set head.frozen: false to train them, or take another backbone"
        )
    check_weights(f"head.model: {head.model}", model, {**report, "missing_keys": []})
