r"""RSPO (arXiv:2503.00030): SPPO's loss and a divergence from the base policy.

:math:`E_{y\sim\pi_t}(\log\frac{\pi_\theta(y|x)}{\pi_t(y|x)} - \eta(\hat P(y\succ\pi_t|x) - \tfrac12))^2 +
\lambda_f KL(\pi_1 \| \pi_\theta) + \lambda_r KL(\pi_\theta \| \pi_1)`: forward KL, reverse KL, or both. The fixed
point of reverse KL alone is the equilibrium of the game regularised by :math:`\tau = \lambda_r / (2\eta)`.

Needs: responses with win rates, and the base's log-probabilities. The divergences are estimated over the same responses of
:math:`\pi_t`, with importance weights, in their pointwise form: with :math:`u = \pi_\theta/\pi_t` and
:math:`v = \pi_1/\pi_t`, :math:`u \log\frac uv - u + v` and :math:`v \log\frac vu - v + u`. The added terms have mean 0, and
make each response's share non-negative and least where :math:`\pi_\theta = \pi_1`. A response that the base or the
policy thinks many nats more probable than :math:`\pi_t` dominates the estimate. How the paper estimates them was not to be
found in a source at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class RSPO(Algorithm):
    """SPPO's least squares and a divergence from the base policy."""

    type: Literal["rspo"] = "rspo"
    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")
    forward_kl: float = Field(0.1, ge=0, description="weight of KL(base || pi), nats squared per nat")
    reverse_kl: float = Field(0.1, ge=0, description="weight of KL(pi || base), nats squared per nat")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Mean over each prompt's responses, nats squared."""
        from sppo import objectives

        ratio, base = responses.log_ratio, responses.references[0]
        losses = objectives.sppo(ratio, responses.win_rate, eta=self.eta)
        policy_weight, base_weight = ratio.exp(), base.exp()
        if self.forward_kl:
            losses = losses + self.forward_kl * (base_weight * (base - ratio) - base_weight + policy_weight)
        if self.reverse_kl:
            losses = losses + self.reverse_kl * (policy_weight * (ratio - base) - policy_weight + base_weight)
        return responses.by_prompt(losses, mean=True)

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The targets of the least squares, eta (P^ - 1/2); the divergences pull away from them."""
        return self.eta * (responses.win_rate - 0.5)

    def compute_log_partition(self, win_rates: Array) -> float:
        """eta/2, as in SPPO's loss."""
        return self.eta / 2
