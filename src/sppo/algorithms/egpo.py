r"""EGPO (arXiv:2503.08942): the extragradient method on the game that is regularised towards the base policy.

.. math:: \pi_{t+1/2} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_t)) \\
          \pi_{t+1} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_{t+1/2}))

Each half is an iteration of the loop: an odd iteration looks ahead, and the even iteration after it samples from the
policy that the look-ahead has found, but steps from the policy at which the look-ahead began. A run should therefore have
an even number of iterations. Both halves have INPO's loss (inpo.py), with the policy at which the step begins in place of
:math:`\pi_t`.

Requires responses with win rates, the base policy's log-probabilities and, in even iterations, those of the previous
policy. For each half the paper takes one gradient step of this loss on uniformly drawn pairs; here each half is minimised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class EGPO(Regularised):
    """The extragradient method: odd iterations look ahead, even iterations step from where the odd one began."""

    type: Literal["egpo"] = "egpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policy at which the step begins, then the base policy."""
        return (t if t % 2 else t - 1, 1)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        start, base = responses.references
        share = self.eta * self.tau
        h = responses.log_ratio - (1 - share) * start - share * base
        return responses.pairwise(h - self.eta * responses.win_rate)
