r"""GRPO (arXiv:2402.03300) on win rates, as Pref-GRPO rewards (arXiv:2508.20751): a clipped policy gradient.

With :math:`\rho = \pi_\theta(y)/\pi_t(y)` and the advantage :math:`A = (\hat P - \text{mean}) / \text{std}` over a prompt's responses,
the loss is the mean over these of

.. math:: -\min(\rho A, \text{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A)
          + \beta \left(\frac{\pi_1}{\pi_\theta} - \log\frac{\pi_1}{\pi_\theta} - 1\right).

Requires responses with win rates, at best all K (`selection: all`), and the base policy's log-probabilities. The ratio is that of
the whole response; the papers' is that of each token, with the same advantage. The standard deviation is that of the responses
(K - 1 in its denominator) plus 1e-4. The ratio :math:`\pi_1/\pi_\theta` is limited to :math:`e^5`.

There is no table of it in sppo.game.dynamics: the clip ends the gradient of a response at the edge of the trust region, so without
the last term every policy beyond the edges is a minimum, and where training ends depends on the optimiser. Its gradient at
:math:`\pi_t` is that of RLOO's up to the scale of A, so an iteration steps in the direction of multiplicative weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.algorithms.rspo import importance_weight
from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses

_LEAST_DEVIATION = 1e-4


class GRPO(Algorithm):
    """A clipped policy gradient with the standardised win rate as advantage."""

    type: Literal["grpo"] = "grpo"
    clip: float = Field(0.2, gt=0, lt=1)
    """The distance of a response's probability ratio from 1 beyond which it is no longer pushed away."""
    beta: float = Field(0.04, ge=0)
    """Weight of the divergence from the base policy."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over each prompt's responses."""
        import torch

        ratio, to_base = responses.log_ratio, responses.references[0] - responses.log_ratio
        centred = responses.win_rate - responses.by_prompt(responses.win_rate, mean=True)[responses.prompt]
        size = responses.by_prompt(torch.ones_like(ratio), mean=False)
        variance = responses.by_prompt(centred**2, mean=False) / (size - 1).clamp(min=1)
        advantage = centred / (variance.sqrt()[responses.prompt] + _LEAST_DEVIATION)
        probability = importance_weight(ratio)
        gain = torch.minimum(
            probability * advantage, probability.clamp(1 - self.clip, 1 + self.clip) * advantage
        )
        divergence = importance_weight(to_base) - to_base - 1
        return responses.by_prompt(self.beta * divergence - gain, mean=True)
