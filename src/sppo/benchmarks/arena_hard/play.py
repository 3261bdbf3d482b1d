"""Arena-Hard v0.1: policies against a baseline on its 500 questions, in two games for each question, by a judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks.arena_hard import files, style
from sppo.benchmarks.arena_hard import judge as judging
from sppo.benchmarks.arena_hard.score import score
from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary, text_of
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.participants import Participant, file_name
from sppo.benchmarks.question_files import read_questions, read_responses, write_lines
from sppo.benchmarks.responses import collect_responses
from sppo.endpoint.exchange import chat
from sppo.policy.chat_format import Message
from sppo.progress import Advance
from sppo.rundir.shards import file_digest

_STRINGS = pa.list_(pa.string())
_GAMES = pa.schema([("asked", _STRINGS), ("said", _STRINGS), ("verdicts", _STRINGS), *JUDGED])


class ArenaHard:
    """The benchmark with its baseline and a judge.

    Args:
        evaluation: the settings of the command.
        data: the benchmark's folder: `question.jsonl`, and `model_answer/` with the baseline's file.
        baseline: the baseline's name.
        judge: the judge.
        prompt: the judge's prompt.
    """

    def __init__(
        self, evaluation: Evaluation, data: Path, baseline: str, judge: Judge, prompt: JudgePrompt
    ) -> None:
        self.evaluation, self.judge, self.baseline = evaluation, judge, baseline
        self.prompt = prompt.require(judging.PLACES)
        self.questions = read_questions(data / "question.jsonl")
        file = data / "model_answer" / f"{baseline}.jsonl"
        self.baseline_responses = read_responses(file, baseline).to(self.questions)
        self.digest = file_digest(file)

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """Evaluate a participant and return its row, which is written to its folder as well."""
        collected = collect_responses(self.evaluation, participant, self.questions, with_tokens=True)
        identity = {
            **self.judge.identity(),
            "prompt": self.prompt.record(),
            "settings": dict(judging.SETTINGS),
            "again": judging.ASK_AGAIN,
        }
        judge = self.judge.config.model
        stage = self.evaluation.judgments_stage(
            participant, judge, {**identity, "baseline": self.digest}, collected.fingerprint
        )

        def play(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            games = self._play([collected.turns[n] for n in numbers], numbers)
            advance(len(numbers))
            return games

        rows = stage.compute(len(self.questions), play, _GAMES, self.evaluation.terminal, "questions")
        path = stage.folder / "model_judgment" / file_name(judge) / f"{participant.file_name}.jsonl"
        judgments = []
        for question, row in zip(self.questions, rows, strict=True):
            games = list(zip(row["asked"], row["said"], row["verdicts"], strict=True))
            judgments.append(files.judgment_row(question, participant.file_name, judge, self.baseline, games))
        write_lines(path, judgments)
        with scoring(path):
            scored = score([row["verdicts"] for row in rows], seed=self.evaluation.decoding.seed)
        counted = [count for count in collected.tokens if count is not None]
        figures = {
            **vars(scored),
            "avg_tokens": sum(counted) / len(counted) if counted else None,
            "responses": collected.shortcomings,
            "judge": {**identity, **summary(rows)},
            "baseline": self.baseline,
            "judgments": str(path),
        }
        return self.evaluation.save_result(stage, participant, figures)

    def _play(self, responses: Sequence[tuple[str, ...]], numbers: range) -> list[dict[str, Any]]:
        """Both games of some questions; a judge that gives no verdict is asked once more."""
        conversations: list[list[Message]] = []
        for n, response in zip(numbers, responses, strict=True):
            baseline = self.baseline_responses[n]
            for first, second in ((baseline, response), (response, baseline)):
                texts = (self.questions[n].turns[0], first[0], second[0])
                conversations.append(self.prompt.fill(dict(zip(judging.PLACES, texts, strict=True))))
        asked = [conversation[-1]["content"] for conversation in conversations]
        said = [""] * len(conversations)
        answers: list[list[Any]] = [[] for _ in conversations]
        for _ in range(judging.ATTEMPTS):
            waiting = [index for index, text in enumerate(said) if not judging.has_verdict(text)]
            requests = [
                chat(conversations[index], **judging.SETTINGS)  # type: ignore[arg-type]
                for index in waiting
            ]
            for index, answer in zip(waiting, self.judge.ask(requests), strict=True):
                said[index] += "\n" + text_of(answer)
                answers[index].append(answer)
                conversations[index] += [
                    {"role": "assistant", "content": answer.choices[0].said},
                    {"role": "user", "content": judging.ASK_AGAIN},
                ]
        last_counts = self.questions[0].id_key == "uid"
        return [
            {
                "asked": asked[start : start + 2],
                "said": said[start : start + 2],
                "verdicts": [
                    judging.parse_verdict(text, last_counts=last_counts) for text in said[start : start + 2]
                ],
                **judged([answer for of_game in answers[start : start + 2] for answer in of_game]),
            }
            for start in range(0, len(said), 2)
        ]


def score_files(
    paths: Sequence[Path], seed: int, responses: Path | None = None, baseline: str = ""
) -> list[dict[str, Any]]:
    """The rows of files of judgments that were made elsewhere, one for each category if a file has several.

    Args:
        paths: the files.
        seed: the random seed of the resampling.
        responses: the folder of the files of responses, for style control; None: without it.
        baseline: the baseline's name where a file does not say it.

    Raises:
        OutputsError: a file cannot be used; the message names it.
    """
    rows = []
    games: dict[
        str, list[tuple[dict[str, Any], style.Games]]
    ] = {}  # by category, since each has its own baseline
    for path in paths:
        for judgments in files.read_judgments(path):
            try:
                scored = score(list(judgments.verdicts.values()), seed=seed)
                row = {"name": judgments.name, **vars(scored), "avg_tokens": None, "judgments": str(path)}
                row["judge"] = {"model": judgments.judge}
                if responses is not None:
                    names = (judgments.model, judgments.baseline or baseline)
                    both = [read_responses(responses / f"{name}.jsonl") for name in names]
                    played = style.games(judgments.verdicts, *both)
                    games.setdefault(judgments.category, []).append((row, played))
            except OutputsError as error:
                raise OutputsError(f"{path}: {error}") from error
            rows.append(row)
    for of_category in games.values():
        controlled = style.style_scores([played for _, played in of_category], seed=seed)
        for (row, _), found in zip(of_category, controlled, strict=True):
            row.update(vars(found))
    return rows
