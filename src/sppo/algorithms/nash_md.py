r"""Nash-MD (arXiv:2312.00886): mirror descent from, and against, the mixture of the policy and the base policy.

With the mixture :math:`\pi_t^\mu \propto \pi_t^{1-\eta\tau} \pi_1^{\eta\tau}`, the update is
:math:`\pi_{t+1} \propto \pi_t^\mu \exp(\eta P(y \succ \pi_t^\mu))`. It is found by INPO's least squares (inpo.py), with
the win rates against the mixture.

Requires all K responses with their comparisons, and the base policy's log-probabilities. The paper samples the opponent's
responses from the mixture, token by token, and takes policy-gradient steps. Here the K responses of :math:`\pi_t` represent
the mixture with weights :math:`\propto (\pi_1/\pi_t)^{\eta\tau}` (self-normalised importance sampling). This is exact in the
limit of large K, but as the policy moves away from the base policy, the estimate depends on fewer and fewer of the
responses: with eta tau = 0.3 and log-ratios that vary by 5 nats, one response can have e^1.5 times the weight of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from sppo.algorithms.inpo import INPO

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class NashMD(INPO):
    """Mirror descent from, and against, the mixture of the policy and the base policy."""

    all_responses: ClassVar[bool] = True

    type: Literal["nash_md"] = "nash_md"  # type: ignore[assignment]

    def payoffs(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The win rates against the mixture."""
        return responses.reward

    def rewards(self, matrix: Array, references: Array) -> Array:
        """The win rate of each response against the mixture, [m]."""
        logits = self.eta * self.tau * references[0]
        weights = np.exp(logits - logits.max())  # the maximum cancels in the ratio and prevents overflow
        rates: Array = matrix @ weights / weights.sum()
        return rates
