r"""IPO self-play: what identity preference optimisation does when it is iterated.

A general theoretical paradigm to understand learning from human preferences (arXiv:2310.12036): the
population loss over pairs :math:`y, y' \sim \pi_t` with the oracle's choice of a winner,

.. math:: E\left(\log\frac{\pi(y_w)}{\pi_{ref}(y_w)} - \log\frac{\pi(y_l)}{\pi_{ref}(y_l)}
          - \frac{1}{2\tau}\right)^2

has the minimiser :math:`\pi_{t+1}(y) \propto \pi_{ref}(y) \exp(P(y \succ \pi_t)/\tau)`. So

- with the opponent as the reference (`reference="opponent"`), IPO self-play **is** multiplicative weights
  with eta = 1/tau: it differs from SPPO only in that it learns from chosen pairs and not from win rates;
- with the first policy as the reference throughout (`reference="first"`), it is the smoothed best response to
  the last policy, which never settles on a cycle if tau is small.

Real pipelines train on the best and the worst of K responses. Those are other pairs, with another minimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    column,
    expected_win_rates,
    normalised,
    require_positive,
    require_reference,
)
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, reference: Policy, *, tau: Parameter) -> Policy:
    """Return the minimiser of IPO's population loss on pairs of the policy's own responses.

    Args:
        policy: [..., n] pi_t, which writes both responses of a pair.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref, the denominator of the log-ratios.
        tau: regularisation, win rate per nat (the paper's tau).
    """
    return normalised(reference.log + expected_win_rates(payoff, policy) / column(tau))


@dataclass(frozen=True)
class IPOSelfPlay:
    """Iterated IPO; the reference of the loss is either the opponent or the first reference."""

    tau: Parameter
    reference: Literal["opponent", "first"] = "opponent"
    name: str = "IPO self-play"

    def __post_init__(self) -> None:
        require_positive(tau=self.tau)
        require_reference(self.reference)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate."""
        reference = iterate.policy if self.reference == "opponent" else iterate.reference
        policy = update(iterate.policy, payoff, reference, tau=self.tau)
        return iterate.then(policy)
