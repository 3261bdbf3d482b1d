r"""Measures of how intransitive preferences are, and of what a scalar reward loses on them.

There are three views of a matrix: the cycles of the majority relation, which depend only on who wins; the cyclic
part of the log-odds, which also depends on the margins; and the distance in nats to the nearest Bradley-Terry
model, by which a reward model's loss exceeds the entropy of the preferences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sppo.game.bradley_terry import divergence_from, nearest_bradley_terry
from sppo.game.nash import solve
from sppo.game.preference_games import Array, GameError, preference_game
from sppo.game.social_choice import borda_winners, condorcet_winner


def cyclic_triples(payoff: npt.ArrayLike, *, tolerance: float = 1e-9) -> Array:
    """Share of triples {i, j, k} in which each response beats one of the others and loses to one.

    Ties make no cycles. The share is 1/4 on average for a uniformly random tournament, and at most
    (n + 1)/(4(n - 2)) for odd n (Kendall and Babington Smith, 1940), which is 1 at n = 3.

    Returns:
        [...] in [0, 1]; zero for n = 2.
    """
    game = preference_game(payoff)
    n = game.shape[-1]
    if n < 3:
        return np.zeros(game.shape[:-2])
    beats = (game > 0.5 + tolerance).astype(np.float64)
    # this sum is the trace of the cube of `beats`, which counts every directed triangle three times
    cycles = (np.matmul(beats, beats) * beats.swapaxes(-1, -2)).sum((-1, -2)) / 3
    return np.asarray(cycles / (n * (n - 1) * (n - 2) / 6))


@dataclass(frozen=True)
class Hodge:
    r"""The log-odds as a sum of what a scalar reward explains and what it cannot explain.

    Attributes:
        reward: [..., n] the potential r in nats, with mean zero.
        transitive: [..., n, n] :math:`r_i - r_j`.
        cyclic: [..., n, n] the remainder, whose rows sum to zero.
        cyclic_share: [...] squared norm of the cyclic part divided by that of the log-odds, in [0, 1].
    """

    reward: Array
    transitive: Array
    cyclic: Array
    cyclic_share: Array


def hodge(payoff: npt.ArrayLike, *, clip: float | None = None) -> Hodge:
    r"""Hodge decomposition of the log-odds (Jiang, Lim, Yao and Ye, 2011, with equal weights for all pairs).

    :math:`L_{ij} = \log(P_{ij}/P_{ji}) = (r_i - r_j) + C_{ij}`, where :math:`r_i = \frac1n \sum_j L_{ij}` is the
    least-squares reward and the two parts are orthogonal. Since all pairs are compared, the part that is not a
    gradient is a sum of 3-cycles.

    Args:
        payoff: [..., n, n].
        clip: bring probabilities into [clip, 1 - clip] first; it bounds the log-odds, so report it with the result.

    Raises:
        ValueError: a probability is 0 or 1, so that its log-odds are infinite, and clip is not given.
    """
    game = preference_game(payoff)
    if clip is not None:
        if not 0 < clip < 0.5:
            raise GameError(f"clip = {clip} must be in (0, 1/2).")
        game = np.clip(game, clip, 1 - clip)
    if game.max() >= 1:
        certain = int((game >= 1).sum())
        raise GameError(
            f"{certain} of the pairs have probability 1 and therefore infinite log-odds; "
            "give clip, e.g. clip=0.01 to count certainty as 99 to 1."
        )
    log_odds = np.log(game) - np.log(game.swapaxes(-1, -2))
    reward = log_odds.mean(-1)
    transitive = reward[..., :, None] - reward[..., None, :]
    cyclic = log_odds - transitive
    energy = (log_odds**2).sum((-1, -2))
    share = (cyclic**2).sum((-1, -2)) / np.where(energy > 0, energy, 1.0)
    return Hodge(reward, transitive, cyclic, np.asarray(share))


@dataclass(frozen=True)
class Intransitivity:
    """The measures of each game; for an oracle on a data set, each prompt is a game.

    Attributes:
        cyclic_triples: [...] share of triples that are cycles.
        cyclic_share: [...] share of the squared log-odds that no reward explains (Hodge).
        bradley_terry_divergence: [...] distance to the nearest Bradley-Terry model, nats per comparison.
        bradley_terry_error: [...] largest error of a probability under that model.
        condorcet: [...] whether a response beats all others.
        scalar_exploitability: [...] exploitability of a scalar reward's choice, the Borda winner (the mean over
            Borda winners if several tie).
        winner_support: [...] number of responses that the von Neumann winner plays with more than 1e-6.
        winner_entropy: [...] entropy of the von Neumann winner in nats.
    """

    cyclic_triples: Array
    cyclic_share: Array
    bradley_terry_divergence: Array
    bradley_terry_error: Array
    condorcet: npt.NDArray[np.bool_]
    scalar_exploitability: Array
    winner_support: npt.NDArray[np.int_]
    winner_entropy: Array

    def means(self) -> dict[str, float]:
        """The mean of each measure over the games."""
        return {name: float(np.mean(values)) for name, values in vars(self).items()}


def intransitivity(payoff: npt.ArrayLike, *, clip: float = 0.01) -> Intransitivity:
    """Compute all measures of each game.

    Args:
        payoff: [..., n, n].
        clip: applies to the log-odds only; see hodge.
    """
    game = preference_game(payoff)
    model = nearest_bradley_terry(game)
    chosen = borda_winners(game)
    pure = game.max(-2) - 0.5
    winner = solve(game).policy
    return Intransitivity(
        cyclic_triples=cyclic_triples(game),
        cyclic_share=hodge(game, clip=clip).cyclic_share,
        bradley_terry_divergence=divergence_from(game, model),
        bradley_terry_error=np.asarray(np.abs(game - model).max((-1, -2))),
        condorcet=np.asarray(condorcet_winner(game).any(-1)),
        scalar_exploitability=np.asarray((pure * chosen).sum(-1) / chosen.sum(-1)),
        winner_support=np.asarray((winner > 1e-6).sum(-1)),
        winner_entropy=np.asarray(
            -np.where(winner > 0, winner * np.log(np.maximum(winner, 1e-300)), 0).sum(-1)
        ),
    )
