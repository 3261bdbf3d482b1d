r"""INPO (arXiv:2407.00617): mirror descent on the game that is regularised towards the base policy.

The update :math:`\pi_{t+1} \propto \pi_1^{\eta\tau}\, \pi_t^{1-\eta\tau} \exp(\eta P(y \succ \pi_t))` is found by least
squares on the pairs of a prompt's responses. With :math:`h(y) = \log\pi_\theta(y|x) - \eta\tau\log\pi_1(y|x) -
(1-\eta\tau)\log\pi_t(y|x)`, the loss is the mean of

.. math:: \left(h(y) - h(y') - \eta(\hat P(y \succ \pi_t) - \hat P(y' \succ \pi_t))\right)^2.

Requires responses with win rates, and the base policy's log-probabilities. eta is the step size of the game (the eta of
the paper and the released code is its inverse), and tau is the strength of the pull towards the base policy. The paper
regresses on a winner that is drawn from the oracle's preference, with the target eta/2. On all pairs of :math:`\pi_t`'s
responses this has the same minimiser, because only the mean of the targets over y' matters (sppo.game.dynamics.inpo), and
without drawing a winner the targets have no noise. On the best and the worst response alone (`selection: best_worst`),
neither form is unbiased if preferences are intransitive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class INPO(Regularised):
    """Mirror descent on the game that is regularised towards the base policy."""

    type: Literal["inpo"] = "inpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        # h up to a constant per prompt, which cancels in the differences: all log-probabilities are relative to pi_t.
        h = responses.log_ratio - self.eta * self.tau * responses.references[0]
        return responses.pairwise(h - self.eta * self.payoffs(responses))

    def payoffs(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The win rates that the step follows: those against pi_t."""
        return responses.win_rate
