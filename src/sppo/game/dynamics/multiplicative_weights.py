r"""Multiplicative weights: the update that SPPO approximates.

SPPO (arXiv:2405.00675), equation 4.1, after Freund and Schapire (1999):
:math:`\pi_{t+1}(y) \propto \pi_t(y) \exp(\eta P(y \succ \pi_t))`. From the uniform policy, with
:math:`\eta = \sqrt{8 \ln n / T}`, the average of the first T policies is exploitable by at most
:math:`\sqrt{\ln n / (2T)}` (Theorem 4.1 with its constant, see sppo.game.convergence). The last policy
has no such guarantee: on a cycle it spirals outwards.

The loss with this minimiser
    The squared error
    :math:`E_{y \sim \pi_t}(\log\frac{\pi(y)}{\pi_t(y)} - \eta P(y \succ \pi_t) + \log Z)^2` with the true
    :math:`\log Z = \log E_{y \sim \pi_t} e^{\eta P(y \succ \pi_t)}`: it is zero there, with any positive
    weights on the responses. The difference form, over pairs, does not need Z:

    .. math:: \left(\log\frac{\pi(y)}{\pi_t(y)} - \log\frac{\pi(y')}{\pi_t(y')}
              - \eta (P(y \succ \pi_t) - P(y' \succ \pi_t))\right)^2

    IPO on pairs drawn from :math:`\pi_t` is a third (ipo.py), and the log-loss of DNO (sppo.algorithms.dno) a fourth. SPPO's own loss, with :math:`\eta/2` for
    :math:`\log Z`, is *not* zero anywhere on the simplex, and has another minimiser (sppo.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import Parameter, Policy, multiplicative_step, require_positive
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, *, eta: Parameter) -> Policy:
    r"""Take one exact step, :math:`\log\pi_{t+1} = \log\pi_t + \eta P(\cdot \succ \pi_t) - \log Z`.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        eta: step size, dimensionless (the released SPPO code's 1/beta).
    """
    return multiplicative_step(policy.log, payoff, policy, eta)


@dataclass(frozen=True)
class MultiplicativeWeights:
    """Self-play by the exact update; eta is the step size."""

    eta: Parameter
    name: str = "multiplicative weights"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference is not used."""
        return iterate.then(update(iterate.policy, payoff, eta=self.eta))
