r"""DNO (arXiv:2404.03715): the log-loss of the win rates' differences, in place of SPPO's squares.

With :math:`z = \tfrac1\eta(\log\frac{\pi_\theta(y)}{\pi_t(y)} - \log\frac{\pi_\theta(y')}{\pi_t(y')})` and
:math:`q = \sigma(\hat P(y \succ \pi_t) - \hat P(y' \succ \pi_t))`, the loss is the mean of

.. math:: -q \log\sigma(z) - (1 - q) \log\sigma(-z)

over the pairs of a prompt's responses. It is least where every z is the difference of the two win rates, which is
:math:`\pi_{t+1} \propto \pi_t \exp(\eta P(\cdot \succ \pi_t))`: multiplicative weights, without a log-partition.

Requires responses with win rates. eta is the step size of the game as in SPPO; the paper's eta is its inverse. The paper's
practical variant, DNO-Prct, is iterative DPO on pairs with a large margin, among them responses of a stronger model; it
is not this loss, and `dpo` with `selection: best_worst` is the part of it that needs no other model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class DNO(Algorithm):
    """The log-loss of the differences of win rates."""

    type: Literal["dno"] = "dno"
    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats; 0 for a prompt with one response."""
        import torch
        from torch.nn import functional

        def differences(value: Float[Tensor, " responses"]) -> Float[Tensor, "responses responses"]:
            return value[:, None] - value[None, :]

        z, q = differences(responses.log_ratio / self.eta), differences(responses.win_rate).sigmoid()
        pairs = responses.prompt[:, None] == responses.prompt[None, :]
        pairs = pairs & ~torch.eye(len(responses.prompt), dtype=torch.bool, device=pairs.device)
        losses = torch.where(pairs, functional.softplus(z) - q * z, 0.0).sum(dim=1)
        return responses.by_prompt(losses / pairs.sum(dim=1).clamp(min=1), mean=True)
