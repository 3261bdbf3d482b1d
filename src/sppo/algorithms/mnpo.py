r"""MNPO (arXiv:2509.23102), time-dependent: INPO against the geometric mean of the last policies.

With :math:`\bar\pi_t = \prod_j \pi_{t-j}^{1/n}` over the last n policies,
:math:`\pi_{t+1} \propto \pi_1^{\eta\tau}\, \bar\pi_t^{1-\eta\tau} \exp(\eta P(y \succ \pi_t))`, by INPO's loss
(inpo.py) with :math:`\bar\pi_t` in place of :math:`\pi_t`; one opponent is INPO.

Needs: responses with win rates, and the log-probabilities of the base and of the last policies. As in the released code
the responses are all drawn from :math:`\pi_t` and the weights of the policies are equal; the paper's update
(Equation 11) has the mean of the win rates against each opponent, which needs responses of each. The code regresses on the
choice of a winner by a reward model; here on win rates (inpo.py says why that is the same).
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
    opponents: int = Field(2, ge=1, description="how many of the last policies stand in the mean")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy, then the last policies, the newest first."""
        return (1, *(s for s in range(t, t - self.opponents, -1) if s >= 1))

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        base, opponents = responses.references[0], responses.references[1:].mean(0)
        share = self.eta * self.tau
        h = responses.log_ratio - share * base - (1 - share) * opponents
        return responses.pairwise(h - self.eta * responses.win_rate)
