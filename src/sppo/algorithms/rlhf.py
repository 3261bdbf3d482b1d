r"""RLHF with a reward: a Bradley-Terry fit of the comparisons, then a policy gradient with the KL to the base.

The reward r of a prompt's responses is the Bradley-Terry model that is most probable given all of their comparisons
(sppo.game.bradley_terry, in nats): what a reward model of any capacity learns from them. An oracle that is a reward model
gets its own scores back, up to a constant. The policy maximises :math:`E_\pi r - \beta KL(\pi \| \pi_1)`, whose
maximiser is :math:`\pi \propto \pi_1 \exp(r/\beta)`, by REINFORCE with a leave-one-out baseline (RLOO, arXiv:2402.14740)
over the same K responses:

.. math:: -\frac1K \sum_k \frac{\pi_\theta(y_k)}{\pi_t(y_k)} \left(R_k - \frac1{K-1} \sum_{j \ne k} R_j\right), \qquad
          R_k = r_k - \beta\log\frac{\pi_\theta(y_k)}{\pi_1(y_k)}

with R held fixed. The ratio of a whole response's probabilities makes the later steps of an iteration, when
:math:`\pi_\theta` is no longer :math:`\pi_t`, gradients of the same objective; PPO's clipping is not part of it. Its
exponent is limited to 5 nats, beyond which a response's term has no gradient.

Needs: all K responses with their comparisons, and the base's log-probabilities. Certain preferences have no finite reward:
probabilities are taken no nearer to 0 and 1 than 0.001.
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

_CERTAIN = 0.001
_MOST_NATS = 5.0


class RLHF(Algorithm):
    """A Bradley-Terry reward, and a policy gradient with the KL to the base policy."""

    all_responses: ClassVar[bool] = True

    type: Literal["rlhf"] = "rlhf"
    beta: float = Field(0.1, gt=0, description="weight of the KL to the base policy, nats of reward per nat")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Minus the surrogate of each prompt, in nats of reward; its value says nothing, its gradient does."""
        ratio = responses.log_ratio
        gain = responses.reward - self.beta * (ratio.detach() - responses.references[0])
        size = responses.by_prompt(gain.new_ones(gain.shape), mean=False)[responses.prompt]
        mean = responses.by_prompt(gain, mean=True)[responses.prompt]
        # R_k less the mean of the others; nothing to compare with where a prompt has one response
        advantage = (gain - mean) * size / (size - 1).clamp(min=1)
        return -responses.by_prompt(ratio.clamp(max=_MOST_NATS).exp() * advantage, mean=True)

    def rewards(self, matrix: Array, references: Array) -> Array:
        """The Bradley-Terry reward of each response, [m], nats, with mean 0."""
        from sppo.game.bradley_terry import fit_log_strength

        finite = matrix.clip(_CERTAIN, 1 - _CERTAIN)
        rewards: Array = fit_log_strength(finite, np.full(len(finite), 1 / len(finite)))
        return rewards
