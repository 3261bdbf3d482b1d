r"""Optimistic multiplicative weights: count the last win rates twice, and take back those before.

:math:`\pi_{t+1}(y) \propto \pi_t(y) \exp(\eta (2 P(y \succ \pi_t) - P(y \succ \pi_{t-1})))` (Rakhlin and
Sridharan, 2013; Daskalakis and Panageas, 2019, who show that the last iterate converges for a small
constant eta where the equilibrium is unique). The first step, with no policy before it, is plain
multiplicative weights. On games whose winner plays some responses rarely the convergence can be slow.

The loss with this minimiser
    The difference form of multiplicative_weights.py with :math:`2 P(y \succ \pi_t) - P(y \succ \pi_{t-1})` in
    place of :math:`P(y \succ \pi_t)`: the targets need the win rates of two iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    column,
    expected_win_rates,
    normalised,
    require_positive,
)
from sppo.game.preference_games import Array

__all__ = ["OptimisticMultiplicativeWeights", "update"]


def update(policy: Policy, payoff: Array, previous_win_rates: Array | None, *, eta: Parameter) -> Policy:
    r"""One step with the win rates of the step before.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        previous_win_rates: [..., n] :math:`P(y \succ \pi_{t-1})`; None at the first step.
        eta: step size, dimensionless.
    """
    win_rates = expected_win_rates(payoff, policy)
    ahead = win_rates if previous_win_rates is None else 2 * win_rates - previous_win_rates
    return normalised(policy.log + column(eta) * ahead)


@dataclass(frozen=True)
class OptimisticMultiplicativeWeights:
    """Self-play by the optimistic update; eta is the step size."""

    eta: Parameter
    name: str = "optimistic multiplicative weights"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Next iterate, which remembers this one's win rates."""
        win_rates = expected_win_rates(payoff, iterate.policy)
        before = win_rates if iterate.remembered is None else iterate.remembered
        policy = normalised(iterate.policy.log + column(self.eta) * (2 * win_rates - before))
        return iterate.then(policy, remembered=win_rates)
