r"""Nash-MD: mirror descent whose opponent is mixed with a reference.

Nash learning from human feedback (arXiv:2312.00886): with the geometric mixture
:math:`\pi_t^\mu \propto \pi_t^{1-\eta\tau} \pi_{ref}^{\eta\tau}`,

.. math:: \pi_{t+1} = \arg\max_\pi \eta P(\pi \succ \pi_t^\mu) - KL(\pi \| \pi_t^\mu)
          \propto \pi_t^\mu \exp(\eta P(\cdot \succ \pi_t^\mu)).

The last iterate approaches the equilibrium of the game regularised by tau (see regularised_exploitability) up
to a relative entropy of the order of eta/tau, so eta must be small compared to tau. At the fixed point
:math:`\tau \log\frac{\pi}{\pi_{ref}} = P(\cdot \succ \pi^\mu) + \text{const}`, which is that
equilibrium only where the mixture and the policy give the same win rates.

The loss with this minimiser
    The loss of multiplicative_weights.py with the mixture in place of :math:`\pi_t` throughout, both as the
    reference of the log-ratio and as the opponent.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.multiplicative_weights import update as multiplicative_weights
from sppo.game.dynamics.policies import Parameter, Policy, geometric_mixture, normalised, require_mixture
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, reference: Policy, *, eta: Parameter, tau: Parameter) -> Policy:
    """Mix the policy with the reference, then take a step of multiplicative weights from and against the mixture.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref (the paper's mu).
        eta: step size, dimensionless.
        tau: weight of the relative entropy to the reference, win rate per nat; eta tau <= 1.
    """
    mixture = normalised(geometric_mixture(policy, reference, eta * tau))
    return multiplicative_weights(mixture, payoff, eta=eta)


@dataclass(frozen=True)
class NashMD:
    """Self-play by Nash-MD; eta is the step size and tau the pull to the reference."""

    eta: Parameter
    tau: Parameter
    name: str = "Nash-MD"

    def __post_init__(self) -> None:
        require_mixture(self.eta, self.tau)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference stays the same."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        return iterate.then(policy)
