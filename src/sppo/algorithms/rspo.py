r"""RSPO (arXiv:2503.00030): SPPO's loss plus a divergence from the base policy.

The loss is :math:`E_{y\sim\pi_t}(\log\frac{\pi_\theta(y|x)}{\pi_t(y|x)} - \eta(\hat P(y\succ\pi_t|x) - \tfrac12))^2 +
\lambda_f KL(\pi_1 \| \pi_\theta) + \lambda_r KL(\pi_\theta \| \pi_1)`, with the forward KL, the reverse KL, or both. With
the reverse KL alone, the fixed point is the equilibrium of the game regularised with :math:`\tau = \lambda_r / (2\eta)`.

Requires responses with win rates, and the base policy's log-probabilities. The divergences are estimated on the same
responses of :math:`\pi_t` with importance weights, in their pointwise form: with :math:`u = \pi_\theta/\pi_t` and
:math:`v = \pi_1/\pi_t`, they are :math:`u \log\frac uv - u + v` and :math:`v \log\frac vu - v + u`. The added terms -u + v and
-v + u have mean 0, and make the contribution of each response non-negative, with its minimum at
:math:`\pi_\theta = \pi_1`. A response that is many nats more probable under the base policy or under :math:`\pi_\theta` than
under :math:`\pi_t` would dominate the estimate, so both weights stop growing at :math:`e^5`: beyond a log-ratio of 5 nats the
gradient has the same sign and grows with the log-ratio, not with its exponential.

The authors' released code estimates the divergences in another way, which is `rspo_released` (rspo_released.py).
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


LARGEST_LOG_RATIO = 5.0
"""The log-ratio in nats beyond which an importance weight stops growing."""


def importance_weight(log_ratio: Float[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    """The exponential of a log-ratio in nats, which stops growing at :data:`LARGEST_LOG_RATIO`."""
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()


def forward_kl(
    ratio: Float[Tensor, " responses"], base: Float[Tensor, " responses"]
) -> Float[Tensor, " responses"]:
    """The pointwise KL(pi_1 || pi) on responses of pi_t; its derivative by the log-ratio is u - v, each at most e^5.

    Args:
        ratio: log pi - log pi_t, nats.
        base: log pi_1 - log pi_t, nats.
    """
    near = ratio.clamp(max=LARGEST_LOG_RATIO)
    policy_weight, base_weight = importance_weight(ratio), importance_weight(base)
    return base_weight * (base - ratio) - base_weight + policy_weight * (1 + ratio - near)


def reverse_kl(
    ratio: Float[Tensor, " responses"], base: Float[Tensor, " responses"]
) -> Float[Tensor, " responses"]:
    """The pointwise KL(pi || pi_1) on responses of pi_t; its derivative by the log-ratio is u (ratio - base), u at most e^5.

    Args:
        ratio: log pi - log pi_t, nats.
        base: log pi_1 - log pi_t, nats.
    """
    near = ratio.clamp(max=LARGEST_LOG_RATIO)
    policy_weight, base_weight = importance_weight(ratio), importance_weight(base)
    beyond = ((ratio - base) ** 2 - (near - base) ** 2) / 2  # 0 within 5 nats
    return policy_weight * (near - base) - policy_weight + base_weight + policy_weight.detach() * beyond


class RSPO(Algorithm):
    """SPPO's least squares plus a divergence from the base policy."""

    type: Literal["rspo"] = "rspo"
    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""
    forward_kl: float = Field(0.1, ge=0)
    """Weight of KL(base || pi), in nats squared per nat."""
    reverse_kl: float = Field(0.1, ge=0)
    """Weight of KL(pi || base), in nats squared per nat."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over each prompt's responses, in nats squared."""
        from sppo import objectives

        ratio, base = responses.log_ratio, responses.references[0]
        losses = objectives.sppo(ratio, responses.win_rate, eta=self.eta)
        if self.forward_kl:
            losses = losses + self.forward_kl * forward_kl(ratio, base)
        if self.reverse_kl:
            losses = losses + self.reverse_kl * reverse_kl(ratio, base)
        return responses.by_prompt(losses, mean=True)

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The targets of the least squares, eta (P^ - 1/2), from which the divergences pull away."""
        return self.eta * (responses.win_rate - 0.5)

    def compute_log_partition(self, win_rates: Array) -> float:
        """The value eta/2, as in SPPO's loss."""
        return self.eta / 2
