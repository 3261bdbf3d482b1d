r"""COMAL (arXiv:2410.23223): INPO steps, after some of which the reference moves to the policy.

The loss is INPO's (inpo.py) with the reference :math:`\pi_{ref}` in place of the base: the policy at the last iteration
that `inner` divides. So each stretch solves a game regularised by where it began, a proximal-point step, and the last
iterate approaches the von Neumann winner of the game itself, which INPO's does not.

Needs: responses with win rates, and the reference's log-probabilities. The released code moves the reference after 12
iterations; a run of three can move it once or twice.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo.algorithms import Responses
from sppo.algorithms.inpo import INPO
from sppo.winrates import Array


@dataclass(frozen=True)
class COMAL:
    """The update of COMAL; which policy the reference is, the recipe's section says."""

    eta: float
    tau: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """INPO's, with the present reference."""
        return INPO(self.eta, self.tau).loss(responses)

    def targets(self, responses: Responses) -> None:
        """None: it looks at differences of log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
