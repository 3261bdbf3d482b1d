"""The protocol of every learning dynamic, and the state that it carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sppo.game.dynamics.policies import Policy
from sppo.game.preference_games import Array


@dataclass(frozen=True, slots=True)
class Iterate:
    r"""The state of self-play before step t.

    Attributes:
        policy: [games, n] :math:`\pi_t`, the opponent of this step.
        reference: [games, n] :math:`\pi_{ref}`, the policy (or magnet) that regularised methods are pulled to;
            other methods ignore it, and only some methods move it.
        number: t, from 1.
        games: [games] index of each row's game in the whole array; sampling is keyed by it.
        win_rates_before: [games, n] win rates of the step before, for methods that extrapolate.
        earlier: the policies before this one, the latest first, for methods that use more than one.
    """

    policy: Policy
    reference: Policy
    number: int
    games: npt.NDArray[np.int64]
    win_rates_before: Array | None = None
    earlier: tuple[Policy, ...] = ()

    def then(self, policy: Policy, **changes: Any) -> Iterate:
        """Return the state before step t + 1, with what the step has changed of the other attributes."""
        forgotten = {"win_rates_before": None, "earlier": ()}
        return replace(self, policy=policy, number=self.number + 1, **(forgotten | changes))


class Dynamic(Protocol):
    """A rule that makes the next policy of self-play from the current one.

    A dynamic is a frozen dataclass of its parameters, each a number or an array with one value per game. Its
    file also has the rule as a pure function `update(policy, payoff, ...)`, and says which loss over a finite set
    of responses has that update as its exact minimiser.
    """

    @property
    def name(self) -> str:
        """The name of the dynamic in tables and figures."""
        ...

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return iterate t + 1 from iterate t, on [games, n, n] preference matrices."""
        ...
