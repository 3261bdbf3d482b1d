"""`sppo evaluate mt-bench`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class MtBench:
    """MT-Bench as `sppo evaluate` finds it."""

    name = "mt-bench"
    help = "MT-Bench: grades from 1 to 10 for the responses to 80 questions of two turns each."

    @staticmethod
    def command(
        policies: options.OptionalPolicies = None,
        data: options.Data = None,
        judgments: options.JudgmentFiles = None,
        reference: Annotated[
            str,
            typer.Option(
                help="The model whose reference answers are used, from DATA/reference_answer/NAME.jsonl."
            ),
        ] = "gpt-4",
        judge: options.Judge = None,
        judge_prompt: options.JudgePromptFile = None,
        sampling: options.SamplingSettings = None,
        seed: options.Seed = 0,
        dtype: options.Dtype = None,
        system: options.System = None,
        every_iteration: options.EveryIteration = False,
        output: options.Output = Path("evaluations/mt-bench"),
    ) -> None:
        """Score files of judgments, and evaluate policies and files of responses."""
        from sppo.benchmarks import participants, results
        from sppo.benchmarks.judge_server import Judge
        from sppo.benchmarks.mt_bench import play
        from sppo.benchmarks.mt_bench.judge import PROMPTS, read_prompts
        from sppo.benchmarks.responses import Decoding
        from sppo.progress import Terminal
        from sppo.rundir.folder import RunFolder

        evaluated = participants.resolve(policies or [], every_iteration=every_iteration)
        terminal = Terminal()
        rows = [row for path in judgments or [] for row in play.score_file(path)]
        options.require_policies_or_judgments(evaluated, judgments)
        if evaluated:
            with RunFolder(output).locked():
                server = Judge(options.read_judge(options.needed(judge, "--judge")), output)
                benchmark = play.MtBench(
                    output,
                    options.needed(data, "--data"),
                    reference,
                    server,
                    PROMPTS if judge_prompt is None else read_prompts(judge_prompt),
                    Decoding(options.read_sampling(sampling), seed, dtype, system),
                    terminal,
                )
                rows += [benchmark.evaluate(participant) for participant in evaluated]
                results.save_all(output, MtBench.name, rows, terminal, server.endpoint.usage)
        play.show(terminal, rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        from sppo.benchmarks.mt_bench import play

        return play.table(rows)
