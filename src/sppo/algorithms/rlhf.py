r"""RLHF with a reward: a Bradley-Terry fit of the comparisons, then a policy gradient with a KL term to the base policy.

The reward r of a prompt's responses is the maximum-likelihood Bradley-Terry fit of all their comparisons
(sppo.game.bradley_terry, in nats), which is what a reward model of unlimited capacity would learn from them. If the oracle
is itself a reward model, the fit returns its scores up to a constant. The policy maximises
:math:`E_\pi r - \beta KL(\pi \| \pi_1)`, whose maximiser is :math:`\pi \propto \pi_1 \exp(r/\beta)`, by REINFORCE with a
leave-one-out baseline (RLOO, arXiv:2402.14740) over the same K responses:

.. math:: -\frac1K \sum_k \frac{\pi_\theta(y_k)}{\pi_t(y_k)} \left(R_k - \frac1{K-1} \sum_{j \ne k} R_j\right), \qquad
          R_k = r_k - \beta\log\frac{\pi_\theta(y_k)}{\pi_1(y_k)}

with R held fixed. In the later steps of an iteration, when :math:`\pi_\theta` is no longer :math:`\pi_t`, the ratio of a
response's probabilities corrects for the difference, so that the gradient is still that of the same objective. There is no
clipping as in PPO, but the log-ratio is limited to 5 nats, beyond which a response's term has no gradient.

Requires all K responses with their comparisons, and the base policy's log-probabilities. A preference of 0 or 1 has no
finite reward, so probabilities are limited to [0.001, 0.999].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array

_LEAST_PROBABILITY = 0.001
_LARGEST_LOG_RATIO = 5.0


class RLHF(Algorithm):
    """A Bradley-Terry reward, and a policy gradient with a KL term to the base policy."""

    all_responses: ClassVar[bool] = True

    type: Literal["rlhf"] = "rlhf"
    beta: float = Field(0.1, gt=0)
    """Weight of the KL divergence from the base policy, in nats of reward per nat."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The negative surrogate objective of each prompt; only its gradient is meaningful, not its value."""
        ratio = responses.log_ratio
        gain = responses.reward - self.beta * (ratio.detach() - responses.references[0])
        size = responses.by_prompt(gain.new_ones(gain.shape), mean=False)[responses.prompt]
        mean = responses.by_prompt(gain, mean=True)[responses.prompt]
        # (R_k - mean) K/(K-1) equals R_k minus the mean of the others; it is 0 for a prompt with one response.
        advantage = (gain - mean) * size / (size - 1).clamp(min=1)
        return -responses.by_prompt(ratio.clamp(max=_LARGEST_LOG_RATIO).exp() * advantage, mean=True)

    def rewards(self, matrix: Array, references: Array) -> Array:
        """The Bradley-Terry reward of each response in nats, [m], with mean 0."""
        return bradley_terry_rewards(matrix)


def bradley_terry_rewards(matrix: Array) -> Array:
    """The Bradley-Terry rewards in nats that are nearest to P between m responses, [m], with mean 0."""
    from sppo.game.bradley_terry import fit_log_strength

    finite = matrix.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    rewards: Array = fit_log_strength(finite, np.full(len(finite), 1 / len(finite)))
    return rewards
