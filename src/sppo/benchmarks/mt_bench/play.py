"""MT-Bench: policies respond to its 80 questions of two turns, and a judge grades each turn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary, text_of
from sppo.benchmarks.mt_bench import files
from sppo.benchmarks.mt_bench import judge as judging
from sppo.benchmarks.mt_bench.score import OTHER_TEMPERATURE, TEMPERATURES, score
from sppo.benchmarks.outputs import OutputsError
from sppo.benchmarks.participants import Participant, file_name
from sppo.benchmarks.question_files import Question, read_questions, read_responses, write_lines
from sppo.benchmarks.responses import CollectedResponses, collect_responses
from sppo.endpoint.exchange import chat
from sppo.progress import Advance
from sppo.rundir.shards import file_digest

_GRADES = pa.schema([("asked", pa.string()), ("said", pa.string()), *JUDGED])


def read_tempered_questions(data: Path) -> list[Question]:
    """The questions in the benchmark's folder, each with the temperature of its category."""
    return [
        replace(question, temperature=TEMPERATURES.get(question.category, OTHER_TEMPERATURE))
        for question in read_questions(data / "question.jsonl")
    ]


class MtBench:
    """The benchmark with its reference answers and a judge.

    Args:
        evaluation: the settings of the command; the temperature is that of a question's category.
        data: the benchmark's folder: `question.jsonl`, and `reference_answer/` with one file of reference answers.
        reference: the name of the model that gave the reference answers, as the file is called.
        judge: the judge.
        prompts: the judge's prompts, by the benchmark's names.

    Raises:
        OutputsError: a question that needs a reference answer has none.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        data: Path,
        reference: str,
        judge: Judge,
        prompts: Mapping[str, JudgePrompt],
    ) -> None:
        self.evaluation, self.judge, self.prompts = evaluation, judge, prompts
        self.questions = read_tempered_questions(data)
        self.references, self.digest = self._references(data / "reference_answer" / f"{reference}.jsonl")
        self.judgments = [
            (n, turn)
            for turn in (1, 2)
            for n, question in enumerate(self.questions)
            if turn <= len(question.turns)
        ]

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """Evaluate a participant and return its row, which is written to its folder as well."""
        collected = collect_responses(self.evaluation, participant, self.questions, with_tokens=False)
        identity = {
            **self.judge.identity(),
            "prompts": [prompt.record() for prompt in self.prompts.values()],
            "settings": dict(judging.SETTINGS),
        }
        judge = self.judge.config.model
        stage = self.evaluation.judgments_stage(
            participant, judge, {**identity, "reference": self.digest}, collected.fingerprint
        )

        def grade(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            return self._grade(collected, numbers, advance)

        rows = stage.compute(len(self.judgments), grade, _GRADES, self.evaluation.terminal, "judgments")
        graded = [
            files.judgment_row(
                question.id,
                participant.file_name,
                judge,
                judging.prompt_name(question, turn),
                row["asked"],
                row["said"],
                turn,
            )
            for (n, turn), row in zip(self.judgments, rows, strict=True)
            for question in [self.questions[n]]
        ]
        path = stage.folder / "model_judgment" / f"{file_name(judge)}_single.jsonl"
        write_lines(path, graded)
        with scoring(path):
            scored = score(graded, {question.id: question.category for question in self.questions})
        figures = {
            **vars(scored),
            "responses": collected.shortcomings,
            "judge": {**identity, **summary(rows)},
            "judgments": str(path),
        }
        if participant.is_policy:
            decoding = self.evaluation.decoding.identity()
            figures["decoding"] = {**decoding, "temperatures": TEMPERATURES}
        return self.evaluation.save_result(stage, participant, figures)

    def _grade(self, collected: CollectedResponses, numbers: range, advance: Advance) -> list[dict[str, Any]]:
        messages = []
        for n, turn in (self.judgments[number] for number in numbers):
            question = self.questions[n]
            values = judging.places(question, collected.turns[n], self._reference(question))
            messages.append(self.prompts[judging.prompt_name(question, turn)].fill(values))
        requests = [chat(conversation, **judging.SETTINGS) for conversation in messages]  # type: ignore[arg-type]
        return [
            {"asked": conversation[-1]["content"], "said": text_of(answer), **judged([answer])}
            for conversation, answer in zip(messages, self.judge.ask(requests, advance), strict=True)
        ]

    def _references(self, path: Path) -> tuple[Mapping[Any, tuple[str, ...]], str | None]:
        needed = [question for question in self.questions if question.category in judging.WITH_REFERENCE]
        if not needed:
            return {}, None
        references = read_responses(path).turns
        for question in needed:
            if len(references.get(question.id, ())) < len(question.turns):
                raise OutputsError(
                    f"{path}: question {question.id} ({question.category}) is graded beside a reference answer to"
                    f" each of its {len(question.turns)} turns; there is none"
                )
        return references, file_digest(path)

    def _reference(self, question: Question) -> Sequence[str] | None:
        return self.references[question.id] if question.category in judging.WITH_REFERENCE else None


def score_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of judgments that was made elsewhere, one for each model in it.

    Raises:
        OutputsError: the file cannot be used; the message names it.
    """
    results = []
    for model, rows in files.read_judgments(path).items():
        try:
            scored = score(rows)
        except OutputsError as error:
            raise OutputsError(f"{path}: {model}: {error}") from error
        judge = {"model": files.judge_of(rows[0])}
        results.append({"name": model, **vars(scored), "judge": judge, "judgments": str(path)})
    return results
