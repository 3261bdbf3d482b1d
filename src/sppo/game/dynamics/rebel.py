r"""REBEL: mirror descent on a reward, :math:`\pi_{t+1} \propto \pi_t \exp(\eta r)` (arXiv:2404.16767).

The reward is the Bradley-Terry fit to the comparisons of :math:`\pi_t`'s responses, or the win rate against :math:`\pi_t`. With the
fit the update is DPO self-play's with :math:`\beta = 1/\eta` (dpo.py), which reaches it from choices instead of a reward; with the
win rate it is multiplicative weights.

The loss with this minimiser
    REBEL's own: the mean of :math:`(\log\frac{\pi(y)}{\pi_t(y)} - \log\frac{\pi(y')}{\pi_t(y')} - \eta(r(y) - r(y')))^2` over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo.game.bradley_terry import fit_log_strength
from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    column,
    expected_win_rates,
    normalised,
    require_positive,
)
from sppo.game.preference_games import Array, GameError

Reward = Literal["bradley_terry", "win_rate"]


def update(policy: Policy, payoff: Array, *, eta: Parameter, reward: Reward = "bradley_terry") -> Policy:
    """Take one step of mirror descent.

    Args:
        policy: [..., n] pi_t, which writes both responses of a pair.
        payoff: [..., n, n] preference matrices.
        eta: step size, log-ratio per unit of reward.
        reward: what is climbed.

    Raises:
        ValueError: some responses win every comparison with the others, so that the Bradley-Terry fit is not finite.
    """
    if reward == "win_rate":
        return normalised(policy.log + column(eta) * expected_win_rates(payoff, policy))
    return normalised(policy.log + column(eta) * fit_log_strength(payoff, policy.probability))


@dataclass(frozen=True)
class REBEL:
    """Self-play by REBEL; eta is the step size."""

    eta: Parameter
    reward: Reward = "bradley_terry"
    name: str = "REBEL"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)
        if self.reward not in ("bradley_terry", "win_rate"):
            raise GameError(f"reward = {self.reward!r}; choose 'bradley_terry' or 'win_rate'.")

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference is not used."""
        return iterate.then(update(iterate.policy, payoff, eta=self.eta, reward=self.reward))
