r"""RSPO as its authors released it (github.com/xiaohangt/RSPO): SPPO's least squares with penalties on the log-probabilities.

On the best and the worst response, with :math:`l = \log\frac{\pi_\theta}{\pi_t}`, :math:`d = \log\frac{\pi_\theta}{\pi_1}` and
:math:`e = \min(d, R)`, the loss is

.. math:: \tfrac12 \sum_y (l(y) - \eta(\hat P(y \succ \pi_t) - \tfrac12))^2 + \sum_y \left(c_r d^2 + c_f e^{\min(-d, R)}
          + c_\chi e^{e} + c_s \frac{e^{e}}{1 + e^{e}} + c_h \log^2\pi_\theta\right).

The released code has one of the penalties at a time, or the sum of the first two, with one coefficient; here each has its
own. Its R is 10 or 5. Of m responses, the mean of the squares and twice the mean of the penalties are taken, which are these sums
where m = 2.

These are not divergences in their pointwise form, as in `rspo` (rspo.py): their gradients are those of divergences where
:math:`\pi_\theta = \pi_t`, and up to a factor. There :math:`c_r d^2` has the gradient of `rspo`'s reverse KL with
:math:`\lambda_r = 4 c_r`, for :math:`\pi_t = \pi_1` or not. Away from it they carry no importance weights: the quadratic pulls
evenly and cannot overflow, while `rspo` stays an estimate of the divergence. Two of the released variants are left out: the
maximum likelihood of responses of the base policy, which needs such responses, and the product of the two log-probabilities.

Requires responses with win rates, and the base policy's log-probabilities.
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


class RSPOReleased(Algorithm):
    """SPPO's least squares with the penalties of RSPO's released code."""

    type: Literal["rspo_released"] = "rspo_released"
    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""
    reverse_kl: float = Field(0.1, ge=0)
    """Coefficient of d^2, with d the log-ratio to the base policy."""
    forward_kl: float = Field(0.0, ge=0)
    """Coefficient of exp(min(-d, R))."""
    chi_squared: float = Field(0.0, ge=0)
    """Coefficient of exp(min(d, R))."""
    chi_squared_smoothed: float = Field(0.0, ge=0)
    """Coefficient of w / (1 + w), with w = exp(min(d, R))."""
    entropy: float = Field(0.0, ge=0)
    """Coefficient of the square of the log-probability itself."""
    largest_exponent: float = Field(10.0, gt=0, le=80)
    """R in nats, beyond which an exponential has no gradient."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy."""
        return (1,)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean of the squares and twice the mean of the penalties, which are the released sums for two responses."""
        from sppo import objectives

        ratio = responses.log_ratio
        squares = objectives.sppo(ratio, responses.win_rate, eta=self.eta)
        to_base = ratio - responses.references[0]
        weight = to_base.clamp(max=self.largest_exponent).exp()
        penalties = (
            self.reverse_kl * to_base**2
            + self.forward_kl * (-to_base).clamp(max=self.largest_exponent).exp()
            + self.chi_squared * weight
            + self.chi_squared_smoothed * weight / (1 + weight)
            + self.entropy * (ratio + responses.opponent) ** 2
        )
        return responses.by_prompt(squares + 2 * penalties, mean=True)

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The targets of the least squares, eta (P^ - 1/2), from which the penalties pull away."""
        return self.eta * (responses.win_rate - 0.5)

    def compute_log_partition(self, win_rates: Array) -> float:
        """The value eta/2, as in SPPO's loss."""
        return self.eta / 2
