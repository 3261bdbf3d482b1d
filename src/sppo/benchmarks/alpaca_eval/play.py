"""AlpacaEval 2: policies against a baseline on its 805 instructions, by a judge or an oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo import oracle as oracles
from sppo.benchmarks.alpaca_eval import judge as alpaca_eval_judge
from sppo.benchmarks.alpaca_eval import score as alpaca_eval
from sppo.benchmarks.alpaca_eval.files import baseline_from_hub, in_order, read_annotations
from sppo.benchmarks.alpaca_eval.score import LengthControl
from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary
from sppo.benchmarks.outputs import Outputs, read_outputs, read_rows, write_outputs
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.question_files import Question
from sppo.benchmarks.responses import CollectedResponses, empty_share, sample_best
from sppo.endpoint.exchange import chat
from sppo.progress import Advance
from sppo.recipe import OracleConfig
from sppo.rundir.shards import file_digest

_PREFERENCES = pa.schema(
    [("preference", pa.float64()), ("switched", pa.bool_()), ("said", pa.string()), *JUDGED]
)


@dataclass(frozen=True)
class Baseline:
    """The outputs that policies are compared with.

    Attributes:
        outputs: the baseline's outputs; their order is the benchmark's.
        datasets: the data set that each instruction comes from, where the file says.
        digest: SHA-256 of the file.
    """

    outputs: Outputs
    datasets: Mapping[str, str]
    digest: str

    @property
    def instructions(self) -> list[str]:
        """The instructions of the benchmark."""
        return list(self.outputs.texts)


def read_baseline(path: Path | None) -> Baseline:
    """Read the baseline's outputs, which also define the instructions; None: the hub's GPT-4 Turbo.

    Raises:
        sppo.benchmarks.outputs.OutputsError: the file cannot be used.
        sppo.benchmarks.alpaca_eval.score.AlpacaEvalError: the hub does not give it.
    """
    path = baseline_from_hub() if path is None else path
    outputs = read_outputs(path)
    datasets = {row["instruction"]: str(row.get("dataset") or "") for row in read_rows(path)}
    return Baseline(outputs, datasets, file_digest(path))


def collect_outputs(
    evaluation: Evaluation, baseline: Baseline, participant: Participant
) -> CollectedResponses:
    """A participant's output to each instruction; those of a policy are written in the benchmark's format as well."""
    instructions = baseline.instructions
    if not participant.is_policy:
        texts = read_outputs(participant.path, participant.name).to(instructions)
        empty = {"empty_share": empty_share(texts)}
        unknown: list[int | None] = [None] * len(texts)
        return CollectedResponses([(text,) for text in texts], unknown, None, participant.fingerprint, empty)
    questions = [Question(number, (text,)) for number, text in enumerate(instructions)]
    collected = sample_best(evaluation, participant, questions)
    assert collected.stage is not None
    rows = [
        {
            "dataset": baseline.datasets.get(instruction, ""),
            "instruction": instruction,
            "output": output,
            "generator": participant.name,
        }
        for instruction, (output, *_) in zip(instructions, collected.turns, strict=True)
    ]
    path = collected.stage.folder / "outputs.json"
    write_outputs(path, rows)
    return collected._replace(path=path)


class AlpacaEval:
    """The benchmark with its baseline and a judge.

    Args:
        evaluation: the settings of the command.
        baseline: the outputs that policies are compared with.
        control: difficulties and gamed rows; None: no length-controlled win rate.
        judge: a judge behind a server, or an oracle's configuration.
        prompt: the judge's prompt.

    Raises:
        AlpacaEvalError: the difficulties belong to another number of instructions.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        baseline: Baseline,
        control: LengthControl | None,
        judge: Judge | OracleConfig,
        prompt: JudgePrompt,
    ) -> None:
        self.evaluation, self.baseline, self.control, self.judge = evaluation, baseline, control, judge
        self.prompt = prompt.require(alpaca_eval_judge.PLACES)
        self.instructions = baseline.instructions
        count = len(self.instructions)
        if control is not None and len(control.difficulties) != count:
            raise alpaca_eval.AlpacaEvalError(
                f"{count} instructions, but difficulties of {len(control.difficulties)}: length control needs the"
                " benchmark's own instructions; without them use --no-length-control"
            )

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """Evaluate a participant and return its row, which is written to its folder as well."""
        collected = collect_outputs(self.evaluation, self.baseline, participant)
        outputs = [turns[0] for turns in collected.turns]
        judge = self.judge
        annotator = judge.config.model if isinstance(judge, Judge) else f"oracle-{judge.type}"
        identity = self._judge_identity()
        stage = self.evaluation.judgments_stage(
            participant, annotator, {**identity, "baseline": self.baseline.digest}, collected.fingerprint
        )
        rows = self._judge(stage, outputs)
        baselines = list(self.baseline.outputs.texts.values())
        annotations = [
            {
                "instruction": instruction,
                "dataset": self.baseline.datasets.get(instruction, ""),
                "generator_1": self.baseline.outputs.name,
                "output_1": baseline,
                "generator_2": self.evaluation.name(participant),
                "output_2": output,
                "annotator": annotator,
                "preference": row["preference"],
                "raw_completion": row["said"],
            }
            for instruction, baseline, output, row in zip(
                self.instructions, baselines, outputs, rows, strict=True
            )
        ]
        path = stage.folder / "annotations.json"
        write_outputs(path, annotations)
        preferences = [row["preference"] for row in rows]
        with scoring(path):
            figures = score(preferences, list(map(len, outputs)), list(map(len, baselines)), self.control)
        figures |= {
            "unjudged": sum(value is None for value in preferences),
            "responses": collected.shortcomings,
            "judge": {**identity, **summary(rows)},
            "baseline": self.baseline.outputs.name,
            "annotations": str(path),
        }
        return self.evaluation.save_result(stage, participant, figures)

    def _judge(self, stage: Any, outputs: Sequence[str]) -> list[dict[str, Any]]:
        pairs = list(self.baseline.outputs.texts.items())
        judge = self.judge
        oracle = None if isinstance(judge, Judge) or stage.is_done() else oracles.load(judge.model_dump())

        def ask_oracle(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            assert oracle is not None
            matrices = oracle.compare(
                [pairs[n][0] for n in numbers], [[outputs[n], pairs[n][1]] for n in numbers]
            )
            advance(len(numbers))
            nobody = {"said": None, "judge": None, "prompt_tokens": 0, "completion_tokens": 0}
            return [
                {"preference": 1 + float(matrix[0, 1]), "switched": False, **nobody} for matrix in matrices
            ]

        def ask_judge(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            assert isinstance(judge, Judge)
            seed = self.evaluation.decoding.seed
            switched = [alpaca_eval_judge.is_switched(pairs[n][0], seed) for n in numbers]
            requests = []
            for n, switch in zip(numbers, switched, strict=True):
                first, second = (outputs[n], pairs[n][1]) if switch else (pairs[n][1], outputs[n])
                values = {"instruction": pairs[n][0], "output_1": first, "output_2": second}
                requests.append(chat(self.prompt.fill(values), **alpaca_eval_judge.SETTINGS))  # type: ignore[arg-type]
            return [
                {
                    "preference": alpaca_eval_judge.preference(answer, switched=switch),
                    "switched": switch,
                    "said": answer.choices[0].said,
                    **judged([answer]),
                }
                for answer, switch in zip(judge.ask(requests, advance), switched, strict=True)
            ]

        ask = ask_judge if isinstance(judge, Judge) else ask_oracle
        rows: list[dict[str, Any]] = stage.compute(
            len(pairs), ask, _PREFERENCES, self.evaluation.terminal, "judgments"
        )
        return rows

    def _judge_identity(self) -> dict[str, Any]:
        if not isinstance(self.judge, Judge):
            return {"oracle": oracles.identity(self.judge)}
        settings = dict(alpaca_eval_judge.SETTINGS)
        return {**self.judge.identity(), "prompt": self.prompt.record(), "settings": settings}


def score(
    preferences: Sequence[float | None],
    output_lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    control: LengthControl | None,
    rows: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The win rate, and with length control the length-controlled one, under the leaderboard's names."""
    raw = alpaca_eval.win_rate(preferences)
    if control is None:
        return {**vars(raw), "avg_length": sum(output_lengths) // len(output_lengths)}
    controlled = alpaca_eval.length_controlled_win_rate(
        preferences, output_lengths, baseline_lengths, control, rows=rows
    )
    weights = None if controlled.weights is None else vars(controlled.weights)
    return {**alpaca_eval.leaderboard_row(raw, controlled, output_lengths), "weights": weights}


def score_files(
    paths: Sequence[Path], control: LengthControl | None, instructions: Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of files of judgments that were made elsewhere, and the errors of those that cannot be used."""
    rows, failures = [], []
    for path in paths:
        try:
            rows.append(score_file(path, control, instructions))
        except ValueError as error:  # the other files are scored all the same
            failures.append(str(error))
    return rows, failures


def score_file(
    path: Path, control: LengthControl | None, instructions: Sequence[str] | None
) -> dict[str, Any]:
    """The row of a file of judgments that was made elsewhere.

    Raises:
        AlpacaEvalError: the file cannot be used; the message names it.
    """
    judgments = read_annotations(path)
    try:
        if instructions is not None:
            judgments = in_order(judgments, instructions)
        figures = score(
            judgments.preferences,
            judgments.output_lengths,
            judgments.baseline_lengths,
            control,
            judgments.rows,
        )
    except alpaca_eval.AlpacaEvalError as error:
        raise alpaca_eval.AlpacaEvalError(f"{path}: {error}") from error
    count = len(judgments.preferences)
    whole = count if control is None else len(control.difficulties)
    return {
        "name": judgments.model or path.stem,
        **figures,
        "unjudged": sum(value is None for value in judgments.preferences),
        "missing": (whole if instructions is None else len(instructions)) - count,
        "judge": {"model": judgments.judge},
        "baseline": judgments.baseline,
        "annotations": str(path),
    }
