r"""ONPO (arXiv:2502.16852): optimistic mirror descent, which predicts that the next win rates equal the last ones.

The update is :math:`\pi_{t+1} \propto \hat\pi_{t+1} \exp(\eta r_t)` with the auxiliary policy
:math:`\hat\pi_{t+1} \propto \hat\pi_t \exp(\eta r_t)` and :math:`r_t = P(\cdot \succ \pi_t)`. Eliminating the auxiliary policy
gives :math:`\pi_{t+1} \propto \pi_t \exp(\eta(2 r_t - r_{t-1}))`; the first step is plain mirror descent.

The value :math:`r_{t-1}` of a new response needs no comparison with the previous policy, because it can be read off the
earlier updates. With :math:`D_s = \log\pi_{s+1} - \log\pi_s`, and up to a constant per prompt, :math:`\eta r_1 = D_1` and
:math:`\eta r_s = (D_s + \eta r_{s-1})/2`. So the loss is least squares on the pairs of a prompt's responses, with
:math:`\log\frac{\pi_\theta}{\pi_t}(y) + \eta r_{t-1}(y) - 2\eta\hat P(y \succ \pi_t)` in place of INPO's expression.

Requires responses with win rates, and the log-probabilities of all policies so far. The paper keeps the auxiliary policy
as a second network. Eliminating it is exact if each iteration reaches its minimum; otherwise, the term that is subtracted
is the effect that the win rates actually had on the previous step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class ONPO(Algorithm):
    """Optimistic mirror descent: the last win rates count twice, and the previous ones are subtracted."""

    type: Literal["onpo"] = "onpo"
    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """All policies before pi_t, whose updates reveal the earlier win rates."""
        return tuple(range(1, t))

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        import torch

        # log pi_1, ..., log pi_t, all relative to log pi_t: the last of them is 0.
        policies = [*responses.references, torch.zeros_like(responses.log_ratio)]
        steps = [after - before for before, after in pairwise(policies)]
        if not steps:
            return responses.pairwise(responses.log_ratio - self.eta * responses.win_rate)
        previous = steps[0]  # eta r_1, then eta r_2, ..., up to eta r_{t-1}
        for step in steps[1:]:
            previous = (step + previous) / 2
        return responses.pairwise(responses.log_ratio + previous - 2 * self.eta * responses.win_rate)
