r"""A reward model as a preference oracle: one score per response.

:math:`P(y_i \succ y_j | x) = \sigma(r(x, y_i) - r(x, y_j))`, the Bradley-Terry model: transitive by construction, so
there is nothing in it that self-play could find beyond the highest score. Any
`AutoModelForSequenceClassification` with one label.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from scipy.special import expit

from sppo.oracle import OracleError
from sppo.oracle.model_folder import ModelOracle, oracle_folder, refuse_missing
from sppo.oracle.transcript import Row, Transcript, batches, load_tokenizer, padding_for, token_limit
from sppo.policy import load as policy
from sppo.recipe.oracle import Text
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import Tensor


class RewardModelOracle(ModelOracle):
    """A reward model: `AutoModelForSequenceClassification` with one score per response. P = sigma(r_i - r_j)."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    type: Literal["reward_model"] = "reward_model"
    model: str = Field(min_length=1, description="a folder or hub name")
    revision: str | None = None
    text: Text = Field("prompt", description="what it sees as the user's message: plain or templated")
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens: int | None = Field(None, ge=8, description="of prompt and response; None: what it holds")
    batch_tokens: int = Field(16384, ge=1, description="computed side by side, padding included")
    trust_remote_code: bool = Field(False, description="run Python that comes with the model")

    def load(self) -> RewardModel:
        """The reward model, loaded."""
        return RewardModel.from_pretrained(**self.model_dump(exclude={"type", "text"}))

    @property
    def is_transitive(self) -> bool:
        """True: one score per response ranks them."""
        return True


class RewardModel:
    """A reward model. Made by :meth:`from_pretrained`.

    Args:
        model: in evaluation mode; its logits are [rows, 1].
        transcript: makes its token ids.
        batch_tokens: computed side by side, padding included. No answer depends on it but for rounding.
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
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> RewardModel:
        """Load a folder or a model of the hub, from safetensors.

        Raises:
            OracleError: it does not load, has another number of labels than one, or lacks weights.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        name = os.fspath(model)
        folder = oracle_folder(name, revision, trust_remote_code)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            labels = config.num_labels
            if labels != 1:
                raise OracleError(
                    f"{name}: gives {labels} scores (num_labels) per response; a reward model has one. A classifier"
                    " of pairs is no reward model; use oracle.type: function around it"
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
        except OracleError:
            raise
        except Exception as error:  # transformers raises what it meets
            raise OracleError(f"{name}: does not load as a reward model: {error}") from error
        refuse_missing(name, [*report["missing_keys"], *report["mismatched_keys"]])
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        transcript = Transcript(tokenizer, token_limit(max_tokens, config, tokenizer))
        return cls(loaded.to(device or policy.default_device()).eval(), transcript, batch_tokens)

    @property
    def counts(self) -> dict[str, int]:
        """Counts of texts: encoded, truncated, and with special tokens written out in them."""
        return dict(vars(self.transcript.counts))

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: a text cannot be encoded, or a score is not finite.
        """
        scores = self.scores(prompts, responses)
        return np.asarray(expit(scores[:, :, None] - scores[:, None, :]))

    def scores(self, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Float[Array, "prompts K"]:
        """r, in nats.

        Raises:
            OracleError: as :meth:`compare` does.
        """
        import torch

        rows = encoded(self.transcript, prompts, responses)
        config = self.model.config.get_text_config()
        scores = np.zeros(len(rows))
        for batch in batches(rows, self.batch_tokens):
            part = [rows[index] for index in batch]
            padding = padding_for(part, config.pad_token_id, config.vocab_size)
            with torch.inference_mode(), _padded_with(config, padding):
                logits = self.model(**padded(part, padding, self.model.device)).logits
                scores[batch] = logits[:, 0].double().cpu().numpy()
        k = len(rows) // max(1, len(prompts))
        if not np.isfinite(scores).all():
            bad = int(np.argmin(np.isfinite(scores)))
            raise OracleError(f"the reward model's score of response {bad % k} is {scores[bad]}", bad // k)
        return scores.reshape(len(prompts), k)


def encoded(transcript: Transcript, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> list[Row]:
    """Every exchange, prompt by prompt.

    Raises:
        OracleError: one cannot be encoded.
    """
    rows = []
    for number, (prompt, of_prompt) in enumerate(zip(prompts, responses, strict=True)):
        try:
            rows += [transcript.row(prompt, response) for response in of_prompt]
        except OracleError as error:
            raise OracleError(str(error), number) from error
    return rows


def padded(rows: Sequence[Row], padding: int, device: Any) -> dict[str, Tensor]:
    """A model's inputs, padded on the right."""
    import torch

    longest = max(len(row.ids) for row in rows)

    def filled(lists: Sequence[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([[*ids, *[value] * (longest - len(ids))] for ids in lists], device=device)

    inputs = {
        "input_ids": filled([row.ids for row in rows], padding),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
    }
    if rows[0].types is not None:
        inputs["token_type_ids"] = filled([row.types or [] for row in rows], 0)
    return inputs


@contextlib.contextmanager
def _padded_with(config: Any, padding: int) -> Iterator[None]:
    """A model's configuration with another padding id for a while."""
    before = config.pad_token_id
    config.pad_token_id = padding
    try:
        yield
    finally:
        config.pad_token_id = before
