r"""Proximal steps towards the Blackwell winner: no annotator of several is outvoted (sppo.game.blackwell).

With the matrices :math:`P_a` of the annotators, each step maximises the worst win rate at a distance from :math:`\pi_t`:

.. math:: \pi_{t+1} = \arg\max_\pi \min_{q} \sum_{a, y'} q(a, y') P_a(\pi \succ y') - \tfrac1\eta KL(\pi \| \pi_t)
          \propto \pi_t(y) \exp(\eta\, r(y)), \qquad r(y) = \sum_{a, y'} q^*(a, y') P_a(y \succ y').

q* is the adversary's mixture of annotators and opponents that is worst for :math:`\pi_{t+1}`, not for :math:`\pi_t`: the step is
implicit. So :math:`v(\pi_t)` never falls, and the last iterate converges for every eta (Martinet, 1970; with relative entropy
Censor and Zenios, 1992), to the Blackwell winner exactly. An explicit step, against the worst annotator of :math:`\pi_t`, goes round.

The loss with this minimiser
    The difference form of multiplicative_weights.py with r in place of the win rates.

PROSPER (arXiv:2602.19041) seeks the same winner with an adversary that is regularised by entropy and therefore has a closed form;
its winner differs from this one by the adversary's temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sppo.game.blackwell import against_every_opponent
from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import Parameter, Policy, column, normalised, require_positive
from sppo.game.preference_games import Array

_BARRIERS = 10.0 ** -np.arange(0, 14)
_NEWTON_STEPS = 100
_GAP = 1e-9


def update(policy: Policy, payoffs: Array, *, eta: Parameter) -> Policy:
    """Take one proximal step.

    Args:
        policy: [..., n] pi_t; a response that it never plays stays out, for the policy and for its opponents.
        payoffs: [..., annotators, n, n] a preference matrix for each annotator.
        eta: step size, dimensionless.

    Raises:
        ArithmeticError: the worst mixture of a game was not found to 1e-9.
    """
    return normalised(policy.log + column(eta) * worst_mixture_rewards(policy, payoffs, eta=eta))


def worst_mixture_rewards(policy: Policy, payoffs: Array, *, eta: Parameter) -> Array:
    r"""The win rate r(y) of every response against the worst mixture q* of annotators and opponents, [..., n].

    q* minimises the convex :math:`\frac1\eta \log\sum_y \pi_t(y) \exp(\eta \sum_{a,y'} q(a, y') P_a(y \succ y'))` over distributions.

    Args:
        policy: [..., n] pi_t.
        payoffs: [..., annotators, n, n] a preference matrix for each annotator.
        eta: step size.

    Raises:
        ArithmeticError: the duality gap of a game stayed above 1e-9.
    """
    n = policy.log.shape[-1]
    steps = np.broadcast_to(np.asarray(eta, dtype=np.float64), policy.log.shape[:-1]).reshape(-1)
    games = payoffs.reshape(-1, *payoffs.shape[-3:])
    rewards = np.zeros((len(games), n))
    for game, log, step, row in zip(games, policy.log.reshape(-1, n), steps, rewards, strict=True):
        played = np.isfinite(log)
        against = against_every_opponent(game[:, :, played])
        row[:] = against @ _worst_mixture(log[played], against[played], float(step))
    return rewards.reshape(policy.log.shape)


def _worst_mixture(log: Array, against: Array, eta: float) -> Array:
    """The adversary's distribution over the columns of one game, by Newton's method with a barrier that goes to zero."""
    mixture = np.full(against.shape[1], 1 / against.shape[1])
    for barrier in _BARRIERS:
        mixture = _descend(mixture, log, against, eta, barrier)
    gap = _duality_gap(mixture, log, against, eta)
    if gap > _GAP:
        raise ArithmeticError(
            f"the worst mixture of annotators was found to {gap:.3g} only, not to {_GAP:g}; lower eta = {eta:g}"
        )
    return mixture


def _descend(mixture: Array, log: Array, against: Array, eta: float, barrier: float) -> Array:
    def height(at: Array) -> float:
        return float(np.logaddexp.reduce(log + eta * (against @ at)) / eta - barrier * np.log(at).sum())

    now = height(mixture)
    for _ in range(_NEWTON_STEPS):
        answer = normalised(log + eta * (against @ mixture)).probability
        # in units of the mixture's own weights the barrier's curvature is constant, however small a weight is
        scaled = against * mixture
        mean = answer @ scaled
        spread = np.sqrt(answer)[:, None] * (scaled - mean)
        system = np.zeros((len(mixture) + 1,) * 2)
        system[:-1, :-1] = eta * spread.T @ spread + barrier * np.eye(len(mixture))
        system[:-1, -1] = system[-1, :-1] = mixture
        gradient = mean - barrier
        step = np.linalg.solve(system, np.append(-gradient, 0.0))[:-1]
        decrement = -float(gradient @ step)
        if not decrement > 1e-4 * barrier**2:
            break
        length = min(1.0, 0.95 / max(float(-step.min()), 1e-300))
        while length > 1e-9:
            moved = mixture * (1 + length * step)
            then = height(moved)
            # near the bottom rounding hides the gain, and the full step is right
            if decrement < 1e-13 or then <= now - 0.1 * length * decrement:
                break
            length /= 2
        else:
            break
        mixture, now = moved / moved.sum(), then
    return mixture


def _duality_gap(mixture: Array, log: Array, against: Array, eta: float) -> float:
    answer = normalised(log + eta * (against @ mixture))
    upper = np.logaddexp.reduce(log + eta * (against @ mixture)) / eta
    distance = float(answer.probability @ (answer.log - log))
    return float(upper - ((answer.probability @ against).min() - distance / eta))


@dataclass(frozen=True)
class Blackwell:
    """Proximal steps towards the Blackwell winner of several annotators; eta is the step size.

    Attributes:
        several_annotators: says that its payoffs are [games, annotators, n, n].
    """

    several_annotators: ClassVar[bool] = True

    eta: Parameter
    name: str = "Blackwell winner, proximal"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference is not used."""
        return iterate.then(update(iterate.policy, payoff, eta=self.eta))
