r"""Iterative DPO (arXiv:2305.18290, Equation 7): the best against the worst of each prompt's responses.

The loss is :math:`-\log\sigma(\beta(r_w - r_l))`. The log-ratios are taken to the opponent, the policy at the start of
the iteration; the paper's reference is one fixed policy.

Requires a pair per prompt: a prompt with one usable response has the loss log 2 and no gradient. The loss uses only which
of the two responses won, not how clearly it won.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class DPO(Algorithm):
    """Iterative DPO on the best and the worst response of each prompt."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Larger values keep pi_{t+1} closer to pi_t, as in DPO."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Apply :func:`sppo.objectives.dpo` to the best and the worst response of each prompt."""
        from sppo import objectives

        ratio = responses.log_ratio
        return objectives.dpo(ratio[responses.winner], ratio[responses.loser], beta=self.beta)
