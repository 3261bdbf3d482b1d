"""Self-play: run a dynamic on one or many games and keep the policies at chosen times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sppo.game.blackwell import annotators_game
from sppo.game.dynamics.dynamic import Dynamic, Iterate
from sppo.game.dynamics.policies import Policy, as_policy
from sppo.game.preference_games import Array, GameError, preference_game

# Games are played in groups whose matrices fit into a processor's cache, because every step reads all of them.
# On a thousand games of 50 responses this is about twice as fast as stepping through all games at once.
_CACHE_BYTES = 4 << 20


@dataclass(frozen=True)
class Trajectory:
    r"""The policies of self-play that were recorded.

    Attributes:
        name: name of the dynamic.
        times: [records] the number T of steps before each record, increasing.
        last: [records, ..., n] the policy after T steps, :math:`\pi_{T+1}`.
        average: [records, ..., n] the mean of the T policies played,
            :math:`\bar\pi_T = \frac1T \sum_{t=1}^T \pi_t` (Theorem 4.1).
    """

    name: str
    times: npt.NDArray[np.int_]
    last: Array
    average: Array


def play(
    dynamic: Dynamic,
    payoff: npt.ArrayLike,
    iterations: int,
    *,
    initial: npt.ArrayLike | None = None,
    reference: npt.ArrayLike | None = None,
    record: Sequence[int] | None = None,
) -> Trajectory:
    """Let a policy play against itself for some iterations.

    Games are independent. They are played in groups, which does not change the result.

    Args:
        dynamic: a dynamic of sppo.game.dynamics; a parameter that is an array has one value per game, [...].
        payoff: [..., n, n] preference matrices; [..., annotators, n, n] for a dynamic of several annotators.
        iterations: number of steps, at least 1.
        initial: [..., n] the first policy; uniform if not given.
        reference: [..., n] the policy that regularised methods are pulled to; the first policy if not given.
        record: the numbers of steps after which policies are recorded; only the last step if not given.

    Raises:
        ValueError: the payoff is not a preference game, a policy is not one, or a record lies outside of
            1..iterations.
    """
    several = getattr(dynamic, "several_annotators", False)
    game = annotators_game(payoff) if several else preference_game(payoff)
    axes = 3 if several else 2
    batch, n = game.shape[:-axes], game.shape[-1]
    times = np.unique(np.asarray([iterations] if record is None else record, dtype=np.int_))
    if iterations < 1 or not times.size or times[0] < 1 or times[-1] > iterations:
        raise GameError(
            f"record = {times.tolist()} must be steps from 1 to iterations = {iterations}, and iterations at least 1."
        )
    matrices = game.reshape(-1, *game.shape[-axes:])
    start = np.full(n, 1 / n) if initial is None else initial
    first = _per_game(as_policy(start, n, name="initial"), batch)
    anchor = first if reference is None else _per_game(as_policy(reference, n, name="reference"), batch)
    last = np.empty((len(times), len(matrices), n))
    average = np.empty_like(last)
    group_size = max(1, _CACHE_BYTES // matrices[0].nbytes)
    for begin in range(0, len(matrices), group_size):
        group = slice(begin, begin + group_size)
        policy, pull = (Policy(whole.log[group], whole.probability[group]) for whole in (first, anchor))
        iterate = Iterate(policy, pull, number=1, games=np.arange(len(matrices))[group])
        group_dynamic = _for_group(dynamic, group, batch)
        _run(group_dynamic, matrices[group], iterate, times, last[:, group], average[:, group])
    shape = (len(times), *batch, n)
    return Trajectory(dynamic.name, times, last.reshape(shape), average.reshape(shape))


def log_spaced(iterations: int, count: int = 60) -> list[int]:
    """Return about `count` step numbers from 1 to `iterations`, evenly spaced in their logarithm."""
    return sorted({round(t) for t in np.geomspace(1, iterations, count)})


def _run(
    dynamic: Dynamic,
    payoff: Array,
    iterate: Iterate,
    times: npt.NDArray[np.int_],
    last: Array,
    average: Array,
) -> None:
    """Play a group of games and write the recorded policies into `last` and `average`."""
    total = np.zeros_like(iterate.policy.probability)
    row = 0
    for t in range(1, int(times[-1]) + 1):
        total += iterate.policy.probability
        iterate = dynamic.step(iterate, payoff)
        if t == times[row]:
            last[row] = iterate.policy.probability
            average[row] = total / t
            row += 1


def _per_game(policy: Policy, batch: tuple[int, ...]) -> Policy:
    n = policy.log.shape[-1]
    return Policy(*(np.broadcast_to(values, (*batch, n)).reshape(-1, n) for values in policy))


def _for_group(dynamic: Dynamic, group: slice, batch: tuple[int, ...]) -> Dynamic:
    """Restrict those parameters of a dynamic that have one value per game to a group of games."""
    assert dataclasses.is_dataclass(dynamic)
    assert not isinstance(dynamic, type)
    restricted = {
        field.name: np.broadcast_to(value, batch).reshape(-1)[group]
        for field in dataclasses.fields(dynamic)
        if isinstance(value := getattr(dynamic, field.name), np.ndarray) and value.ndim
    }
    return dataclasses.replace(dynamic, **restricted)
