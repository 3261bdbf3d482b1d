r"""MNPO (arXiv:2509.23102), the time-dependent variant: INPO against the geometric mean of the last policies.

With :math:`\bar\pi_t = \prod_j \pi_{t-j}^{1/n}` over the last n policies, the update is
:math:`\pi_{t+1} \propto \pi_1^{\eta\tau}\, \bar\pi_t^{1-\eta\tau} \exp(\eta P(y \succ \pi_t))`. The loss is INPO's
(inpo.py), with :math:`\bar\pi_t` in place of :math:`\pi_t`; with one opponent it is exactly INPO's.

Requires responses with win rates, and the log-probabilities of the base policy and of the last policies. As in the
released code, all responses are drawn from :math:`\pi_t`, and the policies have equal weights. The paper's update
(Equation 11) uses the mean of the win rates against each opponent, which requires responses of each. The released code
regresses on a winner chosen by a reward model; this one regresses on win rates, which is equivalent (see inpo.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class MNPO(Regularised):
    """INPO against the geometric mean of several policies."""

    type: Literal["mnpo"] = "mnpo"
    opponents: int = Field(2, ge=1)
    """The number of last policies in the mean."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy, then the last policies from the newest to the oldest."""
        return (1, *(s for s in range(t, t - self.opponents, -1) if s >= 1))

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        base, opponents = responses.references[0], responses.references[1:].mean(0)
        share = self.eta * self.tau
        h = responses.log_ratio - share * base - (1 - share) * opponents
        return responses.pairwise(h - self.eta * responses.win_rate)
