r"""Multiplicative weights estimated from K sampled responses, as in Algorithm 1 of SPPO.

SPPO (arXiv:2405.00675), section 4.2: draw :math:`y_1, \dots, y_K \sim \pi_t`, take
:math:`\hat P(y \succ \pi_t) = \frac1K \sum_j P(y \succ y_j)` (a response compared with itself counts 1/2), and
move only the responses that were drawn: :math:`\log\pi_{t+1}(y) = \log\pi_t(y) + \eta(\hat P(y \succ \pi_t) -
\tfrac12) + \text{const}` for drawn y, the constant alone for the others.

With `responses="all"` the same estimate moves every response, which is the exact update with an unbiased
estimate of the win rates. A language model can only move the drawn responses, since it does not know the
others; in the mean over draws, that form moves a response in proportion to how often it is drawn.

The loss with this minimiser
    :math:`\sum_k (\log\frac{\pi(y_k)}{\pi_t(y_k)} - \eta(\hat P(y_k \succ \pi_t) - \tfrac12) - c)^2` leaves
    the responses that were not drawn undetermined; this update is the solution that keeps *their logits*, up to
    the common constant c. A network trained on so few responses settles for a solution of its own.

Draws are keyed by (seed, game, step, k), so results do not depend on how games are batched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import Parameter, Policy, column, normalised, require_positive
from sppo.game.preference_games import Array, GameError


def update(
    policy: Policy,
    payoff: Array,
    uniforms: Array,
    *,
    eta: Parameter,
    responses: Literal["drawn", "all"] = "drawn",
) -> Policy:
    """Take one step from the responses that `uniforms` draw from the policy.

    Args:
        policy: [..., n] pi_t.
        payoff: [..., n, n] preference matrices.
        uniforms: [..., K] numbers in [0, 1); each draws one response by the inverse distribution function.
        eta: step size, dimensionless.
        responses: which responses move: those drawn, or all.
    """
    edges = policy.probability.cumsum(-1)
    # Rounding can leave the last edge at 1 - 1e-16. Leaving it out gives a draw beyond it to the last response.
    drawn = (uniforms[..., None] >= edges[..., None, :-1]).sum(-1)
    counts = (drawn[..., None] == np.arange(edges.shape[-1])).sum(-2)
    estimate = np.matmul(payoff, counts[..., None] / uniforms.shape[-1])[..., 0]
    moved = 1.0 if responses == "all" else counts > 0
    return normalised(policy.log + column(eta) * (estimate - 0.5) * moved)


@dataclass(frozen=True)
class SampledMultiplicativeWeights:
    """Self-play that draws K responses in every step.

    Attributes:
        eta: step size.
        samples: K, the number of responses that are drawn.
        responses: which responses move, those drawn or all.
        seed: random seed of the draws.
    """

    eta: Parameter
    samples: int = 5
    responses: Literal["drawn", "all"] = "drawn"
    seed: int = 0
    name: str = "multiplicative weights, sampled"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)
        if self.samples < 1:
            raise GameError(f"samples = {self.samples} must be at least 1.")
        if self.responses not in ("drawn", "all"):
            raise GameError(f"responses = {self.responses!r}; choose 'drawn' or 'all'.")

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; the reference is not used."""
        uniforms = keyed_uniforms(self.seed, iterate.games, iterate.number, self.samples)
        policy = update(iterate.policy, payoff, uniforms, eta=self.eta, responses=self.responses)
        return iterate.then(policy)


def keyed_uniforms(seed: int, games: npt.NDArray[np.int64], step: int, samples: int) -> Array:
    """Random numbers in [0, 1) that depend on nothing but (seed, game, step, k), [games, samples].

    They are SplitMix64 (Steele, Lea and Flood, 2014), folded over the key. It is used as a hash, so there is no
    stream whose position could matter.
    """
    key = _mixed(np.full(games.shape, seed % 2**64, dtype=np.uint64))
    key = _mixed(key ^ games.astype(np.uint64))
    key = _mixed(key ^ np.uint64(step))
    words = _mixed(key[..., None] ^ np.arange(samples, dtype=np.uint64))
    return np.asarray((words >> np.uint64(11)).astype(np.float64) / 2.0**53)


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
