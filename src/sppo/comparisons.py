r"""Which pairs of the K responses to a prompt are compared, and how many they are: for the work and for its plan.

`all` compares every pair, and `random` draws pairs, all equally likely. The other types look for the best and the worst
response with few pairs, and then compare these two with all others, so that their :math:`\hat P` is the value that all pairs
would give. They choose from the answers so far, and so they ask in rounds:

- `swiss`: in each round responses with about as many points meet that have not met before.
- `elimination`: two knock-out brackets. The first round divides the responses into winners and losers; then winners meet
  winners until two are left, and losers meet losers. In each bracket the strongest so far meets the weakest, which is what the
  seeds of ArenaRL (arXiv:2601.06487) are for; that paper seeds by comparing all with one more response, which costs K - 1 pairs.
- `adaptive`: the same brackets, which stop when as many responses are left as the budget pays for; these then all meet, so that
  a cycle or an unlucky draw does not decide. What is left of the budget compares the next best and the next worst with all.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from sppo.winrates import Array

Wanted = Bool[np.ndarray[Any, Any], "K K"]
"""Which pairs are compared, symmetric."""
Type = Literal["all", "random", "swiss", "elimination", "adaptive"]
Rounds = Generator[Wanted, Float[Array, "K K"], Bool[np.ndarray[Any, Any], " K"]]
"""Yields the pairs of each round, is sent P with NaN where there is no answer, and returns whose P^ counts."""

SETTLING = ("swiss", "elimination", "adaptive")
"""The types that settle the P^ of the best and the worst response, and of few others."""
FINALISTS = 4
"""The responses of each bracket that all meet at the end of `adaptive` if the budget is not given."""
_Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Choice:
    """A choice of the pairs of a prompt.

    Attributes:
        type: how pairs are chosen.
        k: K.
        budget: the most pairs that are compared; None: as many as the type needs.
    """

    type: Type
    k: int
    budget: int | None = None

    @property
    def every_pair(self) -> int:
        """The number of all pairs."""
        return self.k * (self.k - 1) // 2

    @property
    def most_pairs(self) -> int:
        """The most pairs that are compared; `random` compares exactly as many, the others may do with fewer."""
        if self.type == "all":
            return self.every_pair
        return min(self.every_pair, self._needed(self._default_size) if self.budget is None else self.budget)

    @property
    def least_budget(self) -> int:
        """The smallest budget with which the type does what it promises."""
        needed = self._needed(1 if self.type == "swiss" else 2) if self.type in SETTLING else self.k - 1
        return min(self.every_pair, needed)

    @property
    def in_rounds(self) -> bool:
        """Whether the choice of pairs depends on answers."""
        return self.type in SETTLING and self.most_pairs < self.every_pair

    def rounds(self, generator: np.random.Generator, candidates: Sequence[int]) -> Rounds:
        """Choose pairs, round by round.

        Args:
            generator: of this prompt alone, so that the choice depends on nothing else but the answers.
            candidates: the responses that can be trained on; the best and the worst are sought among them.
        """
        everything = np.ones((self.k, self.k), dtype=bool)
        if not self.in_rounds:
            if self.type == "random":
                everything = random_pairs(self.k, self.most_pairs, generator)
            yield everything
            return np.ones(self.k, dtype=bool)
        return (yield from _settle(self, [int(k) for k in generator.permutation(candidates)]))

    @property
    def size(self) -> int:
        """The rounds of `swiss`, or the finalists of each bracket: as many as the budget pays for."""
        if self.type == "elimination" or self.budget is None:
            return self._default_size
        sizes = range(1, _most_swiss_rounds(self.k) + 1) if self.type == "swiss" else _bracket_sizes(self.k)
        paid = [size for size in sizes if self._needed(size) <= self.budget]
        return max(paid)

    @property
    def _default_size(self) -> int:
        swiss = min(int(np.ceil(np.log2(self.k))), _most_swiss_rounds(self.k))
        return {"swiss": swiss, "adaptive": FINALISTS}.get(self.type, 2)

    def _needed(self, size: int) -> int:
        """The most pairs that rounds or brackets of a size can need, with the rows of the best and the worst."""
        k = self.k
        if self.type == "swiss":
            met = size - (k % 2 or size == 1)  # one response may have sat out a round
            return size * (k // 2) + 2 * (k - 1 - met)
        pairs, left, met = k // 2, (k + 1) // 2, 1 - k % 2
        while left > size:
            pairs, met, left = pairs + 2 * (left // 2), met + 1 - left % 2, (left + 1) // 2
        return pairs + left * (left - 1) + 2 * (k - 1 - met - (left - 1))


def random_pairs(k: int, pairs: int, generator: np.random.Generator) -> Wanted:
    """A random graph on K responses with so many edges, in which all meet about equally many others.

    The responses stand in a circle in random order, and each meets its nearest neighbours there; the last K/2 pairs or fewer
    join responses that stand across. So every pair is as likely as any other, and P^ over those compared is an unbiased
    estimate of P^ over all (:func:`sppo.winrates.win_rates`).

    Args:
        k: K.
        pairs: how many.
        generator: of this prompt alone.

    Returns:
        [K, K], symmetric; True on the diagonal and where a pair is compared.
    """
    if pairs >= k * (k - 1) // 2:
        return np.ones((k, k), dtype=bool)
    place = np.arange(k)
    whole, rest = divmod(pairs, k)
    edges = [(place, (place + step) % k) for step in range(whole + 1)]
    step = k // 2 if rest <= (k + 1) // 2 else whole + 1
    edges.append((place[:rest], (place[:rest] + step) % k))
    circle = generator.permutation(k)
    wanted = np.zeros((k, k), dtype=bool)
    for first, second in edges:
        wanted[circle[first], circle[second]] = wanted[circle[second], circle[first]] = True
    return wanted


def pairs_of_opponents(k: int, m: int) -> int:
    """The number of pairs if each response meets m others; where K and m are odd, one of them meets m + 1."""
    return min(k * (k - 1) // 2, (k * m + 1) // 2)


def count_pairs(wanted: Wanted) -> int:
    """The number of pairs that are compared, each counted once; an oracle that is asked in both orders is asked twice.

    Args:
        wanted: [K, K], symmetric; True where a pair is compared. The diagonal does not count.
    """
    return int(np.triu(wanted, 1).sum())


class _Table:
    """The pairs asked about so far, and what is known."""

    def __init__(self, k: int) -> None:
        self.asked = np.eye(k, dtype=bool)
        self.known = np.full((k, k), np.nan)

    def ask(self, pairs: _Pairs) -> Generator[Wanted, Float[Array, "K K"], None]:
        """Ask about the pairs that are new, if there are any."""
        wanted = np.zeros_like(self.asked)
        for i, j in pairs:
            wanted[i, j] = wanted[j, i] = True
        wanted &= ~self.asked
        if wanted.any():
            self.asked |= wanted
            self.known = yield wanted

    def prefers(self, i: int, j: int) -> float:
        """P_ij; a pair that the oracle has left out counts as a tie, for the choice of pairs only."""
        return float(np.nan_to_num(self.known[i, j], nan=0.5))

    def strength(self, i: int) -> float:
        """The mean of P_ij over the others that the response has met."""
        met = np.flatnonzero(self.asked[i])
        return float(np.mean([self.prefers(i, int(j)) for j in met if j != i] or [0.5]))

    def row(self, i: int) -> _Pairs:
        """The pairs of a response that have not been asked about."""
        return [(i, int(j)) for j in np.flatnonzero(~self.asked[i])]

    def cost(self, i: int, beside: int) -> int:
        """The number of new pairs in the rows of two responses."""
        return len({frozenset(pair) for pair in [*self.row(i), *self.row(beside)]})


def _settle(choice: Choice, players: list[int]) -> Rounds:
    """Find the best and the worst of the players, and compare them, and those next to them, with all others."""
    table = _Table(choice.k)
    if len(players) > 1:
        best, worst = yield from _RANKINGS[choice.type](table, players, choice.size)
    else:
        best, worst = players, []
    # The order in which rows are completed: the best and the worst together, then the next, while the budget lasts.
    yield from table.ask([pair for i in [*best[:1], *worst[:1]] for pair in table.row(i)])
    following = [i for two in zip(best[1:], worst[1:], strict=False) for i in two]
    rows: list[tuple[int, int]] = []
    left = choice.most_pairs - count_pairs(table.asked)
    for i in dict.fromkeys(following if choice.type == "adaptive" else []):
        new = [pair for pair in table.row(i) if pair[::-1] not in rows]
        if len(new) > left:
            break
        left -= len(new)
        rows += new
    yield from table.ask(rows)
    return np.asarray(table.asked.all(axis=1))


_Ranking = Generator[Wanted, Float[Array, "K K"], tuple[list[int], list[int]]]
"""Finds the best, best first, and the worst, worst first."""


def _swiss(table: _Table, players: list[int], size: int) -> _Ranking:
    met = np.zeros_like(table.asked)

    def points(i: int) -> float:
        return sum(table.prefers(i, int(j)) for j in np.flatnonzero(met[i]))

    for _ in range(min(size, _most_swiss_rounds(len(players)))):
        order = sorted(players, key=points, reverse=True)
        if len(order) % 2:  # the last of those who have met most sits out
            order.remove(max(order[::-1], key=lambda i: met[i].sum()))
        pairs = _matching(order, met)
        yield from table.ask(pairs)
        for i, j in pairs:
            met[i, j] = met[j, i] = True

    def score(i: int) -> float:
        """The points, and half the mean points of those met (Buchholz), so that strong opponents are made up for."""
        others = [points(int(j)) for j in np.flatnonzero(met[i])]
        return points(i) + float(np.mean(others or [0.0])) / 2

    ranking = sorted(players, key=score, reverse=True)
    return ranking, ranking[::-1]


def _brackets(table: _Table, players: list[int], size: int) -> _Ranking:
    first = _neighbours(players)
    yield from table.ask(first)
    out = players[len(players) // 2 * 2 :]  # the one without an opponent stands in both brackets
    top = [i if table.prefers(i, j) >= 0.5 else j for i, j in first] + out
    bottom = [j if table.prefers(i, j) >= 0.5 else i for i, j in first] + out
    while max(len(top), len(bottom)) > size:
        drawn = [_drawn(sorted(group, key=table.strength)) for group in (top, bottom)]
        yield from table.ask([pair for _, pairs in drawn for pair in pairs])
        (top_bye, top_pairs), (bottom_bye, bottom_pairs) = drawn
        top = top_bye + [i if table.prefers(i, j) >= 0.5 else j for i, j in top_pairs]
        bottom = bottom_bye + [j if table.prefers(i, j) >= 0.5 else i for i, j in bottom_pairs]
    yield from table.ask([(i, j) for group in (top, bottom) for i in group for j in group if i < j])

    def points(group: list[int]) -> Callable[[int], float]:
        return lambda i: sum(table.prefers(i, j) for j in group if j != i)

    best = sorted(top, key=points(top), reverse=True)
    worst = [i for i in sorted(bottom, key=points(bottom)) if i != best[0]]
    return best, worst


_RANKINGS: dict[str, Callable[[_Table, list[int], int], _Ranking]] = {
    "swiss": _swiss,
    "elimination": _brackets,
    "adaptive": _brackets,
}


def _most_swiss_rounds(players: int) -> int:
    """So many rounds can always be matched without a second meeting: each then has at least half of the others left (Dirac)."""
    return max(1, (players - 2) // 2)


def _matching(order: Sequence[int], met: Wanted) -> list[tuple[int, int]]:
    """Pairs that have not met, each response with the nearest below it for which the rest can be paired as well."""

    def match(left: list[int]) -> list[tuple[int, int]] | None:
        if not left:
            return []
        first = left[0]
        for other in left[1:]:
            if not met[first, other]:
                rest = match([i for i in left[1:] if i != other])
                if rest is not None:
                    return [(first, other), *rest]
        return None

    return match(list(order)) or []


def _neighbours(order: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(order[::2], order[1::2], strict=False))


def _drawn(order: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The one who passes without a match, and the pairs: the weakest against the strongest, and so on inwards."""
    half = len(order) // 2
    return order[half : len(order) - half], list(zip(order[:half], order[::-1][:half], strict=True))


def _bracket_sizes(k: int) -> list[int]:
    """The numbers of responses that are left in each bracket after each round, down to two."""
    sizes = [(k + 1) // 2]
    while sizes[-1] > 2:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes
