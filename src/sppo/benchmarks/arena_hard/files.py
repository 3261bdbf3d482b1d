"""Arena-Hard's files of judgments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.arena_hard.judge import parse_verdict
from sppo.benchmarks.arena_hard.score import VERDICTS
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import Id, one_value, question_id


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


def _recorded(game: Mapping[str, Any]) -> str | None:
    verdict = game.get("score")
    if isinstance(verdict, str) and verdict in VERDICTS:
        return verdict
    said = game.get("judgment")
    return parse_verdict(said) if "score" not in game and isinstance(said, str) else None
