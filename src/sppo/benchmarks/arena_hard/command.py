"""`sppo evaluate arena-hard`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sppo.benchmarks import options, published


class ArenaHard:
    """Arena-Hard v0.1 as `sppo evaluate` finds it."""

    name = "arena-hard"
    help = "Arena-Hard v0.1: the probability of beating a baseline, in percent, from two games for each question."
    example = "sppo evaluate arena-hard runs/quickstart --data arena-hard-v0.1 --judge judge.yaml"

    @staticmethod
    @options.expanded
    def command(
        common: options.ResponseOptions,
        judging: options.JudgeOptions,
        best_of: options.BestOfOptions,
        data: options.Data = None,
        judgments: options.JudgmentFiles = None,
        baseline: Annotated[
            str, typer.Option(help="The baseline's name; its responses are in DATA/model_answer/NAME.jsonl.")
        ] = "gpt-4-0314",
        style_control: Annotated[
            bool,
            typer.Option(
                "--style-control",
                help="Score --judgments as well at the baseline's style, by the responses in DATA/model_answer.",
            ),
        ] = False,
    ) -> None:
        """Score files of judgments, and evaluate policies and files of responses."""
        from sppo.benchmarks import results
        from sppo.benchmarks.arena_hard import play
        from sppo.benchmarks.arena_hard.judge import PROMPT, read_prompt
        from sppo.benchmarks.outputs import OutputsError
        from sppo.benchmarks.question_files import read_questions
        from sppo.benchmarks.responses import collect_responses, only_responses

        participants = common.participants()
        options.require_policies_or_judgments(participants, judgments)
        without_judging = judging.is_without_judging(judgments)
        if style_control and not judgments:
            raise OutputsError("--style-control scores files of judgments: give them with --judgments")
        responses = options.needed(data, "--data") / "model_answer" if style_control else None
        rows = play.score_files(judgments or [], common.seed, responses, baseline)
        if participants:
            folder = options.needed(data, "--data")
            with common.evaluation(ArenaHard.name, best_of) as evaluation:
                if without_judging:
                    questions = read_questions(folder / "question.jsonl")
                    only_responses(
                        evaluation,
                        participants,
                        lambda policy: collect_responses(evaluation, policy, questions, with_tokens=True),
                    )
                    return
                judge = judging.server(evaluation.home)
                prompt = PROMPT if judging.judge_prompt is None else read_prompt(judging.judge_prompt)
                benchmark = play.ArenaHard(evaluation, folder, baseline, judge, prompt)
                rows += [benchmark.evaluate(participant) for participant in participants]
                results.save_all(
                    evaluation.home, ArenaHard.name, rows, evaluation.terminal, judge.endpoint.usage
                )
        common.show(ArenaHard.table(rows), rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        controlled = any("style_low" in row for row in rows)
        heads = [
            "Arena-Hard v0.1",
            "score",
            "95% over games (the benchmark's)",
            "95% over questions",
            *(["style controlled, 95% over questions"] if controlled else []),
            "tokens",
            "without verdict",
            "source",
        ]
        cells: list[list[Any]] = [
            [
                row["name"],
                f"{row['win_rate']:.1f}",
                f"{row['low']:.1f} to {row['high']:.1f}",
                # results of an earlier version have no interval over questions
                f"{row['question_low']:.1f} to {row['question_high']:.1f}" if "question_low" in row else "",
                *([_controlled(row)] if controlled else []),
                "" if row["avg_tokens"] is None else f"{row['avg_tokens']:.0f}",
                f"{row['unparsed']}",
                f"by {row['judge']['model']}",
            ]
            for row in rows
        ]
        cells += [
            [row.label, row.get("score", 1), *[""] * (len(heads) - 3), row.source]
            for row in published.rows(ArenaHard.name)
        ]
        return heads, cells


def _controlled(row: Mapping[str, Any]) -> str:
    """The score under style control, where there is one."""
    if "style_low" not in row:
        return ""
    return f"{row['style_win_rate']:.1f}: {row['style_low']:.1f} to {row['style_high']:.1f}"
