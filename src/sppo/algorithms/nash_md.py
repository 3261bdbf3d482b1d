r"""Nash-MD (arXiv:2312.00886): mirror descent from, and against, the mixture of the policy and the base.

:math:`\pi_t^\mu \propto \pi_t^{1-\eta\tau} \pi_1^{\eta\tau}` and
:math:`\pi_{t+1} \propto \pi_t^\mu \exp(\eta P(y \succ \pi_t^\mu))`, by INPO's least squares (inpo.py) with the win
rates against the mixture.

Needs: all K responses with their comparisons, and the base's log-probabilities. The paper draws the opponent's responses
from the mixture, token by token, and takes policy-gradient steps. Here the K responses of :math:`\pi_t` stand for the
mixture with weights :math:`\propto (\pi_1/\pi_t)^{\eta\tau}` (self-normalised importance sampling): exact as K grows,
and resting on fewer and fewer of them as the policy leaves the base; with eta tau = 0.3 and a log-ratio that varies by 5
nats, one response can have e^1.5 times another's weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class NashMD(Regularised):
    """Mirror descent from, and against, the mixture of the policy and the base policy."""

    all_responses: ClassVar[bool] = True

    type: Literal["nash_md"] = "nash_md"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        h = responses.log_ratio - self.eta * self.tau * responses.references[0]
        return responses.pairwise(h - self.eta * responses.reward)

    def rewards(self, matrix: Array, references: Array) -> Array:
        """Win rates against the mixture, [m]."""
        logits = self.eta * self.tau * references[0]
        weights = np.exp(logits - logits.max())
        rates: Array = matrix @ weights / weights.sum()
        return rates
