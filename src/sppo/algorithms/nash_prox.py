r"""Proximal-point self-play on the regularised game, after Nash Prox (arXiv:2505.19731).

Self-play steps on a regularised game (INPO's, inpo.py) are stable only if they are small compared to tau. A second pull, towards a
centre :math:`\pi_c` that moves to the policy after every `inner` iterations, makes the game in between as regularised as one likes:

.. math:: \pi_{t+1} \propto \pi_1^{\eta\tau}\, \pi_c^{\eta\lambda}\, \pi_t^{1-\eta(\tau+\lambda)} \exp(\eta P(y \succ \pi_t)).

It leaves the solution where it is: where :math:`\pi_t = \pi_c` the second pull is nothing, so the fixed point is the equilibrium of
the game that is regularised towards the base by tau alone. COMAL (comal.py) is the case without the first pull.

Requires responses with win rates, and the log-probabilities of the base policy and the centre. The paper's abstract alone was
available: self-play policy gradients that equal online IPO, embedded in a proximal-point method. The equations here follow from
that and are not the paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from sppo.algorithms.regularised import Regularised

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses


class NashProx(Regularised):
    """Mirror descent on the regularised game, with a further pull towards a centre that follows the policy."""

    type: Literal["nash_prox"] = "nash_prox"
    proximal: float = Field(3e-4, gt=0)
    """Pull towards the centre, in win rate per nat; eta (tau + proximal) is at most 1."""
    inner: int = Field(2, ge=1)
    """Iterations before the centre moves to the policy."""

    @model_validator(mode="after")
    def _share_of_both_is_at_most_one(self) -> NashProx:
        if self.eta * (self.tau + self.proximal) > 1:
            raise ValueError(
                f"proximal: {self.proximal:g}, but eta (tau + proximal) = {self.eta * (self.tau + self.proximal):g} is the share"
                f" of the base policy and the centre in pi_{{t+1}}, which is at most 1; lower it to {1 / self.eta - self.tau:g} or less"
            )
        return self

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base policy, then the centre."""
        return (1, t - (t - 1) % self.inner)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The mean over the pairs of each prompt, in nats squared."""
        base, centre = responses.references
        h = responses.log_ratio - self.eta * (self.tau * base + self.proximal * centre)
        return responses.pairwise(h - self.eta * responses.win_rate)
