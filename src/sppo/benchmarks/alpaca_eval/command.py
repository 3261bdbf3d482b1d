"""`sppo evaluate alpaca-eval`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options, published

_NoLengthControl = Annotated[
    bool,
    typer.Option("--no-length-control", help="Compute plain win rates only, for instructions of your own."),
]


class AlpacaEval:
    """AlpacaEval 2 as `sppo evaluate` finds it."""

    name = "alpaca-eval"
    help = (
        "AlpacaEval 2: win rate and length-controlled win rate against a baseline, by a judge or an oracle."
    )
    example = "sppo evaluate alpaca-eval runs/quickstart --judge judge.yaml"

    @staticmethod
    @options.expanded
    def command(
        common: options.ResponseOptions,
        judging: options.JudgeOptions,
        best_of: options.BestOfOptions,
        annotations: Annotated[
            list[Path] | None,
            typer.Option(help="Score a file of judgments made elsewhere; may be repeated."),
        ] = None,
        baseline: Annotated[
            Path | None,
            typer.Option(
                help="The baseline's outputs, which also define the instructions. [default: the hub's GPT-4 Turbo]"
            ),
        ] = None,
        length_control: Annotated[
            Path | None,
            typer.Option(help="Your copy of df_gamed.csv, or the folder that holds it. [default: the hub's]"),
        ] = None,
        no_length_control: _NoLengthControl = False,
        oracle: options.Oracle = None,
    ) -> None:
        """Score files of judgments, and evaluate policies and files of outputs."""
        from sppo.benchmarks import results
        from sppo.benchmarks.alpaca_eval import play
        from sppo.benchmarks.alpaca_eval.files import read_length_control
        from sppo.benchmarks.alpaca_eval.judge import PROMPT, read_prompt
        from sppo.benchmarks.responses import only_responses
        from sppo.rundir.folder import RunError

        participants = common.participants()
        options.require_policies_or_judgments(participants, annotations, "--annotations")
        if judging.is_without_judging(annotations, oracle):
            with common.evaluation(AlpacaEval.name, best_of) as evaluation:
                collect = partial(play.collect_outputs, evaluation, play.read_baseline(baseline))
                only_responses(evaluation, participants, collect)
                return
        control = None if no_length_control else read_length_control(length_control)
        instructions = None if baseline is None else play.read_baseline(baseline).instructions
        rows, failures = play.score_files(annotations or [], control, instructions)
        if participants:
            if (judging.judge is None) == (oracle is None):
                raise RunError(
                    "who judges? name a judge behind a server with --judge, or an oracle with --oracle, not both"
                )
            with common.evaluation(AlpacaEval.name, best_of) as evaluation:
                server = judging.server(evaluation.home) if judging.judge else None
                prompt = PROMPT if judging.judge_prompt is None else read_prompt(judging.judge_prompt)
                judge = server or options.read_oracle(oracle or "")
                benchmark = play.AlpacaEval(evaluation, play.read_baseline(baseline), control, judge, prompt)
                rows += [benchmark.evaluate(participant) for participant in participants]
                usage = server.endpoint.usage if server else None
                results.save_all(evaluation.home, AlpacaEval.name, rows, evaluation.terminal, usage)
        if rows:
            common.show(AlpacaEval.table(rows), rows)
        if failures:
            raise RunError("\n".join(failures))

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
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
                _source(row["judge"]),
            ]
            for row in rows
        ]
        for row in published.rows(AlpacaEval.name):
            figures = [row.get("lc_win_rate"), None, row.get("win_rate"), None, row.get("avg_length", 0)]
            cells.append([row.label, *figures, "", row.source])
        return heads, cells


def _judged(row: Mapping[str, Any]) -> str:
    open_judgments = {"not": row["unjudged"], "missing": row.get("missing", 0)}
    shown = ", ".join(f"{count} {word}" for word, count in open_judgments.items() if count)
    return f"{row['n_total']}" + (f" ({shown})" if shown else "")


def _source(judge: Mapping[str, Any]) -> str:
    name = judge.get("model") or judge.get("oracle", {}).get("type")
    return f"by {name}" if name else ""
