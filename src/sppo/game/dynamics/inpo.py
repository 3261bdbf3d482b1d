r"""INPO: online mirror descent on the game regularised by a reference, learned from pairs.

Iterative Nash policy optimisation (arXiv:2407.00617):

.. math:: \pi_{t+1}(y) \propto \pi_{ref}(y)^{\eta\tau} \pi_t(y)^{1-\eta\tau} \exp(\eta P(y \succ \pi_t)).

As everywhere in this package, eta is the step size of the game; the paper's eta is its inverse. The last
iterate converges to the equilibrium regularised by tau if the step is small enough.

The loss with this minimiser
    INPO's own: the mean of :math:`(h(y_w, y_l) - \tfrac{\eta}{2})^2` over pairs :math:`y, y' \sim \pi_t` and the
    oracle's choice of a winner, where

    .. math:: h(y, y') = \log\frac{\pi(y)}{\pi(y')} - \eta\tau \log\frac{\pi_{ref}(y)}{\pi_{ref}(y')}
              - (1 - \eta\tau) \log\frac{\pi_t(y)}{\pi_t(y')}.

    The choice of a winner makes the mean target of a pair :math:`\eta (P(y \succ y') - \tfrac12)`, and the least-squares
    fit of pairwise targets by differences of one function is their mean over y',
    :math:`\eta P(y \succ \pi_t)`; no win rates need to be estimated. Only pairs of two independent draws from
    :math:`\pi_t` do this; other pairs have another minimiser on a game with cycles.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    geometric_mixture,
    multiplicative_step,
    require_mixture,
)
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, reference: Policy, *, eta: Parameter, tau: Parameter) -> Policy:
    """Take one step of mirror descent on the regularised game.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref.
        eta: step size, dimensionless (the inverse of the paper's eta).
        tau: weight of the relative entropy to the reference, win rate per nat; eta tau <= 1.
    """
    return multiplicative_step(geometric_mixture(policy, reference, eta * tau), payoff, policy, eta)


@dataclass(frozen=True)
class INPO:
    """Self-play by INPO; eta is the step size and tau the pull to the reference."""

    eta: Parameter
    tau: Parameter
    name: str = "INPO"

    def __post_init__(self) -> None:
        require_mixture(self.eta, self.tau)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference stays the same."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        return iterate.then(policy)
