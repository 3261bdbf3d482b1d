r"""Iterative DPO (arXiv:2305.18290, Equation 7): the best against the worst of each prompt's responses.

:math:`-\log\sigma(\beta(r_w - r_l))` with log-ratios to the opponent, the policy at the start of the iteration; the
paper's reference is one fixed policy. Needs a pair per prompt: a prompt with one usable response has loss log 2 and
no gradient. Which of the two won is all it knows of the oracle; how clearly is lost.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo import objectives
from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class DPO:
    """The update of iterative DPO."""

    beta: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """As :func:`sppo.objectives.dpo`."""
        ratio = responses.log_ratio
        return objectives.dpo(ratio[responses.winner], ratio[responses.loser], beta=self.beta)

    def targets(self, responses: Responses) -> None:
        """None: it looks at the difference of two log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
