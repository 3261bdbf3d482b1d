r"""Arena-Hard v0.1 (Li et al., arXiv:2406.11939): two games for each question against a baseline, with five verdicts.

A strong verdict counts as three games, a tie as half a win, and the score is the Bradley-Terry probability of beating
the baseline in percent. The benchmark fits it by a logistic regression without a penalty. Where every game is against the
baseline, the solution is the weighted share of wins, :math:`(W + T/2)/(W + T + L)`, which is computed here: it also exists
for a model that wins or loses all games.

The benchmark's own interval resamples games. The two games of a question are not independent, and a strong verdict
counts as three games at once, so that this interval is too narrow: the interval over questions resamples questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sppo.benchmarks.outputs import OutputsError
from sppo.winrates import Array

STRONG = 3
"""The number of games that a strong verdict counts as."""
VERDICTS = {"A>>B": STRONG, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -STRONG}
"""The number of games that A wins by each verdict; negative numbers are games that B wins."""


@dataclass(frozen=True)
class Score:
    """A model's score.

    Attributes:
        win_rate: the probability of beating the baseline, in percent.
        low: the lower end of the benchmark's 95% interval, a bootstrap over games.
        high: its upper end.
        question_low: the lower end of the 95% interval over questions.
        question_high: its upper end.
        wins: the number of games won, strong verdicts counted three times.
        ties: the number of ties.
        losses: the number of games lost, strong verdicts counted three times.
        unparsed: the number of judgments without a verdict, which are in no figure.
    """

    win_rate: float
    low: float
    high: float
    question_low: float
    question_high: float
    wins: int
    ties: int
    losses: int
    unparsed: int


def score(
    verdicts: Sequence[Sequence[str | None]],
    *,
    rounds: int = 100,
    question_rounds: int = 10000,
    confidence: float = 0.95,
    seed: int = 42,
) -> Score:
    """The score of a model from its games.

    Args:
        verdicts: the verdicts of the two games of each question; the baseline is A in the first, the model in the second.
        rounds: the number of resamples of games, as in the benchmark.
        question_rounds: the number of resamples of questions.
        confidence: the level of the intervals.
        seed: the random seed of the resampling.

    Raises:
        OutputsError: there is no verdict at all, or an unknown one.
    """
    counts = count_games(verdicts)
    totals = counts.sum(axis=0)
    total = totals.sum()
    if total == 0:
        raise OutputsError("the judge gave no verdict at all")
    tail = (1 - confidence) / 2

    def interval(resampled: Float[Array, "rounds 3"]) -> tuple[float, float]:
        low, high = np.quantile(_win_rate(resampled), [tail, 1 - tail])
        return float(low), float(high)

    of_games = np.random.default_rng(seed).multinomial(int(total), totals / total, size=rounds)
    # only questions with a verdict are resampled, so that no resample is empty
    judged = counts[counts.sum(axis=1) > 0]
    shares = np.full(len(judged), 1 / len(judged))
    of_questions = (
        np.random.default_rng(seed).multinomial(len(judged), shares, size=question_rounds).astype(float)
    )
    return Score(
        float(_win_rate(totals)),
        *interval(of_games.astype(float)),
        *interval(of_questions @ judged),
        int(totals[0]),
        int(totals[1]),
        int(totals[2]),
        sum(verdict is None for games in verdicts for verdict in games),
    )


def count_games(verdicts: Sequence[Sequence[str | None]]) -> Float[Array, "questions 3"]:
    """The wins, ties and losses of the model on each question, strong verdicts counted three times.

    Args:
        verdicts: as for :func:`score`.

    Raises:
        OutputsError: a verdict is unknown.
    """
    counts = np.zeros((len(verdicts), 3))
    for question, games in enumerate(verdicts):
        for position, verdict in enumerate(games):
            if verdict is None:
                continue
            if verdict not in VERDICTS:
                raise OutputsError(f"the verdict {verdict!r} is none of {', '.join(VERDICTS)}")
            won = -VERDICTS[verdict] if position == 0 else VERDICTS[verdict]
            counts[question] += (max(won, 0), won == 0, max(-won, 0))
    return counts


def _win_rate(counts: Float[Array, "*rounds 3"]) -> Float[Array, "*rounds"]:
    return np.asarray((counts[..., 0] + counts[..., 1] / 2) / counts.sum(axis=-1) * 100)
