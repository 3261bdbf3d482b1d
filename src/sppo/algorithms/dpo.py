r"""Iterative DPO (arXiv:2305.18290, Equation 7): the best against the worst of each prompt's responses.

:math:`-\log\sigma(\beta(r_w - r_l))` with log-ratios to the opponent, the policy at the start of the iteration; the
paper's reference is one fixed policy. Needs a pair per prompt: a prompt with one usable response has loss log 2 and
no gradient. Which of the two won is all it knows of the oracle; how clearly is lost.
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
    beta: float = Field(0.1, gt=0, description="as in DPO: a larger one stays closer to pi_t")

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """:func:`sppo.objectives.dpo` of the best response against the worst."""
        from sppo import objectives

        ratio = responses.log_ratio
        return objectives.dpo(ratio[responses.winner], ratio[responses.loser], beta=self.beta)
