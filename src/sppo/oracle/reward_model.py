r"""A reward model as a preference oracle: one score per response.

:math:`P(y_i \succ y_j | x) = \sigma(r(x, y_i) - r(x, y_j))`, the Bradley-Terry model: transitive by construction, so
self-play can find nothing in it beyond the highest score. Any `AutoModelForSequenceClassification` with one label will
do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from sppo.oracle import OracleError, Preferences, Prompts, Responses
from sppo.oracle.model_folder import ScoringOracle, check_weights, oracle_folder
from sppo.oracle.transcript import (
    EncodesTexts,
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
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import Tensor


class RewardModelOracle(ScoringOracle):
    """A reward model: `AutoModelForSequenceClassification` with one score per response. P = sigma(r_i - r_j)."""

    type: Literal["reward_model"] = "reward_model"
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def load(self) -> RewardModel:
        """The reward model, loaded."""
        return RewardModel.from_pretrained(**self.model_dump(exclude={"type", "text"}))

    @property
    def is_transitive(self) -> bool:
        """True, since one score per response ranks the responses."""
        return True


class RewardModel(EncodesTexts):
    """A reward model, loaded by :meth:`from_pretrained`.

    Args:
        model: the model in evaluation mode, whose logits are [rows, 1].
        transcript: encodes texts for the model.
        batch_tokens: tokens computed side by side, padding included; changes answers by rounding only.
    """

    def __init__(self, model: Any, transcript: Transcript, batch_tokens: int = 16384) -> None:
        self.model = model
        self.transcript = transcript
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
        template_date: str | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> RewardModel:
        """Load a folder or a model of the hub from safetensors.

        Raises:
            OracleError: the model does not load, does not have exactly one label, lacks weights, or has weights that are not finite.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        name = os.fspath(model)
        folder = oracle_folder(name, revision, trust_remote_code)
        with load_errors(f"{name}: does not load as a reward model", OracleError):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            labels = config.num_labels
            if labels != 1:
                raise OracleError(
                    f"{name}: gives {labels} scores (num_labels) per response, but a reward model gives one. To use a"
                    " classifier of pairs, call it in a function of your own with oracle.type: function"
                )
            with policy.quiet():
                loaded, report = AutoModelForSequenceClassification.from_pretrained(
                    folder,
                    config=config,
                    dtype=getattr(torch, dtype),
                    trust_remote_code=trust_remote_code,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        check_weights(name, loaded, report)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        transcript = Transcript(tokenizer, token_limit(max_tokens, config, tokenizer), date=template_date)
        return cls(loaded.to(device or policy.default_device()).eval(), transcript, batch_tokens)

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: a text cannot be encoded, or a score is not finite.
        """
        scores = self.scores(prompts, responses)
        return np.asarray(expit(scores[:, :, None] - scores[:, None, :]))

    def scores(self, prompts: Prompts, responses: Responses) -> Float[Array, "prompts K"]:
        """The score r of each response, in nats.

        Raises:
            OracleError: as :meth:`compare` does.
        """
        scores = self.outputs(prompts, responses)[..., 0]
        if not np.isfinite(scores).all():
            n, bad = np.argwhere(~np.isfinite(scores))[0]
            raise OracleError(f"the reward model's score of response {bad} is {scores[n, bad]}", int(n))
        return scores

    def outputs(self, prompts: Prompts, responses: Responses) -> Float[Array, "prompts K outputs"]:
        """All that the model's head gives for each response.

        Raises:
            OracleError: a text cannot be encoded.
        """
        import torch

        rows = encoded(self.transcript, prompts, responses)
        config = self.model.config.get_text_config()
        found: list[Any] = [None] * len(rows)
        for batch in batches(rows, self.batch_tokens):
            part = [rows[index] for index in batch]
            padding = padding_for(part, config.pad_token_id, config.vocab_size)
            with torch.inference_mode():
                outputs = logits(self.model, padded(part, padding, self.model.device), padding)
            for index, of_row in zip(batch, outputs.double().cpu().numpy(), strict=True):
                found[index] = of_row
        return np.stack(found).reshape(len(prompts), len(rows) // len(prompts), -1)


def logits(model: Any, inputs: Mapping[str, Tensor], padding: int) -> Float[Tensor, "rows outputs"]:
    """All that a classifier's head gives for rows that are padded with an id that none of them has, with gradients."""
    with _padded_with(model.config.get_text_config(), padding):
        outputs: Tensor = model(**inputs).logits
    return outputs


@contextlib.contextmanager
def _padded_with(config: Any, padding: int) -> Iterator[None]:
    """Give a model's configuration another padding id within the block."""
    before = config.pad_token_id
    config.pad_token_id = padding
    try:
        yield
    finally:
        config.pad_token_id = before
