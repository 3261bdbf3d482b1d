r"""How alike a policy's hidden states of two responses are, which needs no second model.

:math:`h_i` is the mean of the policy's last hidden states over the tokens of response i behind its prompt, the end of its turn
included, and :math:`s_{ij} = \max(0, h_i \cdot h_j / (|h_i| |h_j|))`. The last hidden states are those that the output head reads, so
responses are alike if the policy would go on from them in the same way, whatever words they are made of. Hidden states of language
models all share a direction: even responses that have nothing in common can have s = 0.6 to 0.9 (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sppo.oracle import OracleError, Preferences, Prompts, Responses, excerpt, own_policy
from sppo.oracle.transcript import EncodesTexts, Row, Transcript, batches, padded, padding_for, token_limit
from sppo.recipe import Policy
from sppo.recipe.run_policies import RunPolicy
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 16384
"""Tokens that are computed side by side, padding included; changes answers by rounding only."""


class HiddenStates(EncodesTexts):
    """The hidden states of a policy, loaded by :meth:`of_policy`.

    Args:
        body: a causal language model without its output head, in evaluation mode.
        transcript: encodes texts for the model.
    """

    def __init__(self, body: Any, transcript: Transcript) -> None:
        self.body = body
        self.transcript = transcript

    @classmethod
    def of_policy(cls, policy: RunPolicy | Policy) -> HiddenStates:
        """Load a policy.

        Raises:
            OracleError: there is no such policy, it has no chat template, or it does not load.
        """
        folder, chat = own_policy.find(policy)
        assert not isinstance(policy, str), "found above"
        model = own_policy.load_weights(policy, folder)
        # within an adapter's wrapper lies the model whose layers it has adapted
        body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        limit = token_limit(None, body.config, chat.tokenizer)
        return cls(body, Transcript(chat.tokenizer, limit, date=policy.template_date))

    def similarity(self, prompts: Prompts, responses: Responses) -> Preferences:
        """s of the responses to each prompt: [N, K, K] in [0, 1], symmetric, 1 for equal texts.

        Raises:
            OracleError: a text cannot be encoded, a prompt leaves no room for a response, or a hidden state is not finite.
        """
        texts = [list(dict.fromkeys(of_prompt)) for of_prompt in responses]
        states = iter(self._states(prompts, texts))
        found = []
        for of_prompt, different in zip(responses, texts, strict=True):
            vectors = np.stack([next(states) for _ in different])
            vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
            cosine = np.clip(vectors @ vectors.T, 0, 1)
            np.fill_diagonal(cosine, 1)
            place = [different.index(text) for text in of_prompt]
            found.append(cosine[place][:, place])
        return np.stack(found)

    def _states(self, prompts: Prompts, texts: Sequence[Sequence[str]]) -> list[Float[Array, " H"]]:
        """The mean hidden state of each text behind its prompt."""
        import torch

        rows, begins, owners = [], [], []
        for number, (prompt, of_prompt) in enumerate(zip(prompts, texts, strict=True)):
            for text in of_prompt:
                row, begin = self._row(number, prompt, text)
                rows.append(row)
                begins.append(begin)
                owners.append(number)
        config = self.body.config.get_text_config()
        found: list[Any] = [None] * len(rows)
        for batch in batches(rows, BATCH_TOKENS):
            part = [rows[index] for index in batch]
            padding = padding_for(part, config.pad_token_id, config.vocab_size)
            with torch.inference_mode():
                states = self.body(**padded(part, padding, self.body.device)).last_hidden_state
            for index, state in zip(batch, states, strict=True):
                found[index] = _mean(state[begins[index] : len(rows[index].ids)])
        for number, state in zip(owners, found, strict=True):
            if not (np.isfinite(state).all() and state.any()):
                raise OracleError("the policy's hidden states of a response are not finite, or 0", number)
        return found

    def _row(self, number: int, prompt: str, text: str) -> tuple[Row, int]:
        """A prompt with a response, and the place where the response begins."""
        try:
            row = self.transcript.row(prompt, text)
            begin = self.transcript.response_begin(prompt, row)
        except OracleError as error:
            raise OracleError(str(error), number) from error
        if begin == len(row.ids):
            raise OracleError(
                f"the prompt {excerpt(prompt)} leaves no room for a response within the {self.transcript.limit} tokens"
                " of the policy, so the response has no hidden states; shorten prompts with prompts.max_tokens",
                number,
            )
        return row, begin


def _mean(states: Float[Tensor, "tokens H"]) -> Float[Array, " H"]:
    return np.asarray(states.double().mean(dim=0).cpu().numpy())
