"""Arena-Hard's files of judgments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.arena_hard.judge import parse_verdict
from sppo.benchmarks.arena_hard.score import VERDICTS
from sppo.benchmarks.outputs import OutputsError, read_rows
from sppo.benchmarks.question_files import Id, Question, question_id, shared_value

_ONLY_CATEGORY = "arena-hard-v0.1"


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
    """The judgments of a file on the questions of one category.

    Attributes:
        model: the model that was judged.
        judge: the judge's name.
        category: the category; empty where the file has none.
        baseline: the model that it was compared with; empty where the file does not say it.
        verdicts: the verdicts of the two games of each question.
    """

    model: str
    judge: str
    category: str
    baseline: str
    verdicts: dict[Id, list[str | None]]

    @property
    def name(self) -> str:
        """The model's name, with the category where it is not the only one of v0.1."""
        return self.model if self.category in ("", _ONLY_CATEGORY) else f"{self.model} ({self.category})"


def read_judgments(path: Path) -> list[Judgments]:
    """Read a file of judgments; a recorded verdict counts, and where none is recorded that of the judgment's text.

    Returns:
        The judgments of each category and baseline, which have no common score; v0.1 has one category.

    Raises:
        OutputsError: a row has no id or not two games, a question is there twice, or judges or models are mixed.
    """
    rows = list(read_rows(path))
    if not rows:
        raise OutputsError(f"{path}: there are no judgments in it")
    model, judge = (str(shared_value(rows, key, path)) for key in ("model", "judge"))
    seen: set[Id] = set()
    parts: dict[tuple[str, str], Judgments] = {}
    for number, row in enumerate(rows):
        games = row.get("games")
        if (
            not isinstance(games, list)
            or len(games) != 2
            or not all(isinstance(game, dict) for game in games)
        ):
            raise OutputsError(f"{path}, row {number}: not two games")
        identity = question_id(row, path, number)
        if identity in seen:
            raise OutputsError(f"{path}, row {number}: question {identity} is there twice; keep one")
        seen.add(identity)
        part = (str(row.get("category") or ""), str(row.get("baseline") or ""))
        judgments = parts.setdefault(part, Judgments(model, judge, *part, {}))
        judgments.verdicts[identity] = [_verdict(game, last_counts="uid" in row) for game in games]
    return list(parts.values())


def _verdict(game: Mapping[str, Any], *, last_counts: bool) -> str | None:
    verdict = game.get("score")
    if isinstance(verdict, str) and verdict in VERDICTS:
        return verdict
    said = game.get("judgment")
    said = said.get("answer") if isinstance(said, dict) else said
    if "score" in game or not isinstance(said, str):
        return None
    return parse_verdict(said, last_counts=last_counts)
