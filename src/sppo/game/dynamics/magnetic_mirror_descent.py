r"""Magnetic mirror descent: a proximal step with a pull to a magnet.

A unified approach to reinforcement learning, quantal response equilibria, and two-player zero-sum games
(arXiv:2206.05825), with the entropy as mirror map:

.. math:: \pi_{t+1} = \arg\max_\pi \eta (P(\pi \succ \pi_t) - \tau KL(\pi \| \rho)) - KL(\pi \| \pi_t)
          \propto (\pi_t\, \rho^{\eta\tau} e^{\eta P(\cdot \succ \pi_t)})^{1/(1+\eta\tau)}.

tau is the paper's alpha. With a fixed magnet the last iterate converges linearly to the equilibrium
regularised by tau, for :math:`\eta \le \tau / L^2` (L the largest margin, at most 1/2 here). With a moving
magnet, :math:`\rho_{t+1} \propto \rho_t^{1-\gamma} \pi_t^{\gamma}` as in the authors' code, the
regularisation wears off and the policy approaches the von Neumann winner itself; that part of the paper is
empirical.

The loss with this minimiser
    The difference form of multiplicative_weights.py with the target
    :math:`\eta P(y \succ \pi_t)/(1+\eta\tau)` and the reference
    :math:`(\pi_t \rho^{\eta\tau})^{1/(1+\eta\tau)}` in the log-ratio. With the step
    :math:`\eta' = \eta/(1+\eta\tau)` this is INPO's loss: the two are the same method, written with different
    step sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    geometric_mixture,
    multiplicative_step,
    normalised,
    require_positive,
)
from sppo.game.preference_games import Array, GameError


def update(policy: Policy, payoff: Array, magnet: Policy, *, eta: Parameter, tau: Parameter) -> Policy:
    """Take one step towards the better responses and the magnet.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        magnet: [..., n] rho.
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the magnet (the paper's alpha), win rate per nat.
    """
    pull = eta * tau / (1 + eta * tau)
    return multiplicative_step(geometric_mixture(policy, magnet, pull), payoff, policy, eta / (1 + eta * tau))


@dataclass(frozen=True)
class MagneticMirrorDescent:
    """Self-play by magnetic mirror descent.

    Attributes:
        eta: step size.
        tau: weight of the relative entropy to the magnet, which starts as the reference.
        magnet_rate: gamma, the share of the way to the policy that the magnet moves in each step; 0 keeps the
            magnet where it is.
    """

    eta: Parameter
    tau: Parameter
    magnet_rate: float = 0.0
    name: str = "magnetic mirror descent"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta, tau=self.tau)
        if not 0 <= self.magnet_rate <= 1:
            raise GameError(f"magnet_rate = {self.magnet_rate} must be in [0, 1].")

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate, whose reference is the moved magnet."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        magnet = iterate.reference
        if self.magnet_rate:
            magnet = normalised(np.asarray(geometric_mixture(magnet, iterate.policy, self.magnet_rate)))
        return iterate.then(policy, reference=magnet)
