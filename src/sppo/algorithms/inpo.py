r"""INPO (arXiv:2407.00617): mirror descent on the game that the base policy regularises.

:math:`\pi_{t+1} \propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(y \succ \pi_t))`, by least squares on
the pairs of a prompt's responses: with :math:`h(y) = \log\pi_\theta(y|x) - \eta\tau\log\pi_1(y|x) -
(1-\eta\tau)\log\pi_t(y|x)`, the mean of

.. math:: \left(h(y) - h(y') - \eta(\hat P(y \succ \pi_t) - \hat P(y' \succ \pi_t))\right)^2.

Needs: responses with win rates, and the base's log-probabilities. eta is the step size of the game (the paper's and the
released code's eta is its inverse) and tau the pull to the base. The paper regresses on the oracle's choice of a winner,
with the target eta/2: on all pairs of :math:`\pi_t`'s responses that has the same minimiser, since only the mean of the
targets over y' counts (sppo.game.dynamics.inpo), and here nothing is drawn. On the best and the worst alone
(`selection: best_worst`) neither form is unbiased where preferences go in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class INPO(Regularised):
    """Mirror descent on the game that the base policy regularises."""

    type: Literal["inpo"] = "inpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        h = responses.log_ratio - self.eta * self.tau * responses.references[0]
        return responses.pairwise(h - self.eta * responses.win_rate)
