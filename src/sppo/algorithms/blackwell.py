r"""Proximal steps towards the Blackwell winner, which no annotator of a panel is outvoted in (after PROSPER, arXiv:2602.19041).

A panel's mean preference is one annotator more, and self-play on it may lose nearly always in the eyes of a real one. Here a third
player chooses, after the policy, the annotator a and the opponent y' that are worst for it:

.. math:: \pi_{t+1} = \arg\max_\pi \min_q \sum_{a, y'} q(a, y') P_a(\pi \succ y') - \tfrac1\eta KL(\pi \| \pi_t)
          \propto \pi_t \exp(\eta r), \qquad r(y) = \sum_{a, y'} q^*(a, y') P_a(y \succ y').

The opponents y' are the prompt's own responses, each as probable as the others under :math:`\pi_t`, so that r, the win rate against
the worst mixture q*, is computed from the stored matrices of the panel's members by a small convex programme
(:mod:`sppo.game.dynamics.blackwell`). The loss is least squares on the pairs of a prompt's responses,

.. math:: \left(\log\frac{\pi_\theta(y)}{\pi_t(y)} - \log\frac{\pi_\theta(y')}{\pi_t(y')} - \eta (r(y) - r(y'))\right)^2.

Requires all K responses with their comparisons by every member of a panel. The members' weights do not count, except that a member
of weight 0 has no say. Why the adversary chooses opponents as well: against pi_t itself every annotator is indifferent.

PROSPER regularises the adversary by entropy, which gives it a closed form and its winner a distance from this one; here it is
solved for, which gives the winner itself and needs no temperature. The paper's abstract, its opening and other people's accounts
were read; its equations and code were not available.
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


class Blackwell(Algorithm):
    """A step towards the policy whose win rate is the highest under the annotator that is worst for it."""

    all_responses: ClassVar[bool] = True
    annotators: ClassVar[bool] = True

    type: Literal["blackwell"] = "blackwell"
    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        return responses.pairwise(responses.log_ratio - self.eta * responses.reward)

    def rewards(self, matrix: Array, references: Array) -> Array:
        """The win rate of each response against the worst mixture of annotators and responses, [m]."""
        from sppo.game.dynamics.blackwell import worst_mixture_rewards
        from sppo.game.dynamics.policies import as_policy

        del references
        m = matrix.shape[-1]
        return worst_mixture_rewards(as_policy(np.full(m, 1 / m)), matrix, eta=self.eta)
