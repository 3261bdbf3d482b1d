r"""AlpacaEval 2: win rate and length-controlled win rate against a baseline (Dubois et al., arXiv:2404.04475).

A judgment is a preference in [1, 2]: 1 where the baseline is better, 2 where the model is; 0 is an older way of
writing a tie. A regression explains the judgments by the difference in length and by the difficulty of the
instruction, and the length-controlled win rate is its prediction for outputs as long as the baseline's:

.. math:: P(y=1) = \sigma(w_t t + w_d d + w_b), \qquad \mathrm{LC} = 100\,\overline{\sigma(w_d d + w_b)}
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sppo.winrates import Array

GAMED_WEIGHT = 0.1
"""The weight of each row of the gamed baselines: a regularisation of 0.2, shared by two of them."""
FOLDS = 5
INVERSE_PENALTIES = np.logspace(-4, 4, 10)
_SEED = 123
_ROUNDING = 1e-15


class AlpacaEvalError(ValueError):
    """Judgments, outputs or tables of AlpacaEval that cannot be used; the message says why."""


@dataclass(frozen=True)
class LengthControl:
    """The tables that the regression needs beside the judgments; they are published with the benchmark.

    Attributes:
        difficulties: [instructions] difficulty d of each instruction, by its position in the benchmark.
        gamed_lengths: [rows] standardised length differences of two baselines made concise and verbose.
        gamed_difficulties: [rows] difficulty d of the instructions of these rows.
        gamed_wins: [rows] outcome y of these rows, in [0, 1].
    """

    difficulties: Float[Array, " instructions"]
    gamed_lengths: Float[Array, " rows"]
    gamed_difficulties: Float[Array, " rows"]
    gamed_wins: Float[Array, " rows"]


@dataclass(frozen=True)
class Weights:
    """Coefficients of the regression.

    Attributes:
        length: :math:`w_t`, the weight of the difference in length.
        difficulty: :math:`w_d`, the weight of the instruction's difficulty.
        model: :math:`w_b`, the quality of the model at equal length and difficulty 0, in logits.
    """

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        win_rate: the win rate in percent.
        standard_error: its standard error over instructions, in percentage points, as the leaderboard computes it.
        weights: the coefficients of the regression; None for the baseline against itself.
        predictions: [rows] the predicted win for each judgment, as if the output were as long as the baseline's.
    """

    win_rate: float
    standard_error: float
    weights: Weights | None
    predictions: Float[Array, " rows"]


@dataclass(frozen=True)
class WinRate:
    """A win rate in percent and its counts, under the leaderboard's names; a tie counts as half a win.

    Attributes:
        win_rate: the mean of y.
        standard_error: its standard error over instructions, in percentage points.
        n_wins: the number of judgments with y above 1/2.
        n_wins_base: the number of judgments with y below 1/2.
        n_draws: the number of judgments with y = 1/2.
        n_total: the number of judgments; those without a preference are not counted.
        discrete_win_rate: the win rate with each judgment rounded to a win, a loss or a tie.
    """

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


def wins(preferences: Sequence[float | None] | Float[Array, " rows"]) -> Float[Array, " rows"]:
    """The outcome y of each judgment: preference - 1, and 1/2 for a preference of 0; NaN where the judge gave none.

    Raises:
        AlpacaEvalError: a preference is neither 0 nor in [1, 2].
    """
    given = np.array([np.nan if value is None else value for value in preferences], dtype=np.float64)
    wrong = ~(np.isnan(given) | (given == 0) | ((given >= 1) & (given <= 2)))
    if wrong.any():
        row = int(wrong.argmax())
        raise AlpacaEvalError(
            f"judgment {row}: preference = {given[row]:g}; it is 1 (the baseline is better) to 2 (the model is),"
            " or 0 for a tie"
        )
    return np.where(given == 0, 0.5, given - 1)


def win_rate(preferences: Sequence[float | None] | Float[Array, " rows"]) -> WinRate:
    """The win rate against the baseline: 100 mean(y).

    Args:
        preferences: 1 to 2, 0 for a tie, None or NaN where the judge gave none (left out, as the leaderboard does).

    Raises:
        AlpacaEvalError: a preference is out of range, or no judgment has one.
    """
    y = wins(preferences)
    y = y[~np.isnan(y)]
    if not y.size:
        raise AlpacaEvalError("the judge gave no preference at all")
    won, drawn = int((y > 0.5).sum()), int((y == 0.5).sum())
    return WinRate(
        win_rate=float(y.mean() * 100),
        standard_error=_standard_error(y),
        n_wins=won,
        n_wins_base=len(y) - won - drawn,
        n_draws=drawn,
        n_total=len(y),
        discrete_win_rate=(won + drawn / 2) / len(y) * 100,
    )


