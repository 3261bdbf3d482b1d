"""`sppo evaluate alpaca-eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class AlpacaEval:
    """AlpacaEval 2 as `sppo evaluate` finds it."""

    name = "alpaca-eval"
    help = (
        "AlpacaEval 2: win rate and length-controlled win rate against a baseline, by a judge or an oracle."
    )

    @staticmethod
    def command(
        policies: options.OptionalPolicies = None,
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
            typer.Option(
                "--length-control",
                help="Your copy of df_gamed.csv, or the folder that holds it. [default: the hub's]",
            ),
        ] = None,
        no_length_control: Annotated[
            bool,
            typer.Option(
                "--no-length-control", help="Compute plain win rates only, for instructions of your own."
            ),
        ] = False,
        judge: options.Judge = None,
        judge_prompt: options.JudgePromptFile = None,
        oracle: options.Oracle = None,
        best_of: options.BestOf = 1,
        best_of_oracle: options.BestOfOracle = None,
        sampling: options.SamplingSettings = None,
        seed: options.Seed = 0,
        dtype: options.Dtype = None,
        system: options.System = None,
        every_iteration: options.EveryIteration = False,
        output: options.Output = Path("evaluations/alpaca-eval"),
    ) -> None:
        """Score files of judgments, and evaluate policies and files of outputs."""
        from sppo.benchmarks import participants, results
        from sppo.benchmarks.alpaca_eval import play
        from sppo.benchmarks.alpaca_eval.files import read_length_control
        from sppo.benchmarks.alpaca_eval.judge import PROMPT, read_prompt
        from sppo.benchmarks.judge_server import Judge
        from sppo.benchmarks.responses import Decoding
        from sppo.progress import Terminal
        from sppo.rundir.folder import RunError, RunFolder

        evaluated = participants.resolve(policies or [], every_iteration=every_iteration)
        if not evaluated and not annotations:
            raise RunError("nothing to evaluate: name policies, or files of judgments with --annotations")
        control = None if no_length_control else read_length_control(length_control)
        terminal = Terminal()
        instructions = None if baseline is None else play.read_baseline(baseline).instructions
        rows = [play.score_file(path, control, instructions) for path in annotations or []]
        if evaluated:
            chooser = options.read_best_of_oracle(best_of, best_of_oracle)
            if (judge is None) == (oracle is None):
                raise RunError(
                    "who judges? name a judge behind a server with --judge, or an oracle with --oracle, not both"
                )
            with RunFolder(output).locked():
                referee = (
                    Judge(options.read_judge(judge), output) if judge else options.read_oracle(oracle or "")
                )
                benchmark = play.AlpacaEval(
                    output,
                    play.read_baseline(baseline),
                    control,
                    referee,
                    PROMPT if judge_prompt is None else read_prompt(judge_prompt),
                    Decoding(options.read_sampling(sampling), seed, dtype, system),
                    terminal,
                    best_of=best_of,
                    chooser=chooser,
                )
                rows += [benchmark.evaluate(participant) for participant in evaluated]
                usage = referee.endpoint.usage if isinstance(referee, Judge) else None
                results.save_all(output, AlpacaEval.name, rows, terminal, usage)
        play.show(terminal, rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        from sppo.benchmarks.alpaca_eval import play

        return play.table(rows)
