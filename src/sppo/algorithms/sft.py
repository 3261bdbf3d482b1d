r"""Supervised fine-tuning: the negative log-likelihood of the demonstrations, :math:`-\log\pi_\theta(y|x)`.

Requires a demonstration for each prompt, but no oracle and no responses of :math:`\pi_t`, which is not sampled. The
log-likelihood of a demonstration is the sum over its tokens, and a step takes the mean over prompts, so all demonstrations
have the same weight; most trainers take the mean over tokens, in which long demonstrations have more weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class SFT(Algorithm):
    """Supervised fine-tuning on demonstrations."""

    samples: ClassVar[bool] = False
    preferences: ClassVar[bool] = False
    demonstrations: ClassVar[bool] = True

    type: Literal["sft"] = "sft"

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean of :func:`sppo.objectives.sft` over each prompt's demonstrations."""
        from sppo import objectives

        losses = objectives.sft(responses.log_ratio + responses.opponent)
        return responses.by_prompt(losses, mean=True, among=responses.demonstration)