def length_controlled_win_rate(
    preferences: Sequence[float | None] | Float[Array, " rows"],
    output_lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    control: LengthControl,
    *,
    rows: Sequence[int] | None = None,
) -> LengthControlled:
    r"""The win rate as it would be if all outputs were as long as the baseline's.

    With :math:`D` the baseline's length less the model's in characters, :math:`t = \tanh(D / \mathrm{std}(D))`, a
    logistic regression of y on t, the difficulty d and 1, under an L1 penalty chosen by cross-validation, is fitted;
    the prediction sets t = 0. Rows of two baselines whose outputs were made concise and verbose keep the weight of
    the length in bounds.

    Args:
        preferences: as for :func:`win_rate`.
        output_lengths: lengths of the model's outputs, in characters.
        baseline_lengths: lengths of the baseline's outputs, in characters.
        control: the published difficulties and gamed rows.
        rows: position of each judgment in the published file, where the leaderboard looks the difficulty up; None:
            0, 1, 2, ... That is the instruction's own position except where a file lacks some.

    Raises:
        AlpacaEvalError: the lists have different lengths, a preference is out of range, there are fewer judgments than
            folds, or a row has no difficulty.
    """
    y = wins(preferences)
    if not len(y) == len(output_lengths) == len(baseline_lengths):
        raise AlpacaEvalError(
            f"{len(y)} preferences, {len(output_lengths)} lengths of outputs and {len(baseline_lengths)} of the"
            " baseline's; give one of each for each judgment"
        )
    d = _difficulties(control, range(len(y)) if rows is None else rows, len(y))
    judged = ~np.isnan(y)
    if judged.sum() < FOLDS:
        raise AlpacaEvalError(f"{judged.sum()} judgments; at least {FOLDS} are needed for {FOLDS} folds")
    difference = np.asarray(baseline_lengths, dtype=np.float64) - np.asarray(output_lengths, dtype=np.float64)
    spread = difference.std(ddof=1)
    t = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    gamed = len(control.gamed_wins)
    features = np.concatenate(
        [
            np.column_stack([np.tanh(control.gamed_lengths), control.gamed_difficulties, np.zeros(gamed)]),
            np.column_stack([t, d, np.ones(len(d))])[judged],
        ]
    )
    targets = np.concatenate([control.gamed_wins, y[judged]])
    importance = np.concatenate([np.full(gamed, GAMED_WEIGHT), np.ones(int(judged.sum()))])
    weights = Weights(*map(float, _fit(features, targets, importance)))
    return _predicted(d, weights)


def from_weights(
    control: LengthControl, weights: Weights, rows: Sequence[int] | None = None
) -> LengthControlled:
    """The length-controlled win rate by published coefficients.

    Args:
        control: the table with the difficulties.
        weights: the coefficients of the regression.
        rows: positions of the judgments; None: all instructions.

    Raises:
        AlpacaEvalError: a row has no difficulty.
    """
    positions = range(len(control.difficulties)) if rows is None else rows
    return _predicted(_difficulties(control, positions, len(positions)), weights)


def against_itself(rows: int) -> LengthControlled:
    """The baseline against itself: 50 by construction, without a regression."""
    return LengthControlled(50.0, 0.0, None, np.full(rows, 0.5))


def leaderboard_row(
    raw: WinRate, controlled: LengthControlled, output_lengths: Sequence[int]
) -> dict[str, Any]:
    """The result under the names of the leaderboard's columns."""
    return {
        **asdict(raw),
        "avg_length": int(np.mean(output_lengths)),
        "length_controlled_winrate": controlled.win_rate,
        "lc_standard_error": controlled.standard_error,
    }


def _difficulties(control: LengthControl, rows: Sequence[int], count: int) -> Float[Array, " rows"]:
    if len(rows) != count:
        raise AlpacaEvalError(f"{len(rows)} rows for {count} judgments; give one for each")
    known = len(control.difficulties)
    outside = [row for row in rows if not 0 <= row < known]
    if outside:
        raise AlpacaEvalError(f"row {outside[0]}: the benchmark has difficulties of {known} instructions")
    if len(set(rows)) < len(rows):
        twice = next(row for row in rows if list(rows).count(row) > 1)
        raise AlpacaEvalError(f"row {twice} is there twice; each instruction is judged once")
    return control.difficulties[list(rows)]


def _predicted(difficulties: Float[Array, " rows"], weights: Weights) -> LengthControlled:
    predictions = np.exp(-np.logaddexp(0, -(weights.difficulty * difficulties + weights.model)))
    return LengthControlled(
        float(predictions.mean() * 100), _standard_error(predictions), weights, predictions
    )


def _standard_error(values: Float[Array, " rows"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)) * 100) if len(values) > 1 else 0.0


def _fit(
    features: Float[Array, "rows 3"], targets: Float[Array, " rows"], importance: Float[Array, " rows"]
) -> Float[Array, " 3"]:
    """Fit the regression, and choose its penalty by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    # scikit-learn takes no soft labels: each row stands twice, with label 1 at weight y and label 0 at weight 1 - y,
    # which has the same likelihood; both copies are in the same fold
    doubled = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(features))
    shares = np.concatenate([targets, 1 - targets])
    importance = np.tile(importance, 2)
    groups = np.tile(np.arange(len(features)), 2)

    def fit(penalty: float, chosen: Any) -> Any:
        model = LogisticRegression(
            C=penalty, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=_SEED
        )
        return model.fit(doubled[chosen], labels[chosen], sample_weight=(shares * importance)[chosen])

    def score(penalty: float, train: Any, test: Any) -> float:
        p = np.clip(fit(penalty, train).predict_proba(doubled[test])[:, 1], _ROUNDING, 1 - _ROUNDING)
        y = np.where(labels[test] == 1, shares[test], 1 - shares[test])
        return float(np.mean((y * np.log(p) + (1 - y) * np.log(1 - p)) * importance[test]))

    folds = list(GroupKFold(FOLDS).split(doubled, labels, groups))
    scores = [np.mean([score(penalty, *fold) for fold in folds]) for penalty in INVERSE_PENALTIES]
    best = INVERSE_PENALTIES[int(np.argmax(scores))]
    return np.asarray(fit(best, slice(None)).coef_[0])
