r"""Proximal-point self-play on the regularised game, after Nash Prox (arXiv:2505.19731).

.. math:: \pi_{t+1}(y) \propto \pi_{ref}(y)^{\eta\tau}\, \pi_c(y)^{\eta\lambda}\, \pi_t(y)^{1-\eta(\tau+\lambda)}
          \exp(\eta P(y \succ \pi_t)),

where the centre :math:`\pi_c` moves to the policy after every `inner` steps. Between two moves the steps are INPO's on a game that is
regularised by :math:`\tau + \lambda`, for which a larger eta is stable; the moves take the additional pull out again, so the last
iterate converges to the equilibrium regularised by tau. With tau = 0 it would be COMAL.

The loss with this minimiser
    INPO's, with the two pulls in place of its one.

The equations follow from the paper's abstract, which is all of it that was available.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    geometric_mixture,
    multiplicative_step,
    normalised,
    require_mixture,
    require_positive,
)
from sppo.game.preference_games import Array, GameError


def update(
    policy: Policy,
    payoff: Array,
    reference: Policy,
    centre: Policy,
    *,
    eta: Parameter,
    tau: Parameter,
    proximal: Parameter,
) -> Policy:
    """Take one step of mirror descent on the game with both pulls.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref.
        centre: [..., n] pi_c.
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the reference, win rate per nat.
        proximal: weight of the relative entropy to the centre, win rate per nat; eta (tau + proximal) <= 1.
    """
    both = normalised(geometric_mixture(reference, centre, proximal / (tau + proximal)))
    return multiplicative_step(geometric_mixture(policy, both, eta * (tau + proximal)), payoff, policy, eta)


@dataclass(frozen=True)
class NashProx:
    """Proximal-point self-play.

    Attributes:
        eta: step size.
        tau: pull to the reference.
        proximal: pull to the centre.
        inner: number of steps before the centre moves to the policy.
    """

    eta: Parameter
    tau: Parameter
    proximal: Parameter
    inner: int = 20
    name: str = "Nash Prox"

    def __post_init__(self) -> None:
        require_positive(tau=self.tau, proximal=self.proximal)
        require_mixture(self.eta, self.tau + self.proximal)
        if self.inner < 1:
            raise GameError(
                f"inner = {self.inner} must be at least 1: the centre moves after that many steps."
            )

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference stays the same, and `earlier` holds the centre."""
        centre = iterate.earlier[0] if iterate.earlier else iterate.policy
        policy = update(
            iterate.policy,
            payoff,
            iterate.reference,
            centre,
            eta=self.eta,
            tau=self.tau,
            proximal=self.proximal,
        )
        return iterate.then(policy, earlier=(policy if iterate.number % self.inner == 0 else centre,))
