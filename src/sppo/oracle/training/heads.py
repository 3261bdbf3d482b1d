r"""Heads on a frozen backbone: a reward model, or a general preference model, from features that are computed once.

With t_n the judgment and P_n the probability by the head, a head minimises

.. math:: -\frac{1}{\sum_n w_n} \sum_n w_n (t_n \log P_n + (1 - t_n) \log(1 - P_n)) + \frac{\lambda}{2} \lVert u \rVert^2,

where u is the head's weight times the features' standard deviations. On a pair with votes, w_n is their number and t_n the share of them for
the first response, a tie counting one half: up to a constant the likelihood of the counts. Elsewhere w_n = 1. :math:`\lambda` is the one of
:data:`L2` with the least log loss in cross-validation, by prompts, on the training pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize
from scipy.special import expit

from sppo import randomness
from sppo.oracle.general_preference import skew_product
from sppo.oracle.training.backbones import TAU, Backbone, Features, Weight
from sppo.oracle.training.pairs import JudgedPair
from sppo.progress import Terminal
from sppo.recipe.oracle_training import Head
from sppo.winrates import Array

L2 = (1e-3, 1e-2, 1e-1, 1.0)
_FOLDS, _TEXTS, _STEPS, _RATE = 4, 64, 200, 0.05


class Trained(NamedTuple):
    """A trained head.

    Attributes:
        probability: P(a > b) of the responses with the given numbers, among the texts whose features were computed.
        weight: [1, H] of a reward model, [d, H] of a general preference model.
        l2: the strength of the penalty.
        cross_validation: the mean log loss by strength.
    """

    probability: Callable[[Any, Any], Array]
    weight: Weight
    l2: float
    cross_validation: dict[str, float]


class Texts:
    """The distinct exchanges of some pairs, and their features.

    Args:
        pairs: the pairs.
    """

    def __init__(self, pairs: Sequence[JudgedPair]) -> None:
        both = [(pair.prompt, text) for pair in pairs for text in (pair.response_a, pair.response_b)]
        self.exchanges = list(dict.fromkeys(both))
        self.number = {exchange: n for n, exchange in enumerate(self.exchanges)}

    def of(self, pairs: Sequence[JudgedPair]) -> tuple[Any, Any]:
        """The numbers of the two responses of each pair."""
        first = [self.number[pair.prompt, pair.response_a] for pair in pairs]
        return np.array(first), np.array([self.number[pair.prompt, pair.response_b] for pair in pairs])

    def features(self, backbone: Backbone, folder: Path, terminal: Terminal) -> Features:
        """The features; parts that are in the folder from an interrupted training are read."""
        order = sorted(range(len(self.exchanges)), key=lambda n: sum(map(len, self.exchanges[n])))

        def compute(chosen: Sequence[int]) -> Features:
            exchanges = [self.exchanges[n] for n in chosen]
            return backbone.features([prompt for prompt, _ in exchanges], [text for _, text in exchanges])

        return kept(order, compute, folder, terminal, "texts")


def kept(
    order: Sequence[int],
    compute: Callable[[Sequence[int]], Array],
    folder: Path,
    terminal: Terminal,
    unit: str,
) -> Array:
    """Features in their own order, computed in the given one and kept on the disk part by part.

    Args:
        order: the numbers of all features, in the order in which they are computed.
        compute: the features with the given numbers.
        folder: where the parts are kept; those that are there from an interrupted training are read.
        terminal: where progress is shown.
        unit: what is counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with terminal.bar("features", len(order), unit) as advance:
        for start in range(0, len(order), _TEXTS):
            path = folder / f"{start}.npy"
            chosen = order[start : start + _TEXTS]
            if not path.is_file():
                temporary = path.with_name(f".{start}.tmp.npy")
                np.save(temporary, compute(chosen).astype(np.float32))
                os.replace(temporary, path)
            parts.append(np.load(path))
            advance(len(chosen))
    computed = np.concatenate(parts).astype(np.float64)
    features = np.empty_like(computed)
    features[order] = computed
    return features


