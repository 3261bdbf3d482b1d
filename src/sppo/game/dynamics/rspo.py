r"""RSPO: the exact minimiser of SPPO's loss with a divergence from the reference added.

Regularised self-play policy optimisation (arXiv:2503.00030): with the targets
:math:`g(y) = \eta(P(y \succ \pi_t) - \tfrac12)`,

.. math:: \pi_{t+1} = \arg\min_\pi E_{y\sim\pi_t}\left(\log\frac{\pi(y)}{\pi_t(y)} - g(y)\right)^2
          + \lambda_f KL(\pi_{ref} \| \pi) + \lambda_r KL(\pi \| \pi_{ref}).

There is no closed form; the minimum is found numerically, game by game. At a fixed point under reverse KL alone,
:math:`\lambda_r \log\frac{\pi}{\pi_{ref}} = 2\eta P(\cdot \succ \pi) + \text{const}`, which is the equilibrium of
the game regularised by :math:`\tau = \lambda_r/(2\eta)`. To first order in the step, RSPO is magnetic mirror
descent (magnetic_mirror_descent.py) with that tau.

The loss with this minimiser
    RSPO's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import Parameter, Policy, normalised, require_positive, sppo_targets
from sppo.game.preference_games import Array, GameError


def update(
    policy: Policy,
    payoff: Array,
    reference: Policy,
    *,
    eta: Parameter,
    forward_kl: float,
    reverse_kl: float,
) -> Policy:
    """Return the minimiser of RSPO's loss over normalised policies.

    Args:
        policy: [..., n] pi_t, every response with positive probability.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref, every response with positive probability.
        eta: step size, dimensionless.
        forward_kl: lambda_f, the weight of KL(pi_ref || pi), nats squared per nat.
        reverse_kl: lambda_r, the weight of KL(pi || pi_ref), nats squared per nat.

    Raises:
        GameError: a response has no probability, so the loss does not determine its log-ratio.
    """

    def penalty(log_policy: Array, anchor: Array, _: Array) -> tuple[float, Array]:
        own, base, gap = np.exp(log_policy), np.exp(anchor), log_policy - anchor
        value = reverse_kl * (own @ gap) - forward_kl * (base @ gap)
        return float(value), reverse_kl * own * (gap + 1) - forward_kl * base

    return minimiser(policy, reference, sppo_targets(policy, payoff, eta), penalty)


Penalty = Callable[[Array, Array, Array], tuple[float, Array]]
"""(log pi, log pi_ref, log pi_t) of one game, [n] each -> what is added to SPPO's loss, and its slope by log pi."""


def minimiser(policy: Policy, reference: Policy, target: Array, penalty: Penalty) -> Policy:
    """The policy that minimises SPPO's loss with a penalty, found numerically game by game.

    Raises:
        GameError: a response has no probability, so the loss does not determine its log-ratio.
    """
    if np.isneginf(policy.log).any() or np.isneginf(reference.log).any():
        raise GameError(
            "the policy or its reference gives a response the probability 0, so RSPO's loss does not determine its "
            "log-ratio. Start from policies that play every response."
        )
    shape = np.broadcast_shapes(policy.log.shape, reference.log.shape, target.shape)
    rows = (
        np.broadcast_to(part, shape).reshape(-1, shape[-1]) for part in (policy.log, reference.log, target)
    )
    logits = [_minimiser(own, anchor, wanted, penalty) for own, anchor, wanted in zip(*rows, strict=True)]
    return normalised(np.array(logits).reshape(shape))


@dataclass(frozen=True)
class RSPO:
    """Self-play that minimises RSPO's loss to the end in every step.

    Attributes:
        eta: step size.
        forward_kl: lambda_f, the weight of KL(pi_ref || pi).
        reverse_kl: lambda_r, the weight of KL(pi || pi_ref).
    """

    eta: Parameter
    forward_kl: float = 0.0
    reverse_kl: float = 0.0
    name: str = "RSPO"
    _update: ClassVar[Callable[..., Policy]] = staticmethod(update)

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)
        if min(self.forward_kl, self.reverse_kl) < 0:
            raise GameError(
                f"forward_kl = {self.forward_kl}, reverse_kl = {self.reverse_kl}: neither may be negative."
            )

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference stays the same."""
        weights = {"forward_kl": self.forward_kl, "reverse_kl": self.reverse_kl}
        return iterate.then(self._update(iterate.policy, payoff, iterate.reference, eta=self.eta, **weights))


def _minimiser(policy: Array, reference: Array, target: Array, penalty: Penalty) -> Array:
    """Return the logits of one game's minimiser, [n]; policy and reference are logarithms."""
    from scipy.optimize import minimize

    played = np.exp(policy)

    def loss(logits: Array) -> tuple[float, Array]:
        own = normalised(logits)
        error = own.log - policy - target
        value, slope = penalty(own.log, reference, policy)
        slope = slope + 2 * played * error
        # the derivative of log pi(y) by the logit of y' is 1[y = y'] - pi(y'): softmax's part is subtracted last
        return float(value + played @ error**2), slope - own.probability * slope.sum()

    minimum = minimize(
        loss, policy + target, jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 10_000}
    )
    return np.asarray(minimum.x, dtype=np.float64)
