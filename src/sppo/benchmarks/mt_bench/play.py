"""MT-Bench: policies' answers to its 80 questions of two turns, each turn graded by a judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks import published
from sppo.benchmarks.collected_responses import collect_responses
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary, text_of
from sppo.benchmarks.mt_bench import files
from sppo.benchmarks.mt_bench import judge as judging
from sppo.benchmarks.mt_bench.score import OTHER_TEMPERATURE, TEMPERATURES, score
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.participants import Participant, file_name
from sppo.benchmarks.question_files import BenchmarkQuestion, read_answers, read_questions, write_lines
from sppo.benchmarks.responses import Decoding
from sppo.benchmarks.results import save, show_table
from sppo.endpoint.client import chat
from sppo.progress import Advance, Terminal
from sppo.rundir.shards import file_digest

NAME = "mt-bench"
_GRADES = pa.schema([("asked", pa.string()), ("said", pa.string()), *JUDGED])


class MtBench:
    """The benchmark with a judge.

    Args:
        home: the evaluation's folder.
        data: the benchmark's folder: `question.jsonl`, and `reference_answer/` with one file of reference answers.
        reference: whose; the file's name without its ending.
        judge: behind a server.
        prompts: what it is told, by the benchmark's names.
        decoding: how policies answer; the temperature is the category's.
        terminal: where progress is shown.

    Raises:
        OutputsError: a question that needs a reference answer has none.
    """

    def __init__(
        self,
        home: Path,
        data: Path,
        reference: str,
        judge: Judge,
        prompts: Mapping[str, JudgePrompt],
        decoding: Decoding,
        terminal: Terminal,
    ) -> None:
        self.home, self.judge, self.decoding, self.terminal = home, judge, decoding, terminal
        self.prompts = prompts
        self.questions = read_questions(data / "question.jsonl")
        self.references, self.digest = self._references(data / "reference_answer" / f"{reference}.jsonl")

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """One participant's row, with everything that it depends on; written to its folder too."""
        temperatures = [TEMPERATURES.get(q.category, OTHER_TEMPERATURE) for q in self.questions]
        found = collect_responses(
            self.home,
            NAME,
            participant,
            self.questions,
            temperatures,
            self.decoding,
            self.terminal,
            with_tokens=False,
        )
        judgments = [
            (n, turn) for turn in (1, 2) for n, q in enumerate(self.questions) if turn <= len(q.turns)
        ]
        identity = {
            **self.judge.identity(),
            "prompts": [prompt.record() for prompt in self.prompts.values()],
            "settings": dict(judging.SETTINGS),
        }
        settings = {**identity, "reference": self.digest, "seed": self.decoding.seed}
        title = f"{NAME}, {participant.name}: judgments by {self.judge.config.model}"
        made = evaluation_stage(
            self.home / participant.file_name, title, "judgments", settings, [found.fingerprint]
        )

        def work(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            messages = []
            for n, turn in (judgments[number] for number in numbers):
                question = self.questions[n]
                values = judging.places(question, found.turns[n], self._reference(question))
                messages.append(self.prompts[judging.prompt_name(question, turn)].fill(values))
            requests = [chat(of, **judging.SETTINGS) for of in messages]  # type: ignore[arg-type]
            answers = self.judge.ask(requests, advance)
            return [
                {"asked": of[-1]["content"], "said": text_of(reply), **judged([reply])}
                for of, reply in zip(messages, answers, strict=True)
            ]

        rows = made.compute(len(judgments), work, _GRADES, self.terminal, "judgments")
        graded = [
            files.judgment_row(
                self.questions[n].id,
                participant.file_name,
                self.judge.config.model,
                judging.prompt_name(self.questions[n], turn),
                row["asked"],
                row["said"],
                turn,
            )
            for (n, turn), row in zip(judgments, rows, strict=True)
        ]
        path = made.folder / "model_judgment" / f"{file_name(self.judge.config.model)}_single.jsonl"
        write_lines(path, graded)
        categories = {question.id: question.category for question in self.questions}
        with scoring(path):
            scored = score(graded, categories)
        result = {
            "name": participant.name,
            "policy": {"path": str(participant.path), "fingerprint": participant.fingerprint},
            **vars(scored),
            "responses": found.lacks,
            "judge": {**identity, **summary(rows)},
            "seed": self.decoding.seed,
            "decoding": {**self.decoding.identity(), "temperatures": TEMPERATURES}
            if participant.is_policy
            else None,
            "judgments": str(path),
        }
        save(made.folder / "result.json", NAME, result)
        return result

    def _references(self, path: Path) -> tuple[Mapping[Any, tuple[str, ...]], str | None]:
        needed = [question for question in self.questions if question.category in judging.WITH_REFERENCE]
        if not needed:
            return {}, None
        found = read_answers(path).turns
        for question in needed:
            if len(found.get(question.id, ())) < len(question.turns):
                raise OutputsError(
                    f"{path}: question {question.id} ({question.category}) is graded beside a reference answer to"
                    f" each of its {len(question.turns)} turns; there is none"
                )
        return found, file_digest(path)

    def _reference(self, question: BenchmarkQuestion) -> Sequence[str] | None:
        return self.references[question.id] if question.category in judging.WITH_REFERENCE else None


def score_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of judgments that was made elsewhere, one for each model in it.

    Raises:
        OutputsError: the file cannot be used; the message names it.
    """
    found = []
    for model, rows in files.read_judgments(path).items():
        try:
            scored = score(rows)
        except OutputsError as error:
            raise OutputsError(f"{path}: {model}: {error}") from error
        judged_by = {"model": files.judge_of(rows[0])}
        found.append({"name": model, **vars(scored), "judge": judged_by, "judgments": str(path)})
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells: the rows, and the published ones below them."""
    heads = ["MT-Bench", "first turn", "second turn", "average", "+-", "without grade", "source"]
    cells: list[list[Any]] = [
        [
            row["name"],
            row["first_turn"],
            row["second_turn"],
            row["average"],
            row["standard_error"],
            f"{row['unparsed']}",
            f"by {row['judge']['model']}",
        ]
        for row in rows
    ]
    for of in published.rows(NAME):
        cells.append(
            [of.label, of.get("first_turn"), of.get("second_turn"), of.get("average"), "", "", of.source]
        )
    return heads, cells


def show(terminal: Terminal, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, and the published ones below them."""
    show_table(terminal, *table(rows))
    for row in rows:
        if row["by_category"]:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in row["by_category"].items())
            terminal.say(f"{row['name']}: {shown}", "bright_black")
