r"""Iterative IPO (arXiv:2310.12036, Equation 17): the best against the worst of each prompt's responses.

The loss is :math:`(r_w - r_l - \frac{1}{2\tau})^2`. The log-ratios are taken to the opponent, the policy at the start of
the iteration; the paper's reference is one fixed policy.

Requires a pair per prompt: a prompt with one usable response has no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class IPO(Algorithm):
    """Iterative IPO on the best and the worst response of each prompt."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """The target of the difference of the log-ratios is 1/(2 tau), as in IPO."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Apply :func:`sppo.objectives.ipo` to the best and the worst response of each prompt."""
        from sppo import objectives

        ratio = responses.log_ratio
        return objectives.ipo(ratio[responses.winner], ratio[responses.loser], tau=self.tau)
