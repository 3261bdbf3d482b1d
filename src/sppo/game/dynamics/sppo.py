r"""The exact minimiser of SPPO's loss, with eta/2 in place of log Z.

SPPO (arXiv:2405.00675), Algorithm 1, regresses the log-ratio :math:`f(y) = \log\frac{\pi(y)}{\pi_t(y)}` on
the target :math:`g(y) = \eta (P(y \succ \pi_t) - \tfrac12)`. The mean win rate of a policy against itself is
exactly 1/2, so by Jensen's inequality :math:`\sum_y \pi_t(y) e^{g(y)} \ge 1`: policies that reached every target
would have more than a total probability of one, so the loss of a normalised policy cannot reach zero. With
every response weighted by w(y), the minimiser over the simplex satisfies, with one multiplier per game,

.. math:: f(y) + \frac{\lambda \pi_t(y)}{w(y)} e^{f(y)} = g(y)

so :math:`f = g - W(\lambda \frac{\pi_t}{w} e^{g})` with Lambert's W. To first order in eta this is the
multiplicative-weights update; at a large eta the winners fall short of their targets and the losers reach
theirs, while multiplicative weights shifts all alike.

The loss with this minimiser
    :math:`E_{y \sim w}(\log\frac{\pi(y)}{\pi_t(y)} - \eta(P(y \succ \pi_t) - \tfrac12))^2`, with w = pi_t as
    in the paper unless given. It is the ground truth for a network that has exactly these n responses. A
    network that also has other responses can take probability from those and reach the targets themselves.

Not in the paper: it treats the substitution as an approximation and does not solve it on the simplex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import Parameter, Policy, normalised, require_positive, sppo_targets
from sppo.game.preference_games import Array, GameError


def update(policy: Policy, payoff: Array, *, eta: Parameter, weights: Array | None = None) -> Policy:
    """Return the minimiser of SPPO's loss over normalised policies.

    Args:
        policy: [..., n] pi_t, every response with positive probability.
        payoff: [..., n, n] preference matrices.
        eta: step size, dimensionless.
        weights: [..., n] positive weights of the responses in the loss; pi_t if not given.

    Raises:
        ValueError: a response has no probability or no weight, so the loss does not determine its log-ratio.
    """
    if np.isneginf(policy.log).any() or (weights is not None and not np.all(weights > 0)):
        raise GameError(
            "SPPO's loss does not determine the log-ratio of a response of zero probability or zero weight. Start "
            "from a policy that plays every response, and give positive weights."
        )
    target = sppo_targets(policy, payoff, eta)
    tilt = 0.0 if weights is None else policy.log - np.log(weights / weights.sum(-1, keepdims=True))
    return normalised(policy.log + _log_ratio(target, tilt + np.zeros_like(target), policy.log))


@dataclass(frozen=True)
class SPPO:
    """Self-play that minimises SPPO's loss to the end in every step; eta is the step size."""

    eta: Parameter
    name: str = "SPPO (eta/2 for log Z)"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference is not used."""
        return iterate.then(update(iterate.policy, payoff, eta=self.eta))


def _log_ratio(target: Array, tilt: Array, log_policy: Array) -> Array:
    r"""Solve f + lambda exp(f + tilt) = target for the lambda at which pi_t e^f sums to one.

    With Wright's omega, :math:`\omega + \log\omega = z`, the solution is f = log omega(z) - tilt - log lambda at
    z = target + tilt + log lambda, which neither overflows nor underflows. The logarithm of the sum is convex and
    decreasing in lambda, so Newton's method from lambda = 0 rises to the solution and never passes it.
    """
    from scipy.special import wrightomega

    ratio, omega = target, np.zeros_like(target)
    multiplier: Array | None = None
    for _ in range(100):
        logits = log_policy + ratio
        peak = logits.max(-1, keepdims=True)
        weights = np.exp(logits - peak)
        total = weights.sum(-1, keepdims=True)
        # log of the sum that lambda must bring to 0; below 0 only by rounding, where Newton's method has arrived
        excess = np.maximum(peak + np.log(total), 0.0)
        if excess.max() < 1e-14:
            break
        if multiplier is None:
            # The first step starts at lambda = 0, which has no logarithm: step in lambda itself, where the slope
            # of the log-sum is -sum pi_t e^(2 target + tilt) / sum pi_t e^target, and take the logarithm then.
            slope = log_policy + 2 * target + tilt
            height = slope.max(-1, keepdims=True)
            log_slope = height + np.log(np.exp(slope - height).sum(-1, keepdims=True)) - peak - np.log(total)
            multiplier = np.log(np.maximum(excess, 1e-300)) - log_slope
        else:
            # Later steps are steps in lambda as well, added to its logarithm: d f / d log lambda = -omega / (1 + omega).
            slope = (weights * omega / (1 + omega)).sum(-1, keepdims=True) / total
            multiplier = multiplier + np.log1p(excess / np.maximum(slope, 1e-300))
        z = target + tilt + multiplier
        omega = wrightomega(z)
        # Below z = -40, omega(z) equals e^z to rounding, so that z is its exact logarithm; log(omega) would lose digits.
        ratio = np.where(z < -40, z, np.log(np.maximum(omega, 1e-300))) - tilt - multiplier
    return ratio
