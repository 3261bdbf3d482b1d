r"""The head of a PairRM on a frozen backbone, from hidden states that are computed once for each pair in both orders.

The head is the PairRM's, :math:`f(u) = W_2 \tanh(W_1 u + b_1) + b_2`, with :data:`UNITS` units that are not zero, on the hidden states z
that are standardised over the training pairs. A pair's logit is that of `probability: calibrated`,
:math:`s = \frac12 (M_{ab} - M_{ba})`. With :math:`w_n` the number of judgments and :math:`t_n` the share for a, the loss is

.. math:: \frac{1}{\sum_n w_n} \sum_n w_n (-t_n \log \sigma(s_n) - (1 - t_n) \log(1 - \sigma(s_n)))
    + \frac{\lambda}{2} (\lVert W_1 \rVert^2 + \lVert W_2 \rVert^2),

where the training chooses :math:`\lambda` as for other heads (:mod:`sppo.oracle.training.heads`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sppo import randomness
from sppo.oracle.training.heads import L2, folds, kept, log_loss
from sppo.oracle.training.network import PairRMInputs, PairRMNetwork
from sppo.oracle.training.pairs import JudgedPair
from sppo.progress import Terminal
from sppo.winrates import Array

UNITS = 32
_STEPS, _RATE = 100, 0.02

States = Float[Array, "pairs 2 3 hidden"]
"""The hidden states of each pair in both orders: of the prompt, the first and the second response."""


class Head(nn.Module):
    """The linear layers around the tanh, on standardised hidden states.

    Args:
        hidden: the size of a hidden state.
        seed: draws the weights.
    """

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        units = min(UNITS, hidden)
        self.inner, self.outer = nn.Linear(2 * hidden, units), nn.Linear(units, 1)
        generator = torch.Generator().manual_seed(randomness.seed("train-oracle", seed, "head"))
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.5 / layer.in_features**0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "pairs 2 3 hidden"]) -> Float[Tensor, " pairs"]:
        """The logit of each pair from both orders."""
        source, first, second = x.unbind(2)
        f = [
            self.outer(self.inner(torch.cat([source, candidate], -1)).tanh()) for candidate in (first, second)
        ]
        margin: Tensor = (f[0] - f[1]).squeeze(-1)
        return (margin[:, 0] - margin[:, 1]) / 2

    def penalty(self) -> Tensor:
        """The squared norm of both matrices."""
        return self.inner.weight.square().sum() + self.outer.weight.square().sum()


class Trained(NamedTuple):
    """A trained head.

    Attributes:
        head: the head, on standardised hidden states.
        mean: [hidden] of the hidden states of the training pairs.
        scale: [hidden] their standard deviation.
        l2: the strength of the penalty.
        cross_validation: the mean log loss by strength.
    """

    head: Head
    mean: Array
    scale: Array
    l2: float
    cross_validation: dict[str, float]

    def probability(self, states: States) -> Float[Array, " pairs"]:
        """P(a > b) of pairs by their hidden states."""
        return _probability(self.head, _standardised(states, self.mean, self.scale))


def features(
    network: PairRMNetwork,
    inputs: PairRMInputs,
    pairs: Sequence[JudgedPair],
    folder: Path,
    terminal: Terminal,
) -> States:
    """The hidden states of all pairs; parts that are in the folder from an interrupted training are read."""
    network.eval()

    def compute(chosen: Sequence[int]) -> Array:
        found = []
        for number in chosen:
            batch = inputs.collate([inputs.item(pairs[number], swapped, 1.0) for swapped in (False, True)])
            found.append(network.rows(batch).numpy())
        return np.stack(found)

    order = sorted(range(len(pairs)), key=lambda number: pairs[number].characters)
    return kept(order, compute, folder, terminal, "pairs")


def fit(states: States, pairs: Sequence[JudgedPair], seed: int) -> Trained:
    """Fit a head to judged pairs."""
    mean, scale = states.mean((0, 1, 2)), states.std((0, 1, 2))
    scale = np.where(scale > 0, scale, 1)
    x = _standardised(states, mean, scale)
    target = np.array([pair.probability for pair in pairs])
    weight = np.array([pair.judgments for pair in pairs], dtype=np.float64)
    fold = folds(pairs, seed)
    losses: dict[str, float] = {}
    for l2 in L2:
        predicted = np.empty(len(pairs))
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            head = _fitted(x[inside], target[inside], weight[inside], l2, seed)
            predicted[outside] = _probability(head, x[outside])
        losses[f"{l2:g}"] = log_loss(predicted, target, weight)
    l2 = min(L2, key=lambda strength: losses[f"{strength:g}"])
    return Trained(_fitted(x, target, weight, l2, seed), mean, scale, l2, losses)


def place(trained: Trained, network: PairRMNetwork) -> None:
    """Put a trained head into the network, whose hidden states are not standardised; its other units are zero."""
    inner, outer = trained.head.inner, trained.head.outer
    mean, scale = (
        torch.tensor(np.tile(values, 2), dtype=torch.float32) for values in (trained.mean, trained.scale)
    )
    first, last = (layer for layer in network.head_layer if isinstance(layer, nn.Linear))
    units = len(inner.bias)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[:units] = inner.weight / scale
        first.bias[:units] = inner.bias - (inner.weight / scale) @ mean
        last.weight[:, :units] = outer.weight
        last.bias.copy_(outer.bias)


def _standardised(states: States, mean: Array, scale: Array) -> Tensor:
    return torch.tensor((states - mean) / scale, dtype=torch.float32)


def _probability(head: Head, x: Tensor) -> Array:
    with torch.inference_mode():
        return np.asarray(head(x).sigmoid().double().numpy())


def _fitted(x: Tensor, target: Any, weight: Any, l2: float, seed: int) -> Head:
    head = Head(x.shape[-1], seed)
    t, w = (torch.tensor(values, dtype=torch.float32) for values in (target, weight / weight.mean()))
    optimizer = torch.optim.Adam(head.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        loss = binary_cross_entropy_with_logits(head(x), t, w) + l2 / 2 * head.penalty()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return head
