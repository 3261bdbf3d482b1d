r"""Arena-Hard's style control: the score of a model at the average difference of style from the baseline.

A judge may prefer what is longer or has more headings, lists and bold words. The benchmark fits one Bradley-Terry model over
the games of all models against the baseline, with four differences of style as further features:

.. math::

    P(\text{model } m \text{ wins game } g) = \sigma(\beta_m + \gamma^T z_g),

where :math:`z_g` are the differences below, each with its mean over all games subtracted and divided by its standard deviation.
The score is :math:`\sigma(\beta_m)` in percent. For lengths :math:`l` in tokens the difference is :math:`(l_m - l_b) / (l_m +
l_b)`; for headings, lists and bold words, of which :math:`d` is the number per token, it is :math:`(d_m - d_b) / (d_m + d_b + 1)`.

The counts are those of the files of responses (`metadata` or `conv_metadata`). Where these have none, Markdown is counted here,
by a parser and not by the benchmark's expressions, which count lines of code as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sppo.benchmarks.arena_hard.score import count_games
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.question_files import Id, ModelResponses
from sppo.winrates import Array

FEATURES = ("length", "headings", "lists", "bold words")
_COUNTED = ("header_count", "list_count", "bold_count")
_ROUNDS = 100


@dataclass(frozen=True)
class StyleScore:
    """A model's score under style control.

    Attributes:
        style_win_rate: the probability of beating the baseline at the average difference of style, in percent.
        style_low: the lower end of the 95% interval, a bootstrap over questions.
        style_high: its upper end.
        style_weights: the fitted weight of each of :data:`FEATURES`, of all models together.
    """

    style_win_rate: float
    style_low: float
    style_high: float
    style_weights: dict[str, float]


@dataclass(frozen=True)
class Games:
    """The games of one model.

    Attributes:
        wins: the games won on each question; strong verdicts count three times and ties one half.
        losses: the games lost, likewise.
        differences: for each question the four differences of style from the baseline.
    """

    wins: Float[Array, " questions"]
    losses: Float[Array, " questions"]
    differences: Float[Array, "questions 4"]


def style(responses: ModelResponses, question: Id) -> list[float]:
    """The tokens, headings, items of lists and bold words of a response.

    Raises:
        OutputsError: there is no such response, or its tokens are not counted.
    """
    if question not in responses.turns:
        raise OutputsError(f"style control needs the response of {responses.model} to question {question}")
    if question not in responses.tokens:
        raise OutputsError(
            f"style control needs the number of tokens in the response of {responses.model} to question {question}"
            " (`metadata.token_len` of its row)"
        )
    found = responses.metadata.get(question, {})
    recorded = [found.get(name) for name in _COUNTED]
    counts = [
        sum(of.values()) if isinstance(of, dict) else of for of in recorded if isinstance(of, dict | int)
    ]
    if len(counts) < len(_COUNTED):
        counts = _markdown("\n\n".join(responses.turns[question]))
    return [float(responses.tokens[question]), *map(float, counts)]


def _markdown(text: str) -> list[int]:
    """The numbers of headings, of items of lists, and of bold spans."""
    from markdown_it import MarkdownIt

    tokens = [part for token in MarkdownIt().parse(text) for part in (token, *(token.children or []))]
    return [
        sum(token.type == kind for token in tokens)
        for kind in ("heading_open", "list_item_open", "strong_open")
    ]


def games(
    verdicts: Mapping[Id, Sequence[str | None]], model: ModelResponses, baseline: ModelResponses
) -> Games:
    """The games of a file of judgments, with the differences of style; questions without a verdict are left out.

    Raises:
        OutputsError: as for :func:`style`.
    """
    counts = count_games(list(verdicts.values()))
    judged = np.asarray(counts.any(axis=1))
    styles = [
        [style(responses, question) for responses in (model, baseline)]
        for question, has_verdict in zip(verdicts, judged, strict=True)
        if has_verdict
    ]
    ours, theirs = np.moveaxis(np.array(styles, dtype=float).reshape(-1, 2, len(FEATURES)), 1, 0)
    won, tied, lost = counts[judged].T
    return Games(won + tied / 2, lost + tied / 2, differences(ours, theirs))


def differences(
    model: Float[Array, "questions 4"], baseline: Float[Array, "questions 4"]
) -> Float[Array, "questions 4"]:
    """The differences of style, from the tokens, headings, items and bold words of both responses; empty ones count one token."""
    ours, theirs = (np.maximum(counts[:, :1], 1) for counts in (model, baseline))
    by_length = (ours - theirs) / (ours + theirs)
    own_density, their_density = model[:, 1:] / ours, baseline[:, 1:] / theirs
    return np.hstack([by_length, (own_density - their_density) / (own_density + their_density + 1)])


def style_scores(models: Sequence[Games], *, seed: int, confidence: float = 0.95) -> list[StyleScore]:
    """The scores of models under style control; the weights of style are fitted on the games of all of them.

    Args:
        models: the games of each model.
        seed: the random seed of the resampling of questions.
        confidence: the level of the intervals.
    """
    generator, tail = np.random.default_rng(seed), (1 - confidence) / 2
    whole = _fit(models)
    resampled = np.array(
        [_fit([_resampled(of_model, generator) for of_model in models]) for _ in range(_ROUNDS)]
    )
    low, high = np.quantile(_percent(resampled), [tail, 1 - tail], axis=0)
    weights = dict(zip(FEATURES, whole[len(models) :].tolist(), strict=True))
    return [
        StyleScore(float(_percent(whole)[number]), float(low[number]), float(high[number]), weights)
        for number in range(len(models))
    ]


def _resampled(of_model: Games, generator: np.random.Generator) -> Games:
    chosen = generator.integers(len(of_model.wins), size=len(of_model.wins))
    return Games(of_model.wins[chosen], of_model.losses[chosen], of_model.differences[chosen])


def _fit(models: Sequence[Games]) -> Float[Array, " models+4"]:
    """The strength of each model and the weight of each feature, by maximum likelihood."""
    from sklearn.linear_model import LogisticRegression

    counts = np.concatenate([of_model.wins + of_model.losses for of_model in models])
    style = np.concatenate([of_model.differences for of_model in models])
    mean = np.average(style, axis=0, weights=counts)
    variance = counts @ (style - mean) ** 2 / max(counts.sum() - 1, 1)
    # A feature that never varies, such as headings where nobody writes any, says nothing.
    scaled = np.where(variance > 0, (style - mean) / np.sqrt(np.where(variance > 0, variance, 1)), 0.0)
    owners = np.repeat(np.eye(len(models)), [len(of_model.wins) for of_model in models], axis=0)
    features = np.hstack([owners, scaled])
    wins, losses = (
        np.concatenate([getattr(of_model, name) for of_model in models]) for name in ("wins", "losses")
    )
    # The tiny penalty keeps the strength of a model that wins every game finite; it moves others in the sixth digit.
    fitted = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-9, max_iter=1000).fit(
        np.vstack([features, features]),
        np.repeat([1, 0], len(features)),
        sample_weight=np.concatenate([wins, losses]),
    )
    return np.asarray(fitted.coef_[0])


def _percent(coefficients: Float[Array, "*rounds models+4"]) -> Float[Array, "*rounds models"]:
    return np.asarray(100 / (1 + np.exp(-coefficients[..., : -len(FEATURES)])))
