"""Arena-Hard v0.1: policies against a baseline on its 500 questions, two games each, by a judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks import published
from sppo.benchmarks.arena_hard import files
from sppo.benchmarks.arena_hard import judge as judging
from sppo.benchmarks.arena_hard.score import score
from sppo.benchmarks.collected_responses import collect_responses
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary, text_of
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.participants import Participant, file_name
from sppo.benchmarks.question_files import read_answers, read_questions, write_lines
from sppo.benchmarks.responses import Decoding
from sppo.benchmarks.results import save, show_table
from sppo.endpoint.client import chat
from sppo.policy.chat_format import Message
from sppo.progress import Advance, Terminal
from sppo.recipe import OracleConfig
from sppo.rundir.shards import file_digest

NAME = "arena-hard"
_STRINGS = pa.list_(pa.string())
_GAMES = pa.schema([("asked", _STRINGS), ("said", _STRINGS), ("verdicts", _STRINGS), *JUDGED])


class ArenaHard:
    """The benchmark with a judge.

    Args:
        home: the evaluation's folder.
        data: the benchmark's folder: `question.jsonl`, and `model_answer/` with the baseline's file.
        baseline: its name.
        judge: behind a server.
        prompt: what it is told.
        decoding: how policies answer.
        terminal: where progress is shown.
        best_of: answers of each policy, of which `chooser` takes the best.
        chooser: an oracle.
    """

    def __init__(
        self,
        home: Path,
        data: Path,
        baseline: str,
        judge: Judge,
        prompt: JudgePrompt,
        decoding: Decoding,
        terminal: Terminal,
        *,
        best_of: int = 1,
        chooser: OracleConfig | None = None,
    ) -> None:
        self.home, self.judge, self.decoding, self.terminal = home, judge, decoding, terminal
        self.prompt = prompt.require(judging.PLACES)
        self.best_of, self.chooser = best_of, chooser
        self.questions = read_questions(data / "question.jsonl")
        theirs = data / "model_answer" / f"{baseline}.jsonl"
        self.baseline = baseline
        self.theirs = read_answers(theirs, baseline).to(self.questions)
        self.digest = file_digest(theirs)

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """One participant's row, with everything that it depends on; written to its folder too."""
        suffix = f", best of {self.best_of}" if self.best_of > 1 and participant.is_policy else ""
        name = participant.name + suffix
        found = collect_responses(
            self.home,
            NAME,
            participant,
            self.questions,
            [None] * len(self.questions),
            self.decoding,
            self.terminal,
            with_tokens=True,
            best_of=self.best_of,
            chooser=self.chooser,
        )
        identity = {
            **self.judge.identity(),
            "prompt": self.prompt.record(),
            "settings": dict(judging.SETTINGS),
            "again": judging.ASK_AGAIN,
        }
        settings = {**identity, "baseline": self.digest, "seed": self.decoding.seed}
        title = f"{NAME}, {name}: judgments by {self.judge.config.model}"
        made = evaluation_stage(
            self.home / participant.file_name, title, "judgments", settings, [found.fingerprint]
        )

        def work(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            return self._games([found.turns[n] for n in numbers], numbers, advance)

        rows = made.compute(len(self.questions), work, _GAMES, self.terminal, "questions")
        judge_folder = file_name(self.judge.config.model)
        path = made.folder / "model_judgment" / judge_folder / f"{participant.file_name}.jsonl"
        write_lines(
            path,
            [
                files.judgment_row(
                    question.id,
                    participant.file_name,
                    self.judge.config.model,
                    list(zip(row["asked"], row["said"], row["verdicts"], strict=True)),
                )
                for question, row in zip(self.questions, rows, strict=True)
            ],
        )
        with scoring(path):
            scored = score([row["verdicts"] for row in rows], seed=self.decoding.seed)
        counted = [count for count in found.tokens if count is not None]
        result = {
            "name": name,
            "policy": {"path": str(participant.path), "fingerprint": participant.fingerprint},
            **vars(scored),
            "avg_tokens": sum(counted) / len(counted) if counted else None,
            "responses": found.lacks,
            "judge": {**identity, **summary(rows)},
            "baseline": self.baseline,
            "seed": self.decoding.seed,
            "decoding": self.decoding.identity() if participant.is_policy else None,
            "judgments": str(path),
        }
        save(made.folder / "result.json", NAME, result)
        return result

    def _games(
        self, answers: Sequence[tuple[str, ...]], numbers: range, advance: Advance
    ) -> list[dict[str, Any]]:
        """Both games of some questions; a judge that gives no verdict is asked for one once more."""
        conversations: list[list[Message]] = []
        for n, ours in zip(numbers, answers, strict=True):
            for first, second in ((self.theirs[n], ours), (ours, self.theirs[n])):
                values = {
                    "question_1": self.questions[n].turns[0],
                    "answer_1": first[0],
                    "answer_2": second[0],
                }
                conversations.append(self.prompt.fill(values))
        asked = [conversation[-1]["content"] for conversation in conversations]
        said = [""] * len(conversations)
        replies: list[list[Any]] = [[] for _ in conversations]
        for _ in range(judging.ATTEMPTS):
            waiting = [index for index, text in enumerate(said) if not judging.has_verdict(text)]
            requests = [
                chat(conversations[index], **judging.SETTINGS)  # type: ignore[arg-type]
                for index in waiting
            ]
            for index, reply in zip(waiting, self.judge.ask(requests), strict=True):
                text = text_of(reply)
                said[index] += "\n" + text
                replies[index].append(reply)
                conversations[index] += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": judging.ASK_AGAIN},
                ]
        advance(len(numbers))
        return [
            {
                "asked": asked[start : start + 2],
                "said": said[start : start + 2],
                "verdicts": [judging.parse_verdict(text) for text in said[start : start + 2]],
                **judged([reply for of in replies[start : start + 2] for reply in of]),
            }
            for start in range(0, len(said), 2)
        ]


def score_file(path: Path, seed: int) -> dict[str, Any]:
    """The row of a file of judgments that was made elsewhere.

    Raises:
        OutputsError: the file cannot be used; the message names it.
    """
    found = files.read_judgments(path)
    try:
        scored = score(list(found.verdicts.values()), seed=seed)
    except OutputsError as error:
        raise OutputsError(f"{path}: {error}") from error
    return {
        "name": found.model,
        **vars(scored),
        "avg_tokens": None,
        "judge": {"model": found.judge},
        "judgments": str(path),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells: the rows, and the published ones below them."""
    heads = ["Arena-Hard v0.1", "score", "95% interval", "tokens", "without verdict", "source"]
    cells: list[list[Any]] = [
        [
            row["name"],
            f"{row['win_rate']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            "" if row["avg_tokens"] is None else f"{row['avg_tokens']:.0f}",
            f"{row['unparsed']}",
            f"by {row['judge']['model']}",
        ]
        for row in rows
    ]
    cells += [[of.label, of.get("score", 1), "", "", "", of.source] for of in published.rows(NAME)]
    return heads, cells


def show(terminal: Terminal, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, and the published ones below them."""
    show_table(terminal, *table(rows))
