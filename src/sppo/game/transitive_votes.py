r"""Do majorities of votes go in circles more often than those of a transitive world with as many votes?

Few votes on each pair make cycles by chance, even if every response has one strength. So the cycles of votes are compared
with those of simulated votes, as many on each pair, from a transitive model. It is Bradley-Terry with ties (Davidson, 1970),
in which a vote on prompt x that is not a tie prefers item i to item j with probability

.. math:: \sigma\big(\theta_i - \theta_j + u_{xi} - u_{xj}\big), \qquad u_{xi} \sim N(0, \tau^2)

where theta is an item's strength over all prompts and u what its response to this prompt has beyond that. Given which votes
are ties this is exactly Davidson's model, so ties stay ties in the simulation.

Votes are taken as independent given the strengths. Votes of one voter on several pairs of a prompt are not, so a small
p-value should be looked at again with one vote of each voter on a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, xlogy

from sppo.game.preference_games import Array
from sppo.game.votes import Indices, Votes, can_cycle, cycles

PRIOR = 1e-2
"""The precision of the prior of a strength, in 1/nats^2: it keeps the strength of an item that always wins finite."""
LARGEST = 8.0
"""The largest spread of strengths that is told apart from votes without any noise, in nats."""
LEAST_NOISE = 0.05
"""The smallest variance of a vote in the weights of a dispersion, so that no surprising vote outweighs all others."""
_TUNING = 40
_VOTES_AT_ONCE = 500_000


def fit_strengths(
    wins: Array, decided: Array, first: Indices, second: Indices, items: int, *, prior: float = PRIOR
) -> Array:
    r"""The most probable strengths of items by numbers of victories, with :math:`\theta_i \sim N(0, 1/\text{prior})`.

    Args:
        wins: [..., pairs] victories of the first item, not necessarily whole numbers.
        decided: [pairs] comparisons of the pair.
        first: [pairs] the first item.
        second: [pairs] the second item.
        items: the number of items.
        prior: the precision of the prior.

    Returns:
        [..., items] strengths in nats, with mean zero.
    """
    strength = np.zeros((*wins.shape[:-1], items))
    signs = np.zeros((len(first), items))
    signs[np.arange(len(first)), first] = 1
    signs[np.arange(len(first)), second] = -1
    diagonal = np.arange(items)
    for _ in range(100):
        chance = expit(strength[..., first] - strength[..., second])
        surplus = (wins - decided * chance) @ signs - prior * strength
        weight = decided * chance * (1 - chance)
        information = np.zeros((*wins.shape[:-1], items, items))
        information[..., first, second] = information[..., second, first] = -weight
        information[..., diagonal, diagonal] = weight @ np.abs(signs) + prior
        step = np.linalg.solve(information, surplus[..., None])[..., 0]
        spread = np.ptp(step, axis=-1, keepdims=True)
        # damped as in sppo.game.bradley_terry, Newton's method descends from anywhere
        strength = strength + step * np.where(spread > 1e-6, np.log1p(spread) / np.maximum(spread, 1e-6), 1.0)
        if spread.max() < 1e-9:
            break
    return strength


@dataclass(frozen=True)
class Transitive:
    """The transitive model of some votes.

    Attributes:
        strength: [items] theta in nats.
        spread: tau in nats, by which an item's strength differs between prompts; at LARGEST there is no noise to speak of.
    """

    strength: Array
    spread: float

    def simulate(self, votes: Votes, sets: int, generator: np.random.Generator) -> Array:
        """[sets, cells] victories of the first item, in as many votes on each cell as there were."""
        responses, response = np.unique(_responses(votes), return_inverse=True)
        draws = generator.random((sets, int(votes.decided.sum())))
        own = self.spread * generator.standard_normal((sets, len(responses)))
        of_first, of_second = response.reshape(2, -1)
        strength = self.strength[votes.first] - self.strength[votes.second]
        asked = np.flatnonzero(votes.decided)
        chance = expit(strength + own[:, of_first] - own[:, of_second])[:, asked]
        # a uniform number for each vote, not for each count, so that a small change of the model changes few votes
        starts = np.concatenate([[0], np.cumsum(votes.decided[asked])[:-1]])
        wins = np.zeros((sets, len(votes.decided)))
        won = draws < np.repeat(chance, votes.decided[asked], axis=1)
        wins[:, asked] = np.add.reduceat(won.astype(np.float64), starts, axis=1)
        return wins


def fit_transitive(votes: Votes, *, seed: int = 0) -> Transitive:
    """Fit the transitive model by matching moments of simulated votes, neither of which depends on cycles.

    The moments are the spread of the strengths that are fitted to all prompts together, and the dispersion around them of an
    item's victories on a prompt. The likelihood of strengths of each prompt's own would not do instead: with one to three
    votes on a pair it takes noise for differences between responses, and then makes too few cycles.
    """
    wanted = _moments(votes, votes.wins[None].astype(np.float64))
    strength = _pooled_fit(votes, votes.wins.astype(np.float64))

    def model(parameters: Array) -> Transitive:
        # a parameter is 1 more than its value, since the steps of the numerical derivative are in proportion to it
        scale, spread = parameters - 1
        return Transitive(scale * strength, float(spread))

    def misfit(parameters: Array) -> Array:
        simulated = model(parameters).simulate(votes, _TUNING, np.random.default_rng(seed))
        return np.asarray(np.log(_moments(votes, simulated) / wanted))

    bounds = [1.0, 1.0], [np.inf, 1 + LARGEST]
    return model(least_squares(misfit, [2.2, 2.0], bounds=bounds, diff_step=0.1, xtol=1e-2, max_nfev=20).x)


def _responses(votes: Votes) -> Indices:
    """[2, cells] a number for the prompt with the first item, and for the prompt with the second."""
    return votes.prompt * len(votes.items) + np.stack([votes.first, votes.second])


def _pooled_fit(votes: Votes, wins: Array) -> Array:
    first, second, _ = votes.pairs
    return fit_strengths(votes.pooled(wins), votes.pooled(votes.decided), first, second, len(votes.items))


def _moments(votes: Votes, wins: Array) -> Array:
    """The mean square of the fitted strengths, and the dispersion of the victories of responses around them.

    The dispersion is the mean square of a response's surplus of victories, over what it is about if strengths spread by 1
    nat. A response with a single vote is left out, because its square says nothing about what votes have in common.
    """
    strength = _pooled_fit(votes, wins)
    chance = expit(strength[:, votes.first] - strength[:, votes.second])
    noise = votes.decided * np.maximum(chance * (1 - chance), LEAST_NOISE)
    group = _responses(votes).ravel()
    several = np.bincount(group, np.tile(votes.decided, 2)) > 1
    dispersion = 0.0
    for surplus, variance in zip(wins - votes.decided * chance, noise, strict=True):
        sums = np.bincount(group, np.concatenate([surplus, -surplus]))[several]
        expected = np.bincount(group, np.tile(variance, 2))[several]
        dispersion += float((sums**2 / (expected + expected**2)).sum())
    return np.maximum([(strength**2).mean(), dispersion / (len(wins) * max(1, several.sum()))], 1e-9)


@dataclass(frozen=True)
class Against:
    """A figure of the votes beside that of simulated transitive votes.

    Attributes:
        found: the votes' own.
        expected: the mean of the simulated ones.
        low: the lower end of the interval that holds 95% of the simulated ones.
        high: its upper end.
        p: the two-sided p-value.
    """

    found: float
    expected: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, found: float, simulated: Array) -> Against:
        """Compare a figure with simulated ones; all is NaN if the figure is."""
        if np.isnan(found):
            return cls(*[float("nan")] * 5)
        low, high = np.quantile(simulated, [0.025, 0.975])
        # the votes count as one of the sets, so that no p-value is zero
        tails = [1 + (simulated <= found).sum(), 1 + (simulated >= found).sum()]
        p = min(1.0, 2 * min(tails) / (len(simulated) + 1))
        return cls(float(found), float(simulated.mean()), float(low), float(high), float(p))


@dataclass(frozen=True)
class CycleTest:
    """What a transitive world with as many votes would show.

    Attributes:
        model: the transitive model.
        triples: the number of triples that were all compared on one prompt.
        cyclic: the share of them whose majorities go in a circle.
        pooled_triples: the number of triples of items that were all compared on any prompts.
        pooled_cyclic: the share of them whose majorities of all votes go in a circle.
        lost: what the Bradley-Terry fit to all prompts together loses against free win rates of the pairs on the very
            same votes, in nats per vote that is not a tie; twice this, times the votes, is the fit's deviance.
    """

    model: Transitive
    triples: int
    cyclic: Against
    pooled_triples: int
    pooled_cyclic: Against
    lost: Against


def cycle_test(votes: Votes, *, sets: int = 1000, seed: int = 0) -> CycleTest:
    """Compare the cycles of votes, and what a Bradley-Terry fit loses on them, with those of transitive votes.

    Args:
        votes: the votes.
        sets: the number of simulated sets of votes.
        seed: random seed of the simulation.

    Raises:
        GameError: no three items have all been compared with each other, neither on one prompt nor on several.
    """
    can_cycle(votes)
    model = fit_transitive(votes, seed=seed)
    generator = np.random.default_rng([seed, 1])
    at_once = max(1, min(sets, _VOTES_AT_ONCE // int(votes.decided.sum())))
    simulated = [
        _figures(votes, model.simulate(votes, min(at_once, sets - begun), generator))
        for begun in range(0, sets, at_once)
    ]
    found = _figures(votes, votes.wins[None].astype(np.float64))[:, 0]
    cyclic, pooled, lost = map(Against.of, found, np.concatenate(simulated, axis=1))
    return CycleTest(model, len(votes.triples), cyclic, len(votes.pooled_triples), pooled, lost)


def _figures(votes: Votes, wins: Array) -> Array:
    """[3, sets] the share of cycles within prompts and over prompts, and what a Bradley-Terry fit loses."""
    pooled, decided = votes.pooled(wins), votes.pooled(votes.decided)
    first, second, _ = votes.pairs
    strength = fit_strengths(pooled, decided, first, second, len(votes.items))
    lost = log_loss(pooled, decided, strength[:, first] - strength[:, second]) - log_loss(pooled, decided)
    return np.stack(
        [
            cycles(wins, votes.decided, votes.triples),
            cycles(pooled, decided, votes.pooled_triples),
            lost / decided.sum(),
        ]
    )


def log_loss(wins: Array | Indices, decided: Array | Indices, log_odds: Array | None = None) -> Array:
    """The summed log loss in nats, [..., pairs] to [...]; without log-odds it is that of the pairs' own win rates."""
    losses = decided - wins
    if log_odds is None:
        chance = wins / np.maximum(decided, 1)
        return np.asarray(-(xlogy(wins, chance) + xlogy(losses, 1 - chance)).sum(-1))
    return np.asarray((wins * np.logaddexp(0, -log_odds) + losses * np.logaddexp(0, log_odds)).sum(-1))
