r"""ONPO (arXiv:2502.16852): optimistic mirror descent, which expects the next win rates to be like the last.

:math:`\pi_{t+1} \propto \hat\pi_{t+1} \exp(\eta r_t)` and :math:`\hat\pi_{t+1} \propto \hat\pi_t \exp(\eta r_t)` with
:math:`r_t = P(\cdot \succ \pi_t)`; without the auxiliary policy that is
:math:`\pi_{t+1} \propto \pi_t \exp(\eta(2 r_t - r_{t-1}))`, and plain mirror descent at the first step.

:math:`r_{t-1}` of a new response needs no comparison with the policy before: the steps that were made by it say what it
was. With :math:`D_s = \log\pi_{s+1} - \log\pi_s`, up to a constant a prompt, :math:`\eta r_1 = D_1` and
:math:`\eta r_s = (D_s + \eta r_{s-1})/2`. So the loss is least squares on the pairs of a prompt's responses with
:math:`\log\frac{\pi_\theta}{\pi_t}(y) + \eta r_{t-1}(y) - 2\eta\hat P(y \succ \pi_t)` in place of INPO's.

Needs: responses with win rates, and the log-probabilities of all policies so far. The paper keeps the auxiliary policy as
a second network; here it is eliminated, which is exact where each iteration reaches its minimum, and where it does not,
what is taken back is what the step in fact made of the win rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class ONPO(Algorithm):
    """Optimistic mirror descent: the last win rates count twice, those before them are taken back."""

    type: Literal["onpo"] = "onpo"
    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """All policies before pi_t: earlier win rates are read off the steps that they led to."""
        return tuple(range(1, t))

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over the pairs of each prompt, nats squared."""
        steps_from = [*responses.references, responses.log_ratio.new_zeros(responses.log_ratio.shape)]
        steps = [after - before for before, after in zip(steps_from, steps_from[1:], strict=False)]
        if not steps:
            return responses.pairwise(responses.log_ratio - self.eta * responses.win_rate)
        before = steps[0]
        for step in steps[1:]:
            before = (step + before) / 2
        return responses.pairwise(responses.log_ratio + before - 2 * self.eta * responses.win_rate)
