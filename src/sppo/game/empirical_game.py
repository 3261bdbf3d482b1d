"""The game in which policies are the strategies: the checkpoints of one run, or of several.

The payoff is the win rate of one policy against another, measured on prompts. Best responses are sought among
the strategies that were given (the policies, and challengers such as best-of-n samplers), so the gap is a lower
bound on the true one: there may be a better response than any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sppo.game.nash import solve
from sppo.game.preference_games import Array, GameError, policy_weights, preference_game


@dataclass(frozen=True)
class Standing:
    """The standing of one mixture of policies in the game.

    Attributes:
        weights: [m] the mixture.
        exploitability: the best win rate against the mixture minus 1/2, at least zero.
        gap: duality gap, twice the exploitability.
        best_response: name of the policy or challenger that wins most often against the mixture.
        win_rate: win rate of the best response.
        interval: (low, high) of the exploitability over resampled prompts; None without prompts.
    """

    weights: Array
    exploitability: float
    gap: float
    best_response: str
    win_rate: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class EmpiricalGame:
    """The game between policies, its solution, and the two policies that a run could keep.

    Attributes:
        names: names of the m policies.
        payoff: [m, m] win rates.
        nash: the Nash mixture of the policies (the one of greatest entropy if there are several). Its
            exploitability is zero, or positive if a challenger beats it.
        last: the last policy.
        averaged: the mixture that draws one of the averaged policies at random for each prompt.
    """

    names: tuple[str, ...]
    payoff: Array
    nash: Standing
    last: Standing
    averaged: Standing


def empirical_game(
    win_rates: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    averaged: npt.ArrayLike | None = None,
    challengers: npt.ArrayLike | None = None,
    challenger_names: Sequence[str] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> EmpiricalGame:
    """Solve the game between policies.

    Args:
        win_rates: [m, m] the row policy's win rate against the column policy, where the last row is the last
            policy; or [prompts, m, m], one matrix for each prompt, which gives intervals over prompts.
        names: m names; policy 1, 2, ... if not given.
        averaged: [m] weights of the averaged policy; equal weights if not given (Theorem 4.1).
        challengers: [c, m] or [prompts, c, m] win rates of further strategies, such as best-of-n of a policy,
            against the m policies; they can be best responses but have no part in the mixtures.
        challenger_names: c names; challenger 1, 2, ... if not given.
        resamples: number of bootstrap resamples of the prompts.
        confidence: confidence level of the intervals.
        seed: random seed of the resampling.
        tolerance: see preference_game.

    Raises:
        ValueError: the win rates are not a preference game, the challengers have another shape or lie outside of
            [0, 1], or names are missing or repeated.
    """
    game = preference_game(win_rates, tolerance=tolerance)
    if game.ndim > 3:
        raise GameError(f"win_rates is [m, m] or [prompts, m, m]; got shape {game.shape}.")
    m = game.shape[-1]
    others = _challengers(challengers, game)
    policies = _names(names, m, "policy", "names")
    rivals = policies + _names(challenger_names, others.shape[-2], "challenger", "challenger_names")
    answers = np.concatenate([game, others], -2)
    mean_answers = answers.mean(0) if game.ndim == 3 else answers
    payoff = mean_answers[:m]
    if not 0 < confidence < 1:
        raise GameError(f"confidence = {confidence} must be in (0, 1), e.g. 0.95.")
    mixtures = {
        "nash": solve(payoff).policy,
        "last": np.eye(m)[-1],
        "averaged": np.full(m, 1 / m) if averaged is None else policy_weights(averaged, m, name="averaged"),
    }
    resampled = _resampled(answers, resamples, seed) if game.ndim == 3 and resamples > 0 else None
    standings = {
        which: _standing(weights, mean_answers, rivals, resampled, confidence)
        for which, weights in mixtures.items()
    }
    return EmpiricalGame(policies, payoff, **standings)


def _standing(
    weights: Array, answers: Array, rivals: tuple[str, ...], resampled: Array | None, confidence: float
) -> Standing:
    rates = answers @ weights
    best = int(rates.argmax())
    # the mixture ties with itself, so its best response never wins less than 1/2
    exploit = max(float(rates[best]) - 0.5, 0.0)
    interval = None
    if resampled is not None:
        values = np.maximum((resampled @ weights).max(-1) - 0.5, 0.0)
        tail = (1 - confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        interval = (float(low), float(high))
    return Standing(weights, exploit, 2 * exploit, rivals[best], float(rates[best]), interval)


def _resampled(answers: Array, resamples: int, seed: int) -> Array:
    prompts = len(answers)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.asarray(np.tensordot(counts / prompts, answers, 1))


def _challengers(challengers: npt.ArrayLike | None, game: Array) -> Array:
    m = game.shape[-1]
    if challengers is None:
        return np.empty((*game.shape[:-2], 0, m))
    rates = np.array(challengers, dtype=np.float64)
    if rates.ndim != game.ndim or rates.shape[-1] != m or rates.shape[:-2] != game.shape[:-2]:
        raise GameError(
            f"challengers have shape {rates.shape}; expected {[*game.shape[:-2], 'c', m]}, "
            "one row of win rates against the policies for each challenger."
        )
    if not np.all((rates >= 0) & (rates <= 1)):
        bad = np.argwhere(~((rates >= 0) & (rates <= 1)))[0].tolist()
        raise GameError(f"challengers{bad} = {rates[tuple(bad)]} is not a win rate in [0, 1].")
    return rates


def _names(names: Sequence[str] | None, count: int, kind: str, argument: str) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{kind} {i}" for i in range(1, count + 1))
    if len(names) != count or len(set(names)) != count:
        raise GameError(f"{argument} = {list(names)}: expected {count} different names.")
    return tuple(names)
