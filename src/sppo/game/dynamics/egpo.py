r"""EGPO: take a trial step, then step from the original policy by the win rates against the trial policy.

Extragradient preference optimisation (arXiv:2503.08942), on the game regularised by a reference:

.. math:: \pi_{t+1/2} &\propto \pi_t^{1-\eta\tau} \pi_{ref}^{\eta\tau} \exp(\eta P(\cdot \succ \pi_t)) \\
          \pi_{t+1} &\propto \pi_t^{1-\eta\tau} \pi_{ref}^{\eta\tau} \exp(\eta P(\cdot \succ \pi_{t+1/2})).

tau is the paper's beta. With a constant step, the last iterate converges linearly to the equilibrium
regularised by tau; a small tau brings that equilibrium close to a von Neumann winner. tau = 0 is allowed and
gives plain entropic extragradient (Korpelevich, 1976; Nemirovski's mirror-prox, 2004).

The loss with this minimiser
    The difference form of INPO's loss, twice: first against :math:`\pi_t`, then with the win rates against the
    half-way policy but the log-ratios still to :math:`\pi_t` and :math:`\pi_{ref}`. For each of the two, the
    paper takes one gradient step of an online IPO loss on uniformly drawn pairs, which has the same effect on
    logits.
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
    require_mixture,
    require_positive,
)
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, reference: Policy, *, eta: Parameter, tau: Parameter) -> Policy:
    """Take one step, which computes win rates twice.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref.
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the reference, win rate per nat; eta tau <= 1.
    """
    base = geometric_mixture(policy, reference, eta * tau)
    ahead = multiplicative_step(base, payoff, policy, eta)
    return multiplicative_step(base, payoff, ahead, eta)


@dataclass(frozen=True)
class Extragradient:
    """Self-play by EGPO; eta is the step size, and tau the pull to the reference, which may be 0."""

    eta: Parameter
    tau: Parameter
    name: str = "extragradient (EGPO)"

    def __post_init__(self) -> None:
        if np.all(np.asarray(self.tau) == 0):
            require_positive(eta=self.eta)
        else:
            require_mixture(self.eta, self.tau)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference stays the same."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        return iterate.then(policy)
