r"""REBEL (arXiv:2404.16767): regression of the differences of log-ratios on the differences of rewards.

.. math:: \left(\log\frac{\pi_\theta(y)}{\pi_t(y)} - \log\frac{\pi_\theta(y')}{\pi_t(y')} - \eta (r(y) - r(y'))\right)^2

over the pairs of a prompt's responses, whose minimiser is mirror descent, :math:`\pi_{t+1} \propto \pi_t \exp(\eta r)`. The paper's
loss is this one divided by :math:`\eta^2`; here it is in nats squared, as the other regressions are.

Requires all K responses with their comparisons. The reward is the Bradley-Terry fit of the prompt's own comparisons, as in
`rlhf`, or P^ itself, which the paper names for general preferences; then the update is multiplicative weights, as INPO's
is without a pull to the base policy. The paper draws one pair for each prompt, of which one response may come from another
policy; here all pairs are of pi_t's responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sppo.algorithms.rlhf import bradley_terry_rewards
from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class REBEL(Algorithm):
    """Least squares on the differences of rewards."""

    all_responses: ClassVar[bool] = True

    type: Literal["rebel"] = "rebel"
    eta: float = Field(1.0, gt=0)
    """Step size: nats of log-ratio for one nat of reward, or for a win rate of 1."""
    reward: Literal["bradley_terry", "win_rate"] = "bradley_terry"
    """Take the Bradley-Terry fit, in nats, or P^ itself."""

    @property
    def uses_comparisons(self) -> bool:
        """Whether the reward is fitted to the comparisons."""
        return self.reward == "bradley_terry"

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        reward = responses.win_rate if self.reward == "win_rate" else responses.reward
        return responses.pairwise(responses.log_ratio - self.eta * reward)

    def rewards(self, matrix: Array, references: Array) -> Array | None:
        """The Bradley-Terry reward of each response in nats, [m], with mean 0."""
        del references
        return None if self.reward == "win_rate" else bradley_terry_rewards(matrix)
