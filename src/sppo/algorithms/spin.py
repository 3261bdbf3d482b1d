r"""SPIN (arXiv:2401.01335), Equation 4.7: demonstrations against the opponent's own responses.

The loss is :math:`\log(1 + \exp(-\lambda(r_{real} - r_{generated})))`. The log-ratios r are taken to :math:`\pi_t`, the
policy at the start of the iteration, which has also generated the responses. With enough data the minimiser is
:math:`\pi_{t+1} \propto \pi_t (p/\pi_t)^{1/\lambda}`, where p is the distribution of the demonstrations. The fixed point is
:math:`\pi_t = p`, which supervised fine-tuning seeks directly.

Requires a demonstration and K >= 1 responses of :math:`\pi_t` for each prompt, but no oracle. The paper samples one
response; here the loss is the mean over all K. From the second iteration on, the released code mixes in the responses of
the previous iteration; here each iteration has its own prompts and responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class SPIN(Algorithm):
    """Demonstrations against pi_t's own responses."""

    preferences: ClassVar[bool] = False
    demonstrations: ClassVar[bool] = True

    type: Literal["spin"] = "spin"
    lam: float = Field(0.1, gt=0)
    """The paper's lambda; larger values keep pi_{t+1} closer to pi_t."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean of :func:`sppo.objectives.spin` over each prompt's generated responses."""
        from sppo import objectives

        real = responses.by_prompt(responses.log_ratio, mean=True, among=responses.demonstration)
        losses = objectives.spin(real[responses.prompt], responses.log_ratio, lam=self.lam)
        generated = ~responses.demonstration
        return responses.by_prompt(losses, mean=True, among=generated)
