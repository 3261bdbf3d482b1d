"""Votes between items on prompts: their counts, their majorities, and which of these go in a circle.

An item is whatever is compared on many prompts, such as a language model; a cell is a prompt with two items that were
compared on it. A majority is that of the votes that are not ties, which is the majority with ties as halves.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sppo.game.preference_games import Array, GameError

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Ballot = tuple[Hashable, Hashable, str, str, float]
"""The prompt, the voter, two items, and 1 if the first won, 0 if the second did, 1/2 for a tie."""


@dataclass(frozen=True)
class Votes:
    """Votes by cells.

    Attributes:
        items: the names of the items.
        prompts: the number of prompts.
        voters: the number of voters.
        prompt: [cells] the prompt's index.
        first: [cells] the index of the first item.
        second: [cells] the index of the second item, which is larger.
        decided: [cells] the number of votes that are not ties.
        wins: [cells] those of them that prefer the first item.
        ties: [cells] the number of ties.
    """

    items: tuple[str, ...]
    prompts: int
    voters: int
    prompt: Indices
    first: Indices
    second: Indices
    decided: Indices
    wins: Indices
    ties: Indices

    @classmethod
    def of(cls, ballots: Iterable[Ballot]) -> Votes:
        """Count votes.

        Raises:
            GameError: there is no vote, or all of them are ties.
        """
        cells: dict[tuple[Hashable, str, str], list[int]] = {}
        voters = set()
        for prompt, voter, a, b, share in ballots:
            voters.add(voter)
            count = cells.setdefault((prompt, min(a, b), max(a, b)), [0, 0, 0])
            count[1 if share == 0.5 else 0 if (share == 1) == (a < b) else 2] += 1
        if not cells:
            raise GameError("there are no votes.")
        wins, ties, losses = np.array(list(cells.values())).T
        if not (wins + losses).any():
            raise GameError(
                f"all {ties.sum()} votes are ties, so no majority prefers anything; votes with a winner are needed."
            )
        items = sorted({item for _, *pair in cells for item in pair})
        index = {item: number for number, item in enumerate(items)}
        prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(key[0] for key in cells))}
        prompt, first, second = np.array([(prompts[x], index[a], index[b]) for x, a, b in cells]).T
        return cls(tuple(items), len(prompts), len(voters), prompt, first, second, wins + losses, wins, ties)

    def on(self, prompts: Mask) -> Votes:
        """The votes on some of the prompts, by a mask of all prompts; the items and the numbers of prompts stay."""
        keep = prompts[self.prompt]
        columns = ("prompt", "first", "second", "decided", "wins", "ties")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})

    @cached_property
    def pairs(self) -> tuple[Indices, Indices, Indices]:
        """The first and the second item of each pair that was compared on any prompt, and the pair of each cell."""
        codes, pair = np.unique(self.first * len(self.items) + self.second, return_inverse=True)
        return codes // len(self.items), codes % len(self.items), np.asarray(pair)

    def pooled(self, counts: Array | Indices) -> Array:
        """Counts of cells added up over prompts, [..., cells] to [..., pairs]."""
        first, _, pair = self.pairs
        rows = np.reshape(counts, (-1, len(pair)))
        found = np.stack([np.bincount(pair, weights=row, minlength=len(first)) for row in rows])
        return found.reshape(*np.shape(counts)[:-1], len(first)).astype(np.float64)

    @cached_property
    def triples(self) -> Indices:
        """[triples, 3] the cells (i, j), (j, k), (i, k) of three items that were all compared on one prompt."""
        return _triples(self.prompt, self.first, self.second)

    @cached_property
    def pooled_triples(self) -> Indices:
        """[triples, 3] the pairs (i, j), (j, k), (i, k) of three items that were all compared on any prompts."""
        first, second, _ = self.pairs
        return _triples(np.zeros_like(first), first, second)


def can_cycle(votes: Votes) -> Votes:
    """The votes themselves, if they could go in a circle.

    Raises:
        GameError: no three items have all been compared with each other, neither on one prompt nor on several.
    """
    if not len(votes.pooled_triples):
        raise GameError(
            "no three of the items have all been compared with each other, so nothing can go in a circle; "
            "votes on all three pairs of some items are needed."
        )
    return votes


def _triples(group: Indices, first: Indices, second: Indices) -> Indices:
    place: dict[tuple[int, int], dict[int, int]] = {}
    for cell, (g, i, j) in enumerate(zip(group.tolist(), first.tolist(), second.tolist(), strict=True)):
        place.setdefault((g, i), {})[j] = cell
    found = [
        (cell, place[g, j][k], further)
        for (g, _), after in place.items()
        for j, cell in after.items()
        for k, further in after.items()
        if k in place.get((g, j), {})
    ]
    return np.array(found, dtype=np.intp).reshape(-1, 3)


def cycles(wins: Array, decided: Array | Indices, triples: Indices) -> Array:
    """The share of triples whose majorities go in a circle; a majority that is a tie makes no cycle.

    Args:
        wins: [..., cells] votes for the first item.
        decided: [cells] votes that are not ties.
        triples: [triples, 3] the cells (i, j), (j, k), (i, k) of each triple.

    Returns:
        [...]; NaN without triples.
    """
    if not len(triples):
        return np.full(np.shape(wins)[:-1], np.nan)
    ahead = np.sign(2 * wins - decided)[..., triples]
    ij, jk, ik = ahead[..., 0], ahead[..., 1], ahead[..., 2]
    return np.asarray(((ij == jk) & (ij == -ik) & (ij != 0)).mean(-1))
