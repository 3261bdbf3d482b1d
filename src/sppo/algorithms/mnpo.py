r"""MNPO (arXiv:2509.23102), time-dependent: INPO against the geometric mean of the last policies.

With :math:`\bar\pi_t = \prod_j \pi_{t-j}^{1/n}` over the last n policies,
:math:`\pi_{t+1} \propto \pi_1^{\eta\tau}\, \bar\pi_t^{1-\eta\tau} \exp(\eta P(y \succ \pi_t))`, by INPO's loss
(inpo.py) with :math:`\bar\pi_t` in place of :math:`\pi_t`; one opponent is INPO.

Needs: responses with win rates, and the log-probabilities of the base and of the last policies. As in the released code
the responses are all drawn from :math:`\pi_t` and the weights of the policies are equal; the paper's update
(Equation 11) has the mean of the win rates against each opponent, which needs responses of each. The code regresses on the
choice of a winner by a reward model; here on win rates (inpo.py says why that is the same).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class MNPO:
    """The update of MNPO; how many opponents there are, the recipe's section says."""

    eta: float
    tau: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        base, opponents = responses.references[0], responses.references[1:].mean(0)
        share = self.eta * self.tau
        h = responses.log_ratio - share * base - (1 - share) * opponents
        return responses.pairwise(h - self.eta * responses.win_rate)

    def targets(self, responses: Responses) -> None:
        """None: it looks at differences of log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
