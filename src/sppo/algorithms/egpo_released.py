r"""EGPO as its authors step (arXiv:2503.08942): a gradient step to look ahead, taken back, then one by the win rates found there.

The loss of both halves is the online IPO loss of the authors' code, the mean over the pairs of a prompt's responses of

.. math:: \left(\log\frac{\pi_\theta(y)}{\pi_1(y)} - \log\frac{\pi_\theta(y')}{\pi_1(y')}
          - \frac1\tau (\hat P(y \succ \pi) - \hat P(y' \succ \pi))\right)^2.

Each half is an iteration of the loop. An odd iteration steps from :math:`\pi_t` by the win rates against it. The even iteration after it
samples from the policy found there, whose win rates it takes, but *starts from the weights* at which the odd one began. Neither half
is meant to reach its minimum, the smoothed best response :math:`\pi_1 \exp(P/\tau)`: the step size is the optimiser's. With plain
gradient descent, learning rate a, and all m responses once, one step on the logits of a table is the entropic extragradient
(sppo.game.dynamics.egpo) with :math:`\eta\tau = 4a / (m - 1)`.

Requires responses with win rates, the base policy's log-probabilities and an even number of iterations. To step as the authors do, let
an iteration be one step: `training.batch_prompts` no less than the prompts, one epoch, no warm-up. The authors draw the pairs of a step
uniformly in tables and from the mixture of the policy and the base in language models; here they are all pairs of the sampled
policy's responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class EGPOReleased(Algorithm):
    """The extragradient method in gradient steps: even iterations start from the weights at which the odd one began."""

    type: Literal["egpo_released"] = "egpo_released"
    tau: float = Field(0.1, gt=0)
    """Pull towards the base policy, in win rate per nat (the authors' beta)."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def initial_policy(self, t: int) -> int:
        """The policy at which the step begins."""
        return t if t % 2 else t - 1

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        to_base = responses.log_ratio - responses.references[0]
        return responses.pairwise(to_base - responses.win_rate / self.tau)
