r"""EGPO: look one step ahead, then step from where you stood by what you saw there.

Extragradient preference optimisation (arXiv:2503.08942), on the game regularised by a reference:

.. math:: \pi_{t+1/2} &\propto \pi_t^{1-\eta\tau} \pi_{ref}^{\eta\tau} \exp(\eta P(\cdot \succ \pi_t)) \\
          \pi_{t+1} &\propto \pi_t^{1-\eta\tau} \pi_{ref}^{\eta\tau} \exp(\eta P(\cdot \succ \pi_{t+1/2})).

tau is the paper's beta. The last iterate converges linearly to the equilibrium regularised by tau, with a
constant step; a small tau brings that equilibrium close to a von Neumann winner. tau = 0 is allowed and
gives plain entropic extragradient (Korpelevich, 1976; Nemirovski's mirror-prox, 2004).

The loss with this minimiser
    Twice INPO's difference form: first against :math:`\pi_t`, then with the win rates against the half-way
    policy but the log-ratios still to :math:`\pi_t` and :math:`\pi_{ref}`. The paper takes one gradient
    step of an online IPO loss on uniformly drawn pairs for each, which on logits has the same effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    column,
    expected_win_rates,
    geometric_mixture,
    normalised,
    require_mixture,
    require_positive,
)
from sppo.game.preference_games import Array

__all__ = ["Extragradient", "update"]


def update(policy: Policy, payoff: Array, reference: Policy, *, eta: Parameter, tau: Parameter) -> Policy:
    """One step: two win-rate evaluations.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref.
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the reference, win rate per nat; eta tau <= 1.
    """
    base = geometric_mixture(policy, reference, eta * tau)
    ahead = normalised(base + column(eta) * expected_win_rates(payoff, policy))
    return normalised(base + column(eta) * expected_win_rates(payoff, ahead))


@dataclass(frozen=True)
class Extragradient:
    """Self-play by EGPO; eta is the step size, tau the pull to the reference, 0 for none."""

    eta: Parameter
    tau: Parameter
    name: str = "extragradient (EGPO)"

    def __post_init__(self) -> None:
        if np.all(np.asarray(self.tau) == 0):
            require_positive(eta=self.eta)
        else:
            require_mixture(self.eta, self.tau)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Next iterate; the reference stays."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        return iterate.then(policy)
