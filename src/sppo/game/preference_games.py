r"""Preference games: the matrices that say how often each response is preferred to each other one.

A preference game over n responses is a matrix of probabilities :math:`P_{ij} = P(y_i \succ y_j)` with
:math:`P + P^\top = 1` and therefore 1/2 on the diagonal. It is a symmetric constant-sum game of two players: each
chooses a response, and the payoff of the row player is the probability that its response is preferred. A
contextual game has one matrix for each prompt and is an array [prompts, n, n]; all functions of this package
take any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class GameError(ValueError):
    """A matrix, policy or parameter is invalid; the message names the entry, its deviation and a remedy."""


def preference_game(matrix: npt.ArrayLike, *, tolerance: float = 1e-6) -> Array:
    r"""Check a preference matrix and return a copy for which P + P^T = 1 holds exactly.

    Deviations within the tolerance, such as those of a CSV with few digits, are removed by
    :math:`(P + 1 - P^\top)/2`; larger ones are errors and never repaired silently.

    Args:
        matrix: [..., n, n] probabilities that the row's response is preferred to the column's.
        tolerance: the largest deviation of P + P^T from 1, and of P from [0, 1].

    Returns:
        A float64 array of the same shape.

    Raises:
        ValueError: the array is not numeric or not square, has fewer than two responses or entries that are not
            finite or lie outside [0, 1], or P + P^T is not 1; the message names the worst entry.
    """
    payoff = _numbers(matrix, "a preference game")
    if payoff.ndim < 2 or payoff.shape[-1] != payoff.shape[-2]:
        raise GameError(
            f"a preference game is a square array [..., n, n]; got shape {payoff.shape}. "
            "Rows and columns are the same responses in the same order."
        )
    n = payoff.shape[-1]
    if n < 2 or payoff.size == 0:
        raise GameError(
            f"a preference game needs at least 2 responses and at least 1 game; got shape {payoff.shape}."
        )
    _refuse_nan(payoff, "P")
    outside = np.maximum(-payoff, payoff - 1)
    worst = _argmax(outside)
    if outside[worst] > tolerance:
        raise GameError(
            f"{_entry('P', worst)} = {payoff[worst]:.6g} is not a probability in [0, 1] "
            f"(tolerance {tolerance:g}). Convert margins A in [-1/2, 1/2] by A + 1/2, "
            "wins minus losses in [-1, 1] by (A + 1)/2, percentages by P/100."
        )
    transposed = payoff.swapaxes(-1, -2)
    deviation = np.abs(payoff + transposed - 1)
    worst = _argmax(deviation)
    if deviation[worst] > tolerance:
        other = (*worst[:-2], worst[-1], worst[-2])
        if worst[-1] == worst[-2]:
            said = f"{_entry('P', worst)} = {payoff[worst]:.6g}, not 1/2"
            remedy = "A response ties with itself: np.fill_diagonal(P, 0.5)."
        else:
            said = f"{_entry('P', worst)} + {_entry('P', other)} = {payoff[worst] + payoff[other]:.6g}, not 1"
            remedy = (
                "If both orders were asked and disagree, average them: (P + 1 - P.T)/2; "
                "if the file was rounded, give a larger tolerance."
            )
        raise GameError(
            f"{said} (off by {deviation[worst]:.3g}, tolerance {tolerance:g}; the worst entry). {remedy}"
        )
    return np.clip(0.5 + (payoff - transposed) / 2, 0.0, 1.0)


def policy_weights(
    weights: npt.ArrayLike, n: int | None = None, *, name: str = "policy", tolerance: float = 1e-6
) -> Array:
    """Check a distribution over responses and return a copy that sums to one.

    Args:
        weights: [..., n] probabilities.
        n: the number of responses in the game, if it is known.
        name: the name of the weights in messages.
        tolerance: the largest deviation of the sum from 1, and of a weight below 0.

    Raises:
        ValueError: the weights have the wrong length, are not finite, are negative, or do not sum to one.
    """
    policy = _numbers(weights, name)
    if policy.ndim < 1 or policy.shape[-1] == 0 or (n is not None and policy.shape[-1] != n):
        wanted = "n" if n is None else str(n)
        raise GameError(f"{name} has shape {policy.shape}; expected [..., {wanted}], a weight per response.")
    _refuse_nan(policy, name)
    worst = _argmax(-policy)
    if policy[worst] < -tolerance:
        raise GameError(
            f"{_entry(name, worst)} = {policy[worst]:.6g} is negative; weights are probabilities."
        )
    total = policy.sum(-1)
    worst = _argmax(np.abs(total - 1))
    if abs(total[worst] - 1) > tolerance:
        where = f" (index {list(worst)})" if worst else ""
        raise GameError(
            f"the weights of {name}{where} sum to {total[worst]:.6g}, not 1 (tolerance {tolerance:g}); "
            "divide by their sum if they are counts."
        )
    policy = np.maximum(policy, 0.0)
    return np.asarray(policy / policy.sum(-1, keepdims=True))


def random_game(n: int, *, games: int | Sequence[int] = (), seed: int | np.random.Generator = 0) -> Array:
    """Draw games in which every pair has an independent, uniformly distributed probability in [0, 1).

    Args:
        n: number of responses, at least 2.
        games: leading dimensions: () for one matrix, 1000 for [1000, n, n].
        seed: random seed of NumPy's generator, or the generator itself.

    Returns:
        [*games, n, n].
    """
    _at_least_two(n)
    batch = (games,) if isinstance(games, int) else tuple(games)
    draws = np.random.default_rng(seed).random((*batch, n, n))
    upper = np.triu(draws - 0.5, 1)
    return np.asarray(0.5 + upper - upper.swapaxes(-1, -2))


def bradley_terry_game(log_strength: npt.ArrayLike) -> Array:
    r"""Make the transitive game of a scalar reward, :math:`P_{ij} = \sigma(r_i - r_j)` (Bradley-Terry).

    Args:
        log_strength: [..., n] rewards r in nats.

    Returns:
        [..., n, n].
    """
    reward = _numbers(log_strength, "log_strength")
    if reward.ndim < 1:
        raise GameError(
            f"log_strength = {reward} is a single number; give one reward per response, [..., n]."
        )
    _at_least_two(reward.shape[-1])
    _refuse_nan(reward, "log_strength")
    return bradley_terry_matrix(reward)


def bradley_terry_matrix(strength: Array) -> Array:
    """Like `bradley_terry_game`, but without checks."""
    difference = strength[..., :, None] - strength[..., None, :]
    # sigma(d) = (1 + tanh(d/2))/2: tanh is odd in floating point, so P + P^T = 1 holds to the last bit, and it
    # does not overflow
    return np.asarray(0.5 + 0.5 * np.tanh(difference / 2))


def rock_paper_scissors(*, rock: float = 1.0, paper: float = 1.0, scissors: float = 1.0) -> Array:
    r"""Make the game of three responses in a cycle, each of which beats one and loses to one.

    The von Neumann winner plays each response in proportion to the margin of the pair that it is not in:
    :math:`\pi(\text{rock}) \propto \text{scissors} - \tfrac12`,
    :math:`\pi(\text{paper}) \propto \text{rock} - \tfrac12`,
    :math:`\pi(\text{scissors}) \propto \text{paper} - \tfrac12`,
    because the kernel of a 3 x 3 antisymmetric matrix is its axial vector. With equal margins it is uniform.

    Args:
        rock: probability that rock beats scissors, in (1/2, 1].
        paper: probability that paper beats rock, in (1/2, 1].
        scissors: probability that scissors beat paper, in (1/2, 1].

    Returns:
        [3, 3] in the order rock, paper, scissors.

    Raises:
        ValueError: a probability lies outside (1/2, 1], which would break the cycle.
    """
    for name, probability in (("rock", rock), ("paper", paper), ("scissors", scissors)):
        if not 0.5 < probability <= 1:
            raise GameError(f"{name} = {probability} must be in (1/2, 1]: each response beats the next one.")
    return np.array([[0.5, 1 - paper, rock], [paper, 0.5, 1 - scissors], [1 - rock, scissors, 0.5]])


def cyclic_game(n: int, *, strength: float = 1.0) -> Array:
    """Make a cycle of n responses, each of which beats the (n - 1)//2 that follow it and ties with the opposite one.

    n = 3 is rock-paper-scissors in another order, n = 5 is rock-paper-scissors-lizard-Spock. By symmetry, the
    uniform policy is a von Neumann winner.

    Args:
        n: length of the cycle, at least 3.
        strength: probability with which the winner of a pair wins, in (1/2, 1].
    """
    if n < 3:
        raise GameError(f"n = {n}: a cycle needs at least 3 responses.")
    if not 0.5 < strength <= 1:
        raise GameError(f"strength = {strength} must be in (1/2, 1]: the winner of a pair wins more often.")
    ahead = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    reach = (n - 1) // 2
    return np.where((ahead > 0) & (ahead <= reach), strength, np.where(ahead >= n - reach, 1 - strength, 0.5))


def majority_game(utilities: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Array:
    """Make the game of the share of annotators who prefer the row's response, where a tie counts half.

    Each annotator is transitive, yet their majority need not be (Condorcet): the utilities
    [[2, 1, 0], [0, 2, 1], [1, 0, 2]] make a cycle.

    Args:
        utilities: [annotators, n] each annotator's utility of each response; only their order matters.
        weights: [annotators] shares of the annotators, which sum to one; equal if not given.

    Returns:
        [n, n].
    """
    utility = _numbers(utilities, "utilities")
    if utility.ndim != 2 or utility.shape[0] < 1:
        raise GameError(
            f"utilities has the shape {utility.shape}; give one row per annotator, [annotators, n]."
        )
    _at_least_two(utility.shape[1])
    _refuse_nan(utility, "utilities")
    annotators = utility.shape[0]
    shares = (
        np.full(annotators, 1 / annotators)
        if weights is None
        else policy_weights(weights, annotators, name="weights")
    )
    margin = np.zeros((utility.shape[1],) * 2)
    for share, row in zip(shares, utility, strict=True):
        margin += share * np.sign(row[:, None] - row[None, :])
    return np.asarray(0.5 + margin / 2)


def _numbers(values: Any, name: str) -> Array:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GameError(f"{name} must be an array of numbers: {error}") from error


def _refuse_nan(values: Array, name: str) -> None:
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))
        first = tuple(int(i) for i in bad[0])
        raise GameError(
            f"{_entry(name, first)} is {values[first]}; {len(bad)} of {values.size} entries are not finite. "
            "A pair that was never compared has no probability: compare it, or leave the response out."
        )


def _argmax(values: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(values)), values.shape))


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _at_least_two(n: int) -> None:
    if n < 2:
        raise GameError(f"a preference game needs at least 2 responses; got n = {n}.")
