r"""EGPO (arXiv:2503.08942): extragradient on the game that the base policy regularises.

.. math:: \pi_{t+1/2} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_t)) \\
          \pi_{t+1} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_{t+1/2}))

Each is an iteration of the loop: an odd one looks ahead, the even one after it draws from what was found and steps from
where the odd one began, so that a run wants an even number of iterations. Both have INPO's loss (inpo.py), with the
policy where the step began in place of :math:`\pi_t`.

Needs: responses with win rates, the base's log-probabilities and, in even iterations, those of the policy before. The
paper takes one gradient step of this loss on uniformly drawn pairs for each half; here each is minimised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class EGPO(Regularised):
    """Extragradient: odd iterations look ahead, even ones step from where the odd one began."""

    type: Literal["egpo"] = "egpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policy where the step begins, then the base policy."""
        return (t if t % 2 else t - 1, 1)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        start, base = responses.references
        share = self.eta * self.tau
        h = responses.log_ratio - (1 - share) * start - share * base
        return responses.pairwise(h - self.eta * responses.win_rate)
