r"""SPIN (arXiv:2401.01335), Equation 4.7: demonstrations against the opponent's own responses.

:math:`\log(1 + \exp(-\lambda(r_{real} - r_{generated})))` with log-ratios r to :math:`\pi_t`, the policy at the start
of the iteration, which has also written the generated responses. Over enough data the minimiser is
:math:`\pi_{t+1} \propto \pi_t (p/\pi_t)^{1/\lambda}` with p the distribution of the demonstrations: the game ends
where :math:`\pi_t = p`, at what supervised fine-tuning looks for.

Needs: a demonstration and K >= 1 responses of :math:`\pi_t` for each prompt; no oracle. The paper draws one response; here
the loss is the mean over all K. Its released code, from the second iteration on, mixes in the responses of the
iteration before; here each iteration has prompts and responses of its own.
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
    lam: float = Field(0.1, gt=0, description="the paper's lambda: a larger one stays closer to pi_t")

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean of :func:`sppo.objectives.spin` over each prompt's generated responses."""
        from sppo import objectives

        real = responses.by_prompt(responses.log_ratio, mean=True, of=responses.demonstration)
        losses = objectives.spin(real[responses.prompt], responses.log_ratio, lam=self.lam)
        generated = ~responses.demonstration
        return responses.by_prompt(losses, mean=True, of=generated)
