r"""SPIN (arXiv:2401.01335), Equation 4.7: demonstrations against the opponent's own responses.

:math:`\log(1 + \exp(-\lambda(r_{real} - r_{generated})))` with log-ratios r to :math:`\pi_t`, the policy at the start
of the iteration, which has also written the generated responses. Over enough data the minimiser is
:math:`\pi_{t+1} \propto \pi_t (p/\pi_t)^{1/\lambda}` with p the distribution of the demonstrations: the game ends
where :math:`\pi_t = p`, at what supervised fine-tuning looks for.

Needs: a demonstration and K >= 1 responses of :math:`\pi_t` for each prompt; no oracle. The paper draws one response; here
the loss is the mean over all K. Its released code, from the second iteration on, mixes in the responses of the
iteration before; here each iteration has prompts and responses of its own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sppo import objectives
from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class SPIN:
    """The update of SPIN; lam is the paper's lambda."""

    lam: float

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """As :func:`sppo.objectives.spin`, averaged over each prompt's generated responses."""
        real = responses.by_prompt(responses.log_ratio, mean=True, of=responses.demonstration)
        each = objectives.spin(real[responses.prompt], responses.log_ratio, lam=self.lam)
        generated = torch.logical_not(responses.demonstration)
        return responses.by_prompt(each, mean=True, of=generated)

    def targets(self, responses: Responses) -> None:
        """None: it looks at the difference of two log-ratios."""

    def log_partition(self, win_rate: Array) -> float:
        """0: it cancels in a difference of log-ratios."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: it learns from no comparisons."""
