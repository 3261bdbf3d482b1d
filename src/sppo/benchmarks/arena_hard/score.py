r"""Arena-Hard v0.1 (Li et al., arXiv:2406.11939): two games a question against a baseline, five verdicts.

A strong verdict counts as three games, a tie as half a win, and the score is the Bradley-Terry probability of beating
the baseline in percent. Its logistic regression has no penalty, and where every game is against the baseline its
solution is the weighted share of wins, :math:`(W + T/2)/(W + T + L)`, which is what is computed here: it exists for a
model that wins or loses all games, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppo.benchmarks.outputs import OutputsError

BASELINE = "gpt-4-0314"
STRONG = 3
"""Games that a verdict of >> counts as."""
VERDICTS = {"A>>B": STRONG, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -STRONG}
"""Games that A wins by each verdict; negative ones are B's."""


@dataclass(frozen=True)
class Score:
    """A model's score.

    Attributes:
        win_rate: probability of beating the baseline, in percent.
        low: of its 95% bootstrap interval over games.
        high: likewise.
        wins: games won, strong ones counted three times.
        ties: drawn.
        losses: lost.
        unparsed: judgments without a verdict, which no figure counts.
    """

    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    unparsed: int


def score(
    verdicts: Sequence[Sequence[str | None]], *, rounds: int = 100, confidence: float = 0.95, seed: int = 42
) -> Score:
    """The score of a model from its games.

    Args:
        verdicts: of the two games of each question; in the first the baseline is A, in the second the model.
        rounds: of the bootstrap; games are resampled, as the benchmark does.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        OutputsError: there is no verdict at all, or one of another kind.
    """
    wins = ties = losses = unparsed = 0
    for games in verdicts:
        for position, verdict in enumerate(games):
            if verdict is None:
                unparsed += 1
                continue
            if verdict not in VERDICTS:
                raise OutputsError(f"the verdict {verdict!r} is none of {', '.join(VERDICTS)}")
            ours = -VERDICTS[verdict] if position == 0 else VERDICTS[verdict]
            wins, ties, losses = wins + max(ours, 0), ties + (ours == 0), losses + max(-ours, 0)
    total = wins + ties + losses
    if total == 0:
        raise OutputsError("the judge gave no verdict at all")
    counts = np.array([wins, ties, losses])
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=rounds)
    shares = (drawn[:, 0] + drawn[:, 1] / 2) / total * 100
    tail = (1 - confidence) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return Score((wins + ties / 2) / total * 100, float(low), float(high), wins, ties, losses, unparsed)
