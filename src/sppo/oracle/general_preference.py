r"""A general preference model: an embedding per response, preferences from a skew-symmetric product of two.

GPM (arXiv:2410.02197, ICML 2025). With :math:`v_i` the embedding of response i in answer to x, in d dimensions,

.. math::
    s_{ij} = \sum_k \lambda_k(x) (v_i[2k]\, v_j[2k+1] - v_i[2k+1]\, v_j[2k]), \qquad P_{ij} = \sigma(s_{ij}/\tau),

so a response costs one forward pass, and yet preferences may run in circles. The published folders
(`general-preference/GPM-Llama-3.1-8B`, `GPM-Gemma-2B`) hold two heads beside the weights of the causal language model.
`value_head.weight` [d, H] maps the last hidden state to v. Where :math:`\lambda` depends on the prompt, it is the softmax
of `prompt_head.weight` [d/2, H] times the hidden state at the end of the user's turn; without this head
:math:`\lambda = 1`. Embeddings are scaled to length 1, as in the authors' example.

Token ids are made as in the models' training: the template's text is encoded with the tokenizer's own special tokens
around it, so that a Llama has its BOS twice, and the last id is replaced by EOS. A tokenizer without a template, as encoders have it,
encodes prompt and response as a pair of texts instead. One point departs from the authors:
:math:`\lambda` is the mean over the responses, which differ by rounding only, where the authors take that of the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.special import expit

from sppo.oracle import OracleError, Preferences, Prompts, Responses
from sppo.oracle.model_folder import ScoringOracle, check_weights, oracle_folder, refuse_non_finite
from sppo.oracle.transcript import (
    EncodesTexts,
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
from sppo.policy.model_files import load_errors, stored_weights
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import Tensor

VALUE_HEAD, PROMPT_HEAD = "value_head.weight", "prompt_head.weight"


class GeneralPreferenceOracle(ScoringOracle):
    """A general preference model (arXiv:2410.02197): skew-symmetric embeddings, so preferences may be cyclic."""

    type: Literal["general_preference"] = "general_preference"
    tau: float = Field(0.1, gt=0)
    """The temperature: P = sigma(s / tau)."""
    normalized: bool = True
    """Scale embeddings to length 1, as the released models are used."""

    def load(self) -> GeneralPreference:
        """The general preference model, loaded."""
        return GeneralPreference.from_pretrained(**self.model_dump(exclude={"type", "text"}))


class GeneralPreference(EncodesTexts):
    r"""A general preference model, loaded by :meth:`from_pretrained`.

    Args:
        backbone: a causal language model without its head, in evaluation mode.
        value_head: [d, H], d even.
        prompt_head: [d/2, H]; None: every :math:`\lambda_k` is 1.
        transcript: encodes texts for the model.
        tau: the temperature.
        normalized: whether embeddings are scaled to length 1.
        batch_tokens: tokens computed side by side, padding included; changes answers by rounding only.
    """

    def __init__(
        self,
        backbone: Any,
        value_head: Float[Tensor, "d H"],
        prompt_head: Float[Tensor, "d/2 H"] | None,
        transcript: Transcript,
        *,
        tau: float = 0.1,
        normalized: bool = True,
        batch_tokens: int = 16384,
    ) -> None:
        self.backbone = backbone
        self.value_head = value_head
        self.prompt_head = prompt_head
        self.transcript = transcript
        self.tau = tau
        self.normalized = normalized
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        tau: float = 0.1,
        normalized: bool = True,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
        template_date: str | None = None,
        device: str | None = None,
    ) -> GeneralPreference:
        """Load a folder or a model of the hub; the heads are always float32.

        Raises:
            OracleError: the model does not load, or has no heads of fitting shapes.
        """
        import torch
        from transformers import AutoModel

        name = os.fspath(model)
        folder = oracle_folder(name, revision)
        heads = _heads(folder)
        with load_errors(f"{name}: does not load as a language model", OracleError), policy.quiet():
            backbone, report = AutoModel.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        check_weights(name, backbone, report)
        refuse_non_finite(name, heads.items())
        value_head, prompt_head = _of_fitting_shapes(
            name, heads, backbone.config.get_text_config().hidden_size
        )
        tokenizer = load_tokenizer(folder)
        if tokenizer.chat_template is None:
            if prompt_head is not None:
                raise OracleError(
                    f"{name}: its tokenizer has no chat template, by which {PROMPT_HEAD} finds the end of the user's turn"
                )
        elif tokenizer.eos_token_id is None:
            raise OracleError(f"{name}: its tokenizer has no EOS, in which a GPM's exchanges end")
        limit = token_limit(max_tokens, backbone.config, tokenizer)
        place = torch.device(device or policy.default_device())
        return cls(
            backbone.to(place).eval(),
            value_head.to(place),
            None if prompt_head is None else prompt_head.to(place),
            Transcript(tokenizer, limit, bos_again=True, date=template_date),
            tau=tau,
            normalized=normalized,
            batch_tokens=batch_tokens,
        )

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: a text cannot be encoded, or an embedding is not finite.
        """
        return np.asarray(expit(self.scores(prompts, responses) / self.tau))

    def scores(self, prompts: Prompts, responses: Responses) -> Preferences:
        """The skew-symmetric s of each pair.

        Raises:
            OracleError: as :meth:`compare` does.
        """
        import torch

        with torch.inference_mode():
            embeddings, scales = self.embeddings(prompts, responses)
        if self.normalized:
            length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
            embeddings = embeddings / np.maximum(length, 1e-12)
        even, odd = embeddings[..., 0::2], embeddings[..., 1::2]
        product = np.einsum("nik,njk,nk->nij", even, odd, scales)
        return np.asarray(product - product.swapaxes(-1, -2))

    def embeddings(
        self, prompts: Prompts, responses: Responses
    ) -> tuple[Float[Array, "prompts K d"], Float[Array, "prompts half"]]:
        """The embedding v of each response, before it is scaled, and the scales lambda of each prompt.

        Raises:
            OracleError: as :meth:`compare` does.
        """
        import torch

        rows = exchanges(self.transcript, prompts, responses)
        k, d = len(rows) // max(1, len(prompts)), len(self.value_head)
        ends = (
            [self.transcript.prompt_length(prompt) for prompt in prompts]
            if self.prompt_head is not None
            else []
        )
        values, scales = np.zeros((len(rows), d)), np.ones((len(rows), d // 2))
        for batch in batches(rows, self.batch_tokens):
            part = [rows[index] for index in batch]
            padding = padding_for(part, self.backbone.config.pad_token_id, len(self.transcript.tokenizer))
            inputs = padded(part, padding, self.backbone.device)
            hidden = hidden_states(self.backbone, inputs)
            last = at_end(hidden, inputs["attention_mask"])
            values[batch] = (last @ self.value_head.T).cpu().numpy()
            if self.prompt_head is not None:
                end = torch.tensor([min(ends[index // k], len(rows[index].ids)) - 1 for index in batch])
                row_numbers = torch.arange(len(part), device=hidden.device)
                logits = hidden[row_numbers, end.to(hidden.device)] @ self.prompt_head.T
                scales[batch] = logits.softmax(-1).cpu().numpy()
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values).all(-1)))
            raise OracleError(f"the embedding of response {bad % k} is not finite", bad // k)
        return values.reshape(len(prompts), k, d), scales.reshape(len(prompts), k, d // 2).mean(1)


def exchanges(transcript: Transcript, prompts: Prompts, responses: Responses) -> list[Row]:
    """The exchanges as token ids; with a chat template the last id is replaced by EOS, as in the published models' training.

    Raises:
        OracleError: a text cannot be encoded.
    """
    rows = encoded(transcript, prompts, responses)
    if transcript.tokenizer.chat_template is not None:
        for row in rows:
            row.ids[-1] = transcript.tokenizer.eos_token_id
    return rows


def hidden_states(backbone: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "rows tokens H"]:
    """The last hidden states in float32, with gradients."""
    causal = {"use_cache": False} if hasattr(backbone.config.get_text_config(), "use_cache") else {}
    states: Tensor = backbone(**inputs, **causal).last_hidden_state
    return states.float()


def at_end(
    hidden: Float[Tensor, "rows tokens H"], mask: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows H"]:
    """The hidden state of the last token of each row; padding is on the right."""
    last = mask.sum(-1) - 1
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]


def skew_product(first: Any, second: Any) -> Any:
    """s_ij of embeddings [..., d], arrays or tensors, with every lambda 1: [...]."""
    product = first[..., 0::2] * second[..., 1::2] - first[..., 1::2] * second[..., 0::2]
    return product.sum(-1)


def _heads(folder: Path) -> dict[str, Tensor]:
    """The heads among the weights of a folder, by name."""
    with load_errors(f"{folder}: cannot be read as safetensors", OracleError):
        heads = stored_weights(folder, {VALUE_HEAD, PROMPT_HEAD})
        return {name: weight.float() for name, weight in heads}


def _of_fitting_shapes(name: str, heads: dict[str, Tensor], hidden: int) -> tuple[Tensor, Tensor | None]:
    value, prompt = heads.get(VALUE_HEAD), heads.get(PROMPT_HEAD)
    if value is None:
        raise OracleError(f"{name}: has no {VALUE_HEAD}; it is not a general preference model")
    d = value.shape[0]
    if value.shape != (d, hidden) or d % 2 or d < 2:
        raise OracleError(
            f"{name}: {VALUE_HEAD} has the shape {list(value.shape)}; an even number of rows of {hidden} is needed"
        )
    if prompt is not None and prompt.shape != (d // 2, hidden):
        raise OracleError(
            f"{name}: {PROMPT_HEAD} has the shape {list(prompt.shape)} instead of {[d // 2, hidden]}"
        )
    return value, prompt
