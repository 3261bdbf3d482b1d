"""The winners of social choice theory, to compare with the von Neumann winner.

Every function takes [..., n, n] games and returns a [..., n] mask or score, so that ties and the absence of
a winner need no special value. Two responses tie if their probability is within `tolerance` of 1/2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sppo.game.preference_games import Array, preference_game

Mask = npt.NDArray[np.bool_]

_TIE = 1e-9


def condorcet_winner(payoff: npt.ArrayLike, *, tolerance: float = _TIE) -> Mask:
    """Find the response that beats every other one; if it exists, it is also the von Neumann winner.

    Returns:
        [..., n] mask with at most one true entry per game, and none if there is a cycle or a tie at the top.
    """
    game = preference_game(payoff)
    return np.asarray(_beats(game, tolerance).sum(-1) == game.shape[-1] - 1)


def copeland_scores(payoff: npt.ArrayLike, *, tolerance: float = _TIE) -> Array:
    """Count the responses that each response beats, where a tie counts half.

    Returns:
        [..., n] in [0, n - 1].
    """
    return _copeland(_beats(preference_game(payoff), tolerance))


def copeland_winners(payoff: npt.ArrayLike, *, tolerance: float = _TIE) -> Mask:
    """Find the responses with the highest Copeland score; [..., n] mask."""
    scores = copeland_scores(payoff, tolerance=tolerance)
    return np.asarray(scores == scores.max(-1, keepdims=True))


def borda_scores(payoff: npt.ArrayLike) -> Array:
    """Compute the mean win rate of each response against the others.

    Returns:
        [..., n] in [0, 1], mean 1/2.
    """
    game = preference_game(payoff)
    return np.asarray((game.sum(-1) - 0.5) / (game.shape[-1] - 1))


def borda_winners(payoff: npt.ArrayLike, *, tolerance: float = _TIE) -> Mask:
    """Find the responses with the highest Borda score; [..., n] mask.

    A Bradley-Terry reward fitted to all pairs with equal weights orders the responses by their Borda scores, so
    these are the responses that a scalar reward would choose.
    """
    scores = borda_scores(payoff)
    return np.asarray(scores >= scores.max(-1, keepdims=True) - tolerance)


def smith_set(payoff: npt.ArrayLike, *, tolerance: float = _TIE) -> Mask:
    """Find the smallest set whose members all beat every response outside it; [..., n] mask.

    It is the Condorcet winner alone if there is one, and all responses on a full cycle.
    """
    order, dominates = dominating_prefixes(_beats(preference_game(payoff), tolerance))
    size = 1 + dominates.argmax(-1)
    rank = np.argsort(order, -1)
    return np.asarray(rank < size[..., None])


def dominating_prefixes(beats: Mask) -> tuple[npt.NDArray[np.intp], Mask]:
    """Find the sets of responses that beat everything outside them, for any antisymmetric relation.

    Such sets are nested, and each consists of the first responses by Copeland score: each of k members beats the
    n - k responses outside, while a response outside beats at most n - k - 1 and ties with no member.

    Args:
        beats: [..., n, n], never true in both directions.

    Returns:
        The order [..., n] of the responses by decreasing Copeland score; and [..., n], whether the first k + 1 of
        them are such a set (always true for all n).
    """
    n = beats.shape[-1]
    order = np.argsort(-_copeland(beats), -1, kind="stable")
    sorted_beats = np.take_along_axis(
        np.take_along_axis(beats, order[..., :, None], -2), order[..., None, :], -1
    )
    # The first k beat the rest k (n - k) times exactly if they all beat everything outside. Their wins over the rest
    # are all their wins minus those among themselves, which are the pairs of the lower triangle that do not tie.
    wins = sorted_beats.sum(-1).cumsum(-1)
    lower = np.tril(sorted_beats | sorted_beats.swapaxes(-1, -2), -1)
    among = lower.sum(-1).cumsum(-1)
    size = np.arange(1, n + 1)
    return order, np.asarray(wins - among == size * (n - size))


def _beats(game: Array, tolerance: float) -> Mask:
    return np.asarray(game > 0.5 + tolerance)


def _copeland(beats: Mask) -> Array:
    n = beats.shape[-1]
    return np.asarray((beats.sum(-1) - beats.sum(-2) + n - 1) / 2)
