"""Arena-Hard's files of judgments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.arena_hard.judge import parse_verdict
from sppo.benchmarks.arena_hard.score import VERDICTS
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import Id, Question, question_id, shared_value


def judgment_row(
    question: Question, model: str, judge: str, baseline: str, games: Sequence[tuple[str, str, str | None]]
) -> dict[str, Any]:
    """A row of the benchmark's judgment files, in the layout of the question.

    Args:
        question: the question.
        model: the model that was judged.
        judge: the judge's name.
        baseline: the model that it was compared with.
        games: for each of the two games the judge's prompt, the text of its judgment, and the verdict.
    """
    if question.id_key == "uid":
        of_games: list[dict[str, Any]] = [
            {"score": verdict, "judgment": {"answer": said}, "prompt": [{"role": "user", "content": asked}]}
            for asked, said, verdict in games
        ]
        return {
            "uid": question.id,
            "category": question.category,
            "judge": judge,
            "model": model,
            "baseline": baseline,
            "games": of_games,
        }
    of_games = [{"user_prompt": asked, "judgment": said, "score": verdict} for asked, said, verdict in games]
    return {"question_id": question.id, "model": model, "judge": judge, "games": of_games}


@dataclass(frozen=True)
class Judgments:
    """A file of judgments.

    Attributes:
        model: the model that was judged.
        judge: the judge's name.
        verdicts: the verdicts of the two games of each question.
    """

    model: str
    judge: str
    verdicts: dict[Id, list[str | None]]


def read_judgments(path: Path) -> Judgments:
    """Read a file of judgments; a recorded verdict counts, and where none is recorded that of the judgment's text.

    Raises:
        OutputsError: a row has no id or not two games, a question is there twice, or judges or models are mixed.
    """
    rows = list(read_rows(path))
    if not rows:
        raise OutputsError(f"{path}: there are no judgments in it")
    verdicts: dict[Id, list[str | None]] = {}
    for number, row in enumerate(rows):
        games = row.get("games")
        if (
            not isinstance(games, list)
            or len(games) != 2
            or not all(isinstance(game, dict) for game in games)
        ):
            raise OutputsError(f"{path}, row {number}: not two games")
        identity = question_id(row, path, number)
        if identity in verdicts:
            raise OutputsError(f"{path}, row {number}: question {identity} is there twice; keep one")
        verdicts[identity] = [_verdict(game, last_counts="uid" in row) for game in games]
    return Judgments(str(shared_value(rows, "model", path)), str(shared_value(rows, "judge", path)), verdicts)


def _verdict(game: Mapping[str, Any], *, last_counts: bool) -> str | None:
    verdict = game.get("score")
    if isinstance(verdict, str) and verdict in VERDICTS:
        return verdict
    said = game.get("judgment")
    said = said.get("answer") if isinstance(said, dict) else said
    if "score" in game or not isinstance(said, str):
        return None
    return parse_verdict(said, last_counts=last_counts)
