r"""EGPO (arXiv:2503.08942): extragradient on the game that the base policy regularises.

.. math:: \pi_{t+1/2} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_t)) \\
          \pi_{t+1} &\propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(\cdot \succ \pi_{t+1/2}))

Each is an iteration of the loop: an odd one looks ahead, the even one after it draws from what was found and steps from
where the odd one began, so that a run wants an even number of iterations. Both have INPO's loss (inpo.py), with the
policy where the step began in place of :math:`\pi_t`.

Needs: responses with win rates, the base's log-probabilities and, in even iterations, those of the policy before. The
paper takes one gradient step of this loss on uniformly drawn pairs for each half; here each is minimised.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class EGPO:
    """The update of EGPO; where the step began, the recipe's section says."""

    eta: float
    tau: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        start, base = responses.references
        share = self.eta * self.tau
        h = responses.log_ratio - (1 - share) * start - share * base
        return responses.pairwise(h - self.eta * responses.win_rate)

    def targets(self, responses: Responses) -> None:
        """None: it looks at differences of log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
