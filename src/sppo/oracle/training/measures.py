r"""Measures of how well probabilities of preference fit judgments, beside those of length alone.

A pair (x, y_a, y_b) has a target t = P(y_a > y_b | x) and a prediction p. Predictions of a preference oracle
are antisymmetric, so a pair can be read from either side: as (p, t) or as (1 - p, 1 - t). `accuracy` and
`log_loss` are the same for both. `auc` reads every pair from both sides, so that a side that wins more
often gives nothing away; `auc_as_given` reads it as it stands in the data.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats
from scipy.special import expit, xlog1py, xlogy

from sppo.game.votes import Ballot, Votes, cycles
from sppo.oracle.training.pairs import JudgedPair, unfolded
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


def cycles_within_prompts(pairs: Sequence[JudgedPair], predicted: Float[Array, " pairs"]) -> dict[str, int]:
    """How many triples of responses to one prompt go round, among those whose three pairs were all judged.

    Args:
        pairs: the pairs.
        predicted: P(a is preferred) of each.

    Returns:
        `triples`; `cyclic`, by the predictions; `judged_cyclic`, by the majorities of the judgments.
    """
    number, target = unfolded(pairs)
    if not (target != 0.5).any():
        return {"triples": 0, "cyclic": 0, "judged_cyclic": 0}
    ballots: list[Ballot] = [
        (pairs[n].prompt, "", pairs[n].response_a, pairs[n].response_b, (np.sign(t - 0.5) + 1) / 2)
        for n, t in zip(number, target, strict=True)
        if pairs[n].response_a != pairs[n].response_b
    ]
    votes = Votes.of(ballots)
    prompts = list(dict.fromkeys(prompt for prompt, *_ in ballots))
    known = {
        (pair.prompt, pair.response_a, pair.response_b): p for pair, p in zip(pairs, predicted, strict=True)
    }
    known |= {(prompt, b, a): 1 - p for (prompt, a, b), p in known.items()}
    cells = zip(votes.prompt, votes.first, votes.second, strict=True)
    p = np.array([known[prompts[x], votes.items[i], votes.items[j]] for x, i, j in cells])
    count = len(votes.triples)
    shares = [
        cycles(p, np.ones_like(p), votes.triples),
        cycles(votes.wins.astype(np.float64), votes.decided, votes.triples),
    ]
    cyclic, judged = (round(float(share) * count) if count else 0 for share in shares)
    return {"triples": count, "cyclic": cyclic, "judged_cyclic": judged}


class LengthBaseline:
    r"""P(a > b) from the responses' lengths in characters alone: :math:`\sigma(w_1 d + w_2 r)`.

    d is the difference of the lengths in thousands, r that of the logarithms of one more. The weights fit the
    training pairs' log loss, each pair as often as it was judged; there is no constant, so that the order of the two does
    not matter.
    """

    def __init__(
        self,
        lengths: Float[Array, "pairs 2"],
        target: Float[Array, " pairs"],
        judgments: Float[Array, " pairs"] | None = None,
    ) -> None:
        features = self._features(lengths)

        def loss(weights: Array) -> float:
            score = features @ weights
            return float(np.average(np.logaddexp(0, score) - target * score, weights=judgments))

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
