"""`sppo evaluate mt-bench`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sppo.benchmarks import options, published


class MtBench:
    """MT-Bench as `sppo evaluate` finds it."""

    name = "mt-bench"
    help = "MT-Bench: grades from 1 to 10 for the responses to 80 questions of two turns each."
    example = "sppo evaluate mt-bench runs/quickstart --data mt_bench --judge judge.yaml"

    @staticmethod
    @options.expanded
    def command(
        common: options.ResponseOptions,
        judging: options.JudgeOptions,
        data: options.Data = None,
        judgments: options.JudgmentFiles = None,
        reference: Annotated[
            str,
            typer.Option(
                help="The model whose reference answers are used, from DATA/reference_answer/NAME.jsonl."
            ),
        ] = "gpt-4",
    ) -> None:
        """Score files of judgments, and evaluate policies and files of responses."""
        from sppo.benchmarks import results
        from sppo.benchmarks.mt_bench import play
        from sppo.benchmarks.mt_bench.judge import PROMPTS, read_prompts
        from sppo.benchmarks.responses import collect_responses, only_responses

        participants = common.participants()
        options.require_policies_or_judgments(participants, judgments)
        without_judging = judging.is_without_judging(judgments)
        rows = [row for path in judgments or [] for row in play.score_file(path)]
        if participants:
            folder = options.needed(data, "--data")
            with common.evaluation(MtBench.name) as evaluation:
                if without_judging:
                    questions = play.read_tempered_questions(folder)
                    only_responses(
                        evaluation,
                        participants,
                        lambda policy: collect_responses(evaluation, policy, questions, with_tokens=False),
                    )
                    return
                judge = judging.server(evaluation.home)
                prompts = PROMPTS if judging.judge_prompt is None else read_prompts(judging.judge_prompt)
                benchmark = play.MtBench(evaluation, folder, reference, judge, prompts)
                rows += [benchmark.evaluate(participant) for participant in participants]
                results.save_all(
                    evaluation.home, MtBench.name, rows, evaluation.terminal, judge.endpoint.usage
                )
        common.show(MtBench.table(rows), rows)
        for row in rows:
            if row["by_category"]:
                shown = ", ".join(f"{name} {value:.2f}" for name, value in row["by_category"].items())
                common.terminal.show(f"{row['name']}: {shown}", "bright_black")

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        heads = [
            "MT-Bench",
            "first turn",
            "second turn",
            "average",
            "+- over grades",
            "+- over questions",
            "without grade",
            "source",
        ]
        cells: list[list[Any]] = [
            [
                row["name"],
                row["first_turn"],
                row["second_turn"],
                row["average"],
                row["standard_error"],
                row.get("question_standard_error"),  # results of an earlier version have none
                f"{row['unparsed']}",
                f"by {row['judge']['model']}",
            ]
            for row in rows
        ]
        for row in published.rows(MtBench.name):
            figures = [row.get("first_turn"), row.get("second_turn"), row.get("average")]
            cells.append([row.label, *figures, "", "", "", row.source])
        return heads, cells
