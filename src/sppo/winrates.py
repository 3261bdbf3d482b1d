r"""Win rates P^ from a preference matrix.

A preference matrix holds :math:`P_{ij} = P(y_i \succ y_j | x)` for the K responses to one prompt:
:math:`P + P^T = 1`, diagonal 1/2.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

Array = np.ndarray[Any, np.dtype[np.float64]]


def win_rates(
    matrix: Float[Array, "*prompts K K"], settled: npt.ArrayLike | None = None
) -> Float[Array, "*prompts K"]:
    r"""The probability that each response beats the policy that generated all of them.

    SPPO (arXiv:2405.00675), Section 4.2: the policy is represented by its K samples,
    :math:`\hat P(y_i \succ \pi_t | x) = \frac1K \sum_j P(y_i \succ y_j | x)`. The response itself is one of
    the K and counts 1/2. Both numpy arrays and torch tensors are accepted, the latter
    without `settled`.

    NaN marks a pair that was not compared. The mean over the other responses is then replaced by the mean over
    those that were compared, with the same weight (K-1)/K beside the response itself. This estimate is unbiased
    if all pairs were equally likely to be compared.

    Args:
        matrix: [..., K, K] probabilities in [0, 1], or NaN off the diagonal.
        settled: [..., K] whether each response's rate counts, since pairs that are chosen by their answers are not equally
            likely and would give the others a biased one; None: all count.

    Returns:
        [..., K] in [1/(2K), 1 - 1/(2K)]; their mean over the K is 1/2 if all responses were compared equally often.
        NaN for a response that was not compared with any other, or is not settled.
    """
    if settled is not None:
        return np.where(np.asarray(settled, dtype=bool), win_rates(matrix), np.nan)
    compared = matrix == matrix  # False for NaN only, in both numpy and torch
    if bool(compared.all()):
        rates: Array = matrix.mean(axis=-1)
        return rates
    k = matrix.shape[-1]
    diagonal = matrix.diagonal(0, -2, -1)
    others = compared.sum(-1) - 1
    total = matrix.nansum(-1) if hasattr(matrix, "nansum") else np.nansum(matrix, axis=-1)
    with np.errstate(invalid="ignore"):  # 0/0 is NaN for a response without comparisons
        estimate: Array = (diagonal + (k - 1) * ((total - diagonal) / others)) / k
    return estimate


def ensemble_win_rates(
    rates: Float[Array, "members K"], weights: Float[Array, " members"], *, beta: float, optimistic: bool
) -> Float[Array, " K"]:
    r"""The win rates of an ensemble's members in one, nearer to the lowest or to the highest where they disagree.

    Pessimism is :math:`\tilde r = -\beta \log \sum_a w_a e^{-r_a/\beta}`, optimism :math:`\tilde r = \beta \log \sum_a w_a e^{r_a/\beta}`.
    To second order they are the mean minus, or plus, the members' variance over :math:`2\beta`; as beta goes to 0 they become the
    minimum and the maximum, and as it grows the mean.

    Args:
        rates: [members, K] win rates by each member; NaN where a response was not compared.
        weights: positive, with the sum 1.
        beta: in win rate.
        optimistic: whether disagreement counts for a response and not against it.

    Returns:
        [K] in the range of the members' rates, so that their mean over the K is no longer 1/2.
    """
    sign = 1.0 if optimistic else -1.0
    exponents = sign * rates / beta
    highest = exponents.max(axis=0)
    combined: Array = sign * beta * (highest + np.log(weights @ np.exp(exponents - highest)))
    return combined
