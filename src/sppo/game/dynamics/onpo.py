r"""Optimistic multiplicative weights: count the last win rates twice and subtract those of the step before.

:math:`\pi_{t+1}(y) \propto \pi_t(y) \exp(\eta (2 P(y \succ \pi_t) - P(y \succ \pi_{t-1})))` (Rakhlin and
Sridharan, 2013; Daskalakis and Panageas, 2019, who show that the last iterate converges for a small
constant eta where the equilibrium is unique). The first step has no policy before it and is plain
multiplicative weights. Convergence can be slow on games whose winner plays some responses rarely.

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


def update(policy: Policy, payoff: Array, previous_win_rates: Array | None, *, eta: Parameter) -> Policy:
    r"""Take one step with the help of the win rates of the step before.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        previous_win_rates: [..., n] :math:`P(y \succ \pi_{t-1})`; None at the first step.
        eta: step size, dimensionless.
    """
    return _step(policy, expected_win_rates(payoff, policy), previous_win_rates, eta)


def _step(policy: Policy, win_rates: Array, previous: Array | None, eta: Parameter) -> Policy:
    return normalised(
        policy.log + column(eta) * (2 * win_rates - (win_rates if previous is None else previous))
    )


@dataclass(frozen=True)
class OptimisticMultiplicativeWeights:
    """Self-play by the optimistic update; eta is the step size."""

    eta: Parameter
    name: str = "optimistic multiplicative weights"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate, which remembers the win rates of this one."""
        win_rates = expected_win_rates(payoff, iterate.policy)
        policy = _step(iterate.policy, win_rates, iterate.win_rates_before, self.eta)
        return iterate.then(policy, win_rates_before=win_rates)
