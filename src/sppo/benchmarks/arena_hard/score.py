r"""Arena-Hard v0.1 (Li et al., arXiv:2406.11939): two games a question against a baseline, five verdicts.

A strong verdict counts as three games, a tie as half a win, and the score is the Bradley-Terry probability of beating
the baseline in percent. Its logistic regression has no penalty, and where every game is against the baseline its
solution is the weighted share of wins, :math:`(W + T/2)/(W + T + L)`, which is what is computed here: it exists for a
model that wins or loses all games, too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError, read_text
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import Id, one_value, question_id

BASELINE = "gpt-4-0314"
STRONG = 3
"""Games that a verdict of >> counts as."""
ATTEMPTS = 2
SETTINGS = {"temperature": 0.0, "max_tokens": 4096}
PLACES = ("question_1", "answer_1", "answer_2")
VERDICTS = {"A>>B": STRONG, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -STRONG}
"""Games that A wins by each verdict; negative ones are B's."""

PROMPT = JudgePrompt(
    "sppo/arena-hard",
    (
        (
            "system",
            "You judge two assistants' answers to a user's request. Work the request out for yourself first. Then"
            " compare both answers with what you found: say which mistakes they make, whether they help the user,"
            " keep to what was asked, and say it without padding; where the request is unclear, asking back is a"
            " virtue. The order of the answers means nothing.\n\n"
            "End with exactly one of these verdicts:\n"
            "[[A>>B]] assistant A is much better\n"
            "[[A>B]] assistant A is a little better\n"
            "[[A=B]] they are about as good as each other\n"
            "[[B>A]] assistant B is a little better\n"
            "[[B>>A]] assistant B is much better",
        ),
        (
            "user",
            "# Request\n\n{question_1}\n\n# Assistant A\n\n{answer_1}\n\n# End of assistant A\n\n"
            "# Assistant B\n\n{answer_2}\n\n# End of assistant B",
        ),
    ),
)
ASK_AGAIN = "Please finish your judgment with one of the five verdicts in double square brackets."

_VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
_LATER = re.compile(r"\[([AB<>=]+)\]")


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


def parse_verdict(judgment: str) -> str | None:
    """The verdict in a judge's answer: one of :data:`VERDICTS`, or None.

    As in v0.1, verdicts stand in double square brackets; the same verdict twice is one, and two different ones are
    none. Where there is none in that form, the benchmark's later rule is tried: any case, then single brackets.
    """
    for pattern, text in ((_VERDICT, judgment), (_VERDICT, judgment.upper()), (_LATER, judgment.upper())):
        found = set(pattern.findall(text))
        if found:
            verdict = found.pop()
            return verdict if not found and verdict in VERDICTS else None
    return None


def has_verdict(judgment: str) -> bool:
    """Whether a judge need not be asked again: there is a verdict, or there are several."""
    return bool(_VERDICT.search(judgment.upper()) or parse_verdict(judgment))


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


def judgment_row(
    question: Id, model: str, judge: str, games: Sequence[tuple[str, str, str | None]]
) -> dict[str, Any]:
    """A row of the benchmark's judgment files: of each game what was asked, what was said, and the verdict."""
    return {
        "question_id": question,
        "model": model,
        "judge": judge,
        "games": [
            {"user_prompt": asked, "judgment": said, "score": verdict} for asked, said, verdict in games
        ],
    }


@dataclass(frozen=True)
class Judgments:
    """A file of judgments.

    Attributes:
        model: who was judged.
        judge: by whom.
        verdicts: of the two games of each question.
    """

    model: str
    judge: str
    verdicts: dict[Id, list[str | None]]


def read_judgments(path: Path) -> Judgments:
    """A file of the benchmark's judgments; the recorded verdicts count, and where there is none the text's.

    Raises:
        OutputsError: a row has no id or not two games, a question is there twice, or judges or models are mixed.
    """
    rows = list(read_rows(path))
    if not rows:
        raise OutputsError(f"{path}: there are no judgments in it")
    found: dict[Id, list[str | None]] = {}
    for number, row in enumerate(rows):
        games = row.get("games")
        if (
            not isinstance(games, list)
            or len(games) != 2
            or not all(isinstance(game, dict) for game in games)
        ):
            raise OutputsError(f"{path}, row {number}: not two games")
        identity = question_id(row, path, number)
        if identity in found:
            raise OutputsError(f"{path}, row {number}: question {identity} is there twice; keep one")
        found[identity] = [_recorded(game) for game in games]
    return Judgments(str(one_value(rows, "model", path)), str(one_value(rows, "judge", path)), found)


def read_prompt(path: Path) -> JudgePrompt:
    """The benchmark's own `judge_config.yaml`: its `system_prompt` and `prompt_template`.

    Raises:
        JudgePromptError: it is not one.
    """
    try:
        found: Any = yaml.safe_load(read_text(path))
        system, templates = found["system_prompt"], found["prompt_template"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise JudgePromptError(
            f"{path}: no judge_config.yaml with system_prompt and prompt_template: {error}"
        ) from error
    texts = [templates] if isinstance(templates, str) else templates
    if (
        not isinstance(system, str)
        or not isinstance(texts, list)
        or not all(isinstance(t, str) for t in texts)
    ):
        raise JudgePromptError(f"{path}: system_prompt and prompt_template are texts")
    messages = (("system", system), *(("user", text) for text in texts))
    return JudgePrompt(path.name, messages).require(PLACES)


def _recorded(game: Mapping[str, Any]) -> str | None:
    verdict = game.get("score")
    if isinstance(verdict, str) and verdict in VERDICTS:
        return verdict
    said = game.get("judgment")
    return parse_verdict(said) if "score" not in game and isinstance(said, str) else None
