r"""Measures of how well probabilities of preference fit judgments, beside those of length alone.

A pair (x, y_a, y_b) has a target t = P(y_a > y_b | x) and a prediction p. Predictions of a preference oracle
are antisymmetric, so a pair can be read from either side: as (p, t) or as (1 - p, 1 - t). `accuracy` and
`log_loss` are the same for both. `auc` reads every pair from both sides, so that a side that wins more
often gives nothing away; `auc_as_given` reads it as it stands in the data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats
from scipy.special import expit, xlog1py, xlogy

from sppo.game.intransitivity import cyclic_triples
from sppo.oracle.training.pairs import JudgedPair
from sppo.winrates import Array

BINS = 10
_NEVER_SURE = 1e-12


def measures(
    predicted: Float[Array, " pairs"], target: Float[Array, " pairs"], groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy, AUC, log loss and calibration.

    Args:
        predicted: p in [0, 1].
        target: t in [0, 1]; where it is one half, the pair counts for log loss and calibration alone.
        groups: of each pair, such as the model that was compared; empty: none.

    Returns:
        `pairs`; `accuracy`, where p = 1/2 counts one half; `auc`, `auc_as_given`; `log_loss` in nats;
        `calibration`, a row for each of ten bins of p; `calibration_error`, the bins' mean distance of p
        from t, weighted by their pairs. With groups `within_groups`: means over the groups.
    """
    sure = np.clip(predicted, _NEVER_SURE, 1 - _NEVER_SURE)
    decided = target != 0.5
    p, won = predicted[decided], target[decided] > 0.5
    bins = calibration(predicted, target)
    found: dict[str, Any] = {
        "pairs": len(target),
        "accuracy": _accuracy(p, won),
        "auc": auc(np.concatenate([p, 1 - p]), np.concatenate([won, ~won])),
        "auc_as_given": auc(p, won),
        "log_loss": float(-np.mean(xlogy(target, sure) + xlog1py(1 - target, -sure))),
        "calibration_error": sum(row["pairs"] * abs(row["predicted"] - row["target"]) for row in bins)
        / len(target),
        "calibration": bins,
    }
    if len(groups):
        found["within_groups"] = within_groups(p, won, np.asarray(groups)[decided])
    return found


def auc(score: Float[Array, " pairs"], positive: Any) -> float:
    """Probability that a positive pair scores higher than a negative one, ties half; NaN without both."""
    if positive.all() or not positive.any():
        return float("nan")
    above = stats.mannwhitneyu(score[positive], score[~positive], method="asymptotic").statistic
    return float(above) / (int(positive.sum()) * int((~positive).sum()))


def calibration(predicted: Float[Array, " pairs"], target: Float[Array, " pairs"]) -> list[dict[str, float]]:
    """Mean prediction and mean target of the pairs in each of ten equal bins of the prediction; empty ones left out."""
    number = np.minimum((predicted * BINS).astype(int), BINS - 1)
    return [
        {
            "from": n / BINS,
            "to": (n + 1) / BINS,
            "pairs": int((number == n).sum()),
            "predicted": float(predicted[number == n].mean()),
            "target": float(target[number == n].mean()),
        }
        for n in range(BINS)
        if (number == n).any()
    ]


def within_groups(predicted: Float[Array, " pairs"], won: Any, groups: Any) -> dict[str, Any]:
    """Means over groups: `accuracy`, and of the groups with both outcomes `balanced_accuracy` and `auc`."""
    rows = []
    for name in np.unique(groups):
        p, w = predicted[groups == name], won[groups == name]
        both = w.any() and not w.all()
        balanced = (_accuracy(p[w], w[w]) + _accuracy(p[~w], w[~w])) / 2 if both else float("nan")
        rows.append((_accuracy(p, w), balanced, auc(p, w)))
    accuracies, balances, areas = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    mixed = ~np.isnan(areas)
    return {
        "groups": len(rows),
        "groups_with_both_outcomes": int(mixed.sum()),
        "accuracy": float(accuracies.mean()) if len(rows) else float("nan"),
        "balanced_accuracy": float(balances[mixed].mean()) if mixed.any() else float("nan"),
        "auc": float(areas[mixed].mean()) if mixed.any() else float("nan"),
    }


_MOST_RESPONSES = 12


def cycles_within_prompts(
    pairs: Sequence[JudgedPair],
    number: Mapping[tuple[str, str], int],
    probability: Callable[[Any, Any], Array],
) -> dict[str, int]:
    """How many `triples` of responses to one prompt there are, of the first 12 of each, and how many are `cyclic`.

    Args:
        pairs: whose responses these are.
        number: the number of each prompt with a response.
        probability: P of the responses with the given numbers.
    """
    by_prompt: dict[str, dict[str, None]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, {}).update(dict.fromkeys((pair.response_a, pair.response_b)))
    triples, cyclic = 0, 0
    for prompt, texts in by_prompt.items():
        numbers = np.array([number[prompt, text] for text in texts][:_MOST_RESPONSES])
        k = len(numbers)
        matrix = np.full((k, k), 0.5)
        i, j = np.triu_indices(k, 1)
        matrix[i, j] = probability(numbers[i], numbers[j])
        matrix[j, i] = 1 - matrix[i, j]
        count = math.comb(k, 3)
        triples += count
        cyclic += round(float(cyclic_triples(matrix)) * count)
    return {"triples": triples, "cyclic": cyclic}


class LengthBaseline:
    r"""P(a > b) from the responses' lengths in characters alone: :math:`\sigma(w_1 d + w_2 r)`.

    d is the difference of the lengths in thousands, r that of the logarithms of one more. The weights fit the
    training pairs' log loss; there is no constant, so that the order of the two does not matter.
    """

    def __init__(self, lengths: Float[Array, "pairs 2"], target: Float[Array, " pairs"]) -> None:
        features = self._features(lengths)

        def loss(weights: Array) -> float:
            score = features @ weights
            return float(np.mean(np.logaddexp(0, score) - target * score))

        self.weights: Array = optimize.minimize(loss, np.zeros(2), method="L-BFGS-B").x

    def predict(self, lengths: Float[Array, "pairs 2"]) -> Float[Array, " pairs"]:
        """P(a > b) of pairs by their two lengths."""
        return np.asarray(expit(self._features(lengths) @ self.weights))

    @staticmethod
    def _features(lengths: Float[Array, "pairs 2"]) -> Float[Array, "pairs 2"]:
        return np.stack([(lengths[:, 0] - lengths[:, 1]) / 1000, np.diff(-np.log1p(lengths))[:, 0]], axis=1)


def _accuracy(predicted: Any, won: Any) -> float:
    if not len(won):
        return float("nan")
    return float(np.mean(np.where(predicted == 0.5, 0.5, (predicted > 0.5) == won)))
