r"""Iterative IPO (arXiv:2310.12036, Equation 17): the best against the worst of each prompt's responses.

:math:`(r_w - r_l - \frac{1}{2\tau})^2` with log-ratios to the opponent, the policy at the start of the iteration;
the paper's reference is one fixed policy. Needs a pair per prompt: a prompt with one usable response has no gradient.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo import objectives
from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class IPO:
    """The update of iterative IPO."""

    tau: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """As :func:`sppo.objectives.ipo`."""
        ratio = responses.log_ratio
        return objectives.ipo(ratio[responses.winner], ratio[responses.loser], tau=self.tau)

    def targets(self, responses: Responses) -> None:
        """None: it looks at the difference of two log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
