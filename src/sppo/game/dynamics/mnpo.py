r"""MNPO, time-dependent: mirror descent from the geometric mean of the last policies.

Multiplayer Nash preference optimisation (arXiv:2509.23102), in the form of its released code, which weights the
last n policies equally:

.. math:: \pi_{t+1}(y) \propto \pi_{ref}(y)^{\eta\tau} \prod_{j<n} \pi_{t-j}(y)^{(1-\eta\tau)/n}
          \exp(\eta P(y \succ \pi_t)).

The paper's update (Equation 11) takes the mean of the win rates against each of the n policies. With n = 1 this
is INPO.

The loss with this minimiser
    INPO's, with the geometric mean in place of :math:`\pi_t` in its log-ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    geometric_mixture,
    multiplicative_step,
    normalised,
    require_mixture,
)
from sppo.game.preference_games import Array, GameError


def update(
    policy: Policy,
    payoff: Array,
    reference: Policy,
    opponents: Sequence[Policy],
    *,
    eta: Parameter,
    tau: Parameter,
) -> Policy:
    """Take one step.

    Args:
        policy: [..., n] pi_t, the opponent of the win rates.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref.
        opponents: the policies in the geometric mean, including pi_t.
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the reference, win rate per nat; eta tau <= 1.
    """
    mean = normalised(sum((opponent.log for opponent in opponents[1:]), opponents[0].log) / len(opponents))
    return multiplicative_step(geometric_mixture(mean, reference, eta * tau), payoff, policy, eta)


@dataclass(frozen=True)
class MNPO:
    """Self-play by MNPO.

    Attributes:
        eta: step size.
        tau: weight of the relative entropy to the reference, win rate per nat.
        opponents: number of last policies in the geometric mean.
    """

    eta: Parameter
    tau: Parameter
    opponents: int = 2
    name: str = "MNPO"

    def __post_init__(self) -> None:
        require_mixture(self.eta, self.tau)
        if self.opponents < 1:
            raise GameError(
                f"opponents = {self.opponents} must be at least 1: the last policy always counts."
            )

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate, which remembers the last policies."""
        last = (iterate.policy, *iterate.earlier)[: self.opponents]
        policy = update(iterate.policy, payoff, iterate.reference, last, eta=self.eta, tau=self.tau)
        return iterate.then(policy, earlier=last)
