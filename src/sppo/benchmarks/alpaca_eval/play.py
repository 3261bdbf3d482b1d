"""AlpacaEval 2: policies against a baseline on its 805 instructions, by a judge or an oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo import oracle as oracles
from sppo.benchmarks import published
from sppo.benchmarks.alpaca_eval import judge as alpaca_eval_judge
from sppo.benchmarks.alpaca_eval import score as alpaca_eval
from sppo.benchmarks.alpaca_eval.files import Judgments, baseline_from_hub, in_order, read_annotations
from sppo.benchmarks.alpaca_eval.score import LengthControl
from sppo.benchmarks.best_of import choose
from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.benchmarks.judge_prompts import JudgePrompt
from sppo.benchmarks.judge_server import JUDGED, Judge, judged, scoring, summary, text_of
from sppo.benchmarks.outputs import Outputs, read_outputs, read_rows, write_outputs
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.responses import Decoding, Question, empty_share, respond, shortcomings
from sppo.benchmarks.results import save, show_table
from sppo.endpoint.client import chat
from sppo.progress import Advance, Terminal
from sppo.recipe import OracleConfig
from sppo.rundir.shards import file_digest

NAME = "alpaca-eval"
_PREFERENCES = pa.schema(
    [("preference", pa.float64()), ("switched", pa.bool_()), ("said", pa.string()), *JUDGED]
)


@dataclass(frozen=True)
class Baseline:
    """What policies are compared with.

    Attributes:
        outputs: its answers; their order is the benchmark's.
        datasets: of each instruction, where the file says.
        digest: of the file.
    """

    outputs: Outputs
    datasets: Mapping[str, str]
    digest: str

    @property
    def instructions(self) -> list[str]:
        """Of the benchmark."""
        return list(self.outputs.texts)


def read_baseline(path: Path | None) -> Baseline:
    """The baseline's outputs, which are the benchmark's instructions too; None: the hub's GPT-4 Turbo.

    Raises:
        sppo.benchmarks.outputs.OutputsError: the file cannot be used.
        sppo.benchmarks.alpaca_eval.score.AlpacaEvalError: the hub does not give it.
    """
    path = baseline_from_hub() if path is None else path
    outputs = read_outputs(path)
    datasets = {row["instruction"]: str(row.get("dataset") or "") for row in read_rows(path)}
    return Baseline(outputs, datasets, file_digest(path))


class AlpacaEval:
    """The benchmark with a judge.

    Args:
        home: the evaluation's folder.
        baseline: what is compared with.
        control: difficulties and gamed rows; None: no length-controlled win rate.
        judge: behind a server, or an oracle's configuration.
        prompt: what the judge is told.
        decoding: how policies answer.
        terminal: where progress is shown.
        best_of: answers of each policy, of which `chooser` takes the best.
        chooser: an oracle.

    Raises:
        AlpacaEvalError: the difficulties are of another number of instructions.
    """

    def __init__(
        self,
        home: Path,
        baseline: Baseline,
        control: LengthControl | None,
        judge: Judge | OracleConfig,
        prompt: JudgePrompt,
        decoding: Decoding,
        terminal: Terminal,
        *,
        best_of: int = 1,
        chooser: OracleConfig | None = None,
    ) -> None:
        self.home, self.baseline, self.control, self.judge = home, baseline, control, judge
        self.prompt, self.decoding, self.terminal = (
            prompt.require(alpaca_eval_judge.PLACES),
            decoding,
            terminal,
        )
        self.best_of, self.chooser = best_of, chooser
        count = len(baseline.instructions)
        if control is not None and len(control.difficulties) != count:
            raise alpaca_eval.AlpacaEvalError(
                f"{count} instructions, but difficulties of {len(control.difficulties)}: length control needs the"
                " benchmark's own instructions; without them use --no-length-control"
            )

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """One participant's row, with everything that it depends on; written to its folder too."""
        outputs, upstream, lacks = self._outputs(participant)
        name = (
            participant.name
            if self.best_of == 1 or not participant.is_policy
            else f"{participant.name}, best of {self.best_of}"
        )
        rows, made = self._judge(participant, name, outputs, upstream)
        instructions, theirs = self.baseline.instructions, list(self.baseline.outputs.texts.values())
        annotations = [
            {
                "instruction": instruction,
                "dataset": self.baseline.datasets.get(instruction, ""),
                "generator_1": self.baseline.outputs.name,
                "output_1": their,
                "generator_2": name,
                "output_2": ours,
                "annotator": self.annotator,
                "preference": row["preference"],
                "raw_completion": row["said"],
            }
            for instruction, their, ours, row in zip(instructions, theirs, outputs, rows, strict=True)
        ]
        path = made.folder / "annotations.json"
        write_outputs(path, annotations)
        preferences = [row["preference"] for row in rows]
        with scoring(path):
            measured = score(preferences, list(map(len, outputs)), list(map(len, theirs)), self.control)
        result = {
            "name": name,
            "policy": {"path": str(participant.path), "fingerprint": participant.fingerprint},
            **measured,
            "unjudged": sum(value is None for value in preferences),
            "responses": lacks,
            "judge": {**self._judge_identity(), **summary(rows)},
            "baseline": self.baseline.outputs.name,
            "seed": self.decoding.seed,
            "decoding": self.decoding.identity() if participant.is_policy else None,
            "best_of": self._chooser_identity() if participant.is_policy else None,
            "annotations": str(path),
        }
        save(made.folder / "result.json", NAME, result)
        return result

    @property
    def annotator(self) -> str:
        """The judge's name in files."""
        return self.judge.config.model if isinstance(self.judge, Judge) else f"oracle-{self.judge.type}"

    def _outputs(self, participant: Participant) -> tuple[list[str], str, dict[str, float]]:
        instructions = self.baseline.instructions
        if not participant.is_policy:
            texts = read_outputs(participant.path, participant.name).to(instructions)
            return texts, participant.fingerprint, {"empty_share": empty_share(texts)}
        questions = [Question(f"{number}", (text,)) for number, text in enumerate(instructions)]
        answers, made = respond(
            self.home, NAME, participant, questions, self.decoding, self.terminal, n=self.best_of
        )
        drawn = [[turns[0].text for turns in choices] for choices in answers]
        chosen: Sequence[int] = [0] * len(drawn)
        if self.best_of > 1:
            assert self.chooser is not None
            home = self.home / participant.file_name
            chosen, made = choose(
                home, f"{NAME}, {participant.name}", self.chooser, instructions, drawn, made, self.terminal
            )
        outputs = [of[number] for of, number in zip(drawn, chosen, strict=True)]
        rows = [
            {
                "dataset": self.baseline.datasets.get(instruction, ""),
                "instruction": instruction,
                "output": output,
                "generator": participant.name,
            }
            for instruction, output in zip(instructions, outputs, strict=True)
        ]
        write_outputs(made.folder / "outputs.json", rows)
        kept = [[choices[number]] for choices, number in zip(answers, chosen, strict=True)]
        return outputs, made.fingerprint, shortcomings(kept)

    def _judge(
        self, participant: Participant, name: str, outputs: Sequence[str], upstream: str
    ) -> tuple[list[dict[str, Any]], EvaluationStage]:
        settings = {**self._judge_identity(), "baseline": self.baseline.digest, "seed": self.decoding.seed}
        title = f"{NAME}, {name}: judgments by {self.annotator}"
        found = evaluation_stage(self.home / participant.file_name, title, "judgments", settings, [upstream])
        pairs = list(self.baseline.outputs.texts.items())

        def by_judge(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            assert isinstance(self.judge, Judge)
            switched = [alpaca_eval_judge.is_switched(pairs[n][0], self.decoding.seed) for n in numbers]
            requests = []
            for n, swap in zip(numbers, switched, strict=True):
                first, second = (outputs[n], pairs[n][1]) if swap else (pairs[n][1], outputs[n])
                values = {"instruction": pairs[n][0], "output_1": first, "output_2": second}
                requests.append(chat(self.prompt.fill(values), **alpaca_eval_judge.SETTINGS))  # type: ignore[arg-type]
            answers = self.judge.ask(requests, advance)
            return [
                {
                    "preference": alpaca_eval_judge.preference(said, switched=swap),
                    "switched": swap,
                    "said": text_of(said),
                    **judged([said]),
                }
                for said, swap in zip(answers, switched, strict=True)
            ]

        def by_oracle(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            matrices = oracle.compare(
                [pairs[n][0] for n in numbers], [[outputs[n], pairs[n][1]] for n in numbers]
            )
            advance(len(numbers))
            nobody = {"said": None, "judge": None, "prompt_tokens": 0, "completion_tokens": 0}
            return [{"preference": 1 + float(of[0, 1]), "switched": False, **nobody} for of in matrices]

        if isinstance(self.judge, Judge):
            return found.compute(len(pairs), by_judge, _PREFERENCES, self.terminal, "judgments"), found
        if not found.is_done():
            oracle = oracles.load(self.judge.model_dump())
        return found.compute(len(pairs), by_oracle, _PREFERENCES, self.terminal, "judgments"), found

    def _judge_identity(self) -> dict[str, Any]:
        if isinstance(self.judge, Judge):
            return {
                **self.judge.identity(),
                "prompt": self.prompt.record(),
                "settings": dict(alpaca_eval_judge.SETTINGS),
            }
        return {"oracle": oracles.identity(self.judge)}

    def _chooser_identity(self) -> dict[str, Any] | None:
        return None if self.chooser is None else {"n": self.best_of, "oracle": oracles.identity(self.chooser)}


def score(
    preferences: Sequence[float | None],
    output_lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    control: LengthControl | None,
    rows: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Win rate, and where there is length control the length-controlled one, under the leaderboard's names."""
    raw = alpaca_eval.win_rate(preferences)
    if control is None:
        return {**vars(raw), "avg_length": sum(output_lengths) // len(output_lengths)}
    controlled = alpaca_eval.length_controlled_win_rate(
        preferences, output_lengths, baseline_lengths, control, rows=rows
    )
    weights = None if controlled.weights is None else vars(controlled.weights)
    return {**alpaca_eval.leaderboard_row(raw, controlled, output_lengths), "weights": weights}


def score_file(
    path: Path, control: LengthControl | None, instructions: Sequence[str] | None
) -> dict[str, Any]:
    """The row of a file of judgments that was made elsewhere.

    Raises:
        AlpacaEvalError: the file cannot be used; the message names it.
    """
    found: Judgments = read_annotations(path)
    try:
        if instructions is not None:
            found = in_order(found, instructions)
        measured = score(found.preferences, found.output_lengths, found.baseline_lengths, control, found.rows)
    except alpaca_eval.AlpacaEvalError as error:
        raise alpaca_eval.AlpacaEvalError(f"{path}: {error}") from error
    count = len(found.preferences)
    whole = count if control is None else len(control.difficulties)
    return {
        "name": found.model or path.stem,
        **measured,
        "unjudged": sum(value is None for value in found.preferences),
        "missing": (whole if instructions is None else len(instructions)) - count,
        "judge": {"model": found.judge},
        "baseline": found.baseline,
        "annotations": str(path),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells: the rows, and the published ones below them."""
    heads = ["AlpacaEval 2", "LC win rate", "+-", "win rate", "+-", "length", "judged", "source"]
    cells: list[list[Any]] = [
        [
            row["name"],
            row.get("length_controlled_winrate"),
            row.get("lc_standard_error"),
            row["win_rate"],
            row["standard_error"],
            row["avg_length"],
            _judged(row),
            _by(row["judge"]),
        ]
        for row in rows
    ]
    for of in published.rows(NAME):
        cells.append(
            [
                of.label,
                of.get("lc_win_rate"),
                None,
                of.get("win_rate"),
                None,
                of.get("avg_length", 0),
                "",
                of.source,
            ]
        )
    return heads, cells


def show(terminal: Terminal, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, and the published ones below them."""
    show_table(terminal, *table(rows))


def _judged(row: Mapping[str, Any]) -> str:
    lacks = {"not": row["unjudged"], "missing": row.get("missing", 0)}
    shown = ", ".join(f"{count} {word}" for word, count in lacks.items() if count)
    return f"{row['n_total']}" + (f" ({shown})" if shown else "")


def _by(judge: Mapping[str, Any]) -> str:
    name = judge.get("model") or judge.get("oracle", {}).get("type")
    return f"by {name}" if name else ""
