"""Which pairs of responses are compared, and how many they are: for the work, and for the plan of it."""

from typing import Any

import numpy as np
from jaxtyping import Bool


def opponents(k: int, m: int, generator: np.random.Generator) -> Bool[np.ndarray[Any, Any], "K K"]:
    """A random graph on K responses in which each is compared with m of the others.

    The responses stand in a circle in random order, and each meets its nearest neighbours there; for an odd m
    also the one across. So every pair is as likely as any other, and P^ over those compared is an unbiased
    estimate of P^ over all (:func:`sppo.winrates.win_rates`). Where K and m are both odd no such graph exists,
    and one response meets m + 1 others.

    Args:
        k: K.
        m: how many others; K - 1 or more: all.
        generator: of this prompt alone.

    Returns:
        [K, K], symmetric; True on the diagonal and where a pair is compared.
    """
    if m >= k - 1:
        return np.ones((k, k), dtype=bool)
    place = np.arange(k)
    edges = [(place, (place + step) % k) for step in range(m // 2 + 1)]
    if m % 2:
        across = place[: (k + 1) // 2]
        edges.append((across, across + k // 2 if k % 2 == 0 else (across + (k - 1) // 2)))
    circle = generator.permutation(k)
    wanted = np.zeros((k, k), dtype=bool)
    for first, second in edges:
        wanted[circle[first], circle[second]] = wanted[circle[second], circle[first]] = True
    return wanted


def count_pairs(wanted: Bool[np.ndarray[Any, Any], "K K"]) -> int:
    """The number of pairs that are compared, each counted once; an oracle that is asked in both orders is asked twice.

    Args:
        wanted: [K, K], symmetric; True where a pair is compared. The diagonal does not count.
    """
    return int(np.triu(wanted, 1).sum())