def fit(head: Head, texts: Texts, features: Features, pairs: Sequence[JudgedPair], seed: int) -> Trained:
    """Fit a head to judged pairs."""
    a, b = texts.of(pairs)
    target = np.array([pair.probability for pair in pairs])
    weight = np.array([pair.judgments for pair in pairs], dtype=np.float64)
    used = np.unique(np.concatenate([a, b]))
    scale = features[used].std(axis=0)
    scaled = features / np.where(scale > 0, scale, 1)
    fitted = _bradley_terry if head.type == "reward_model" else _skew_symmetric

    def probability(u: Weight) -> Callable[[Any, Any], Array]:
        return lambda first, second: _probability(head, scaled[first] @ u.T, scaled[second] @ u.T)

    def trained_on(places: Any, l2: float) -> Weight:
        return fitted(head, scaled[a[places]], scaled[b[places]], target[places], weight[places], l2, seed)

    fold = folds(pairs, seed)
    losses: dict[str, float] = {}
    for l2 in L2 if head.l2 is None else ():
        predicted = np.empty(len(pairs))
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            predicted[outside] = probability(trained_on(inside, l2))(a[outside], b[outside])
        losses[f"{l2:g}"] = log_loss(predicted, target, weight)
    l2 = head.l2 if head.l2 is not None else min(L2, key=lambda strength: losses[f"{strength:g}"])
    u = trained_on(np.arange(len(pairs)), l2)
    return Trained(probability(u), u / np.where(scale > 0, scale, 1), l2, losses)


def folds(pairs: Sequence[JudgedPair], seed: int) -> Any:
    """The fold of each pair; all pairs of a prompt are in one."""
    prompts = sorted({pair.prompt for pair in pairs}, key=lambda text: randomness.digest("folds", seed, text))
    number = {prompt: n % min(_FOLDS, len(prompts)) for n, prompt in enumerate(prompts)}
    return np.array([number[pair.prompt] for pair in pairs])


def log_loss(predicted: Array, target: Array, weight: Array) -> float:
    """The mean cross entropy of predictions in nats, each pair by its weight."""
    sure = np.clip(predicted, 1e-12, 1 - 1e-12)
    return float(-np.average(target * np.log(sure) + (1 - target) * np.log(1 - sure), weights=weight))


def _probability(head: Head, first: Array, second: Array) -> Array:
    if head.type == "reward_model":
        return np.asarray(expit(first - second)[..., 0])

    def normalized(v: Array) -> Array:
        return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))

    return np.asarray(expit(skew_product(normalized(first), normalized(second)) / TAU))


def _bradley_terry(
    head: Head, first: Array, second: Array, target: Array, weight: Array, l2: float, seed: int
) -> Weight:
    """The weight [1, H] of a reward; the problem is convex."""
    difference = first - second
    share = weight / weight.sum()

    def loss(u: Array) -> tuple[float, Array]:
        score = difference @ u
        value = share @ (np.logaddexp(0, score) - target * score) + l2 / 2 * u @ u
        return float(value), difference.T @ (share * (expit(score) - target)) + l2 * u

    found = optimize.minimize(loss, np.zeros(difference.shape[1]), jac=True, method="L-BFGS-B").x
    return np.asarray(found)[None]


def _skew_symmetric(
    head: Head, first: Array, second: Array, target: Array, weight: Array, l2: float, seed: int
) -> Weight:
    """The weight [d, H] of the embeddings of a general preference model."""
    import torch

    generator = torch.Generator().manual_seed(randomness.seed("train-oracle", seed, "head"))
    u = torch.randn(head.dimensions, first.shape[1], generator=generator) / first.shape[1]
    u.requires_grad_()
    share = weight / weight.mean()
    a, b, t, w = (torch.tensor(values, dtype=torch.float32) for values in (first, second, target, share))
    optimizer = torch.optim.Adam([u], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        embedded = (torch.nn.functional.normalize(values @ u.T, dim=-1) for values in (a, b))
        score = skew_product(*embedded) / TAU
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, t, w) + l2 / 2 * u.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return np.asarray(u.detach().double().numpy())
