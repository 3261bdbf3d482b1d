"""`sppo evaluate arena-hard`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class ArenaHard:
    """Arena-Hard v0.1 as `sppo evaluate` finds it."""

    name = "arena-hard"
    help = "Arena-Hard v0.1: the probability of beating a baseline, in percent, from two games for each question."

    @staticmethod
    def command(
        policies: options.OptionalPolicies = None,
        data: options.Data = None,
        judgments: options.JudgmentFiles = None,
        baseline: Annotated[
            str, typer.Option(help="The baseline's name; its responses are in DATA/model_answer/NAME.jsonl.")
        ] = "gpt-4-0314",
        judge: options.Judge = None,
        judge_prompt: options.JudgePromptFile = None,
        best_of: options.BestOf = 1,
        best_of_oracle: options.BestOfOracle = None,
        sampling: options.SamplingSettings = None,
        seed: options.Seed = 0,
        dtype: options.Dtype = None,
        system: options.System = None,
        every_iteration: options.EveryIteration = False,
        output: options.Output = Path("evaluations/arena-hard"),
    ) -> None:
        """Score files of judgments, and evaluate policies and files of responses."""
        from sppo.benchmarks import participants, results
        from sppo.benchmarks.arena_hard import play
        from sppo.benchmarks.arena_hard.judge import PROMPT, read_prompt
        from sppo.benchmarks.judge_server import Judge
        from sppo.benchmarks.responses import Decoding
        from sppo.progress import Terminal
        from sppo.rundir.folder import RunFolder

        evaluated = participants.resolve(policies or [], every_iteration=every_iteration)
        terminal = Terminal()
        rows = [play.score_file(path, seed) for path in judgments or []]
        options.require_policies_or_judgments(evaluated, judgments)
        if evaluated:
            chooser = options.read_best_of_oracle(best_of, best_of_oracle)
            with RunFolder(output).locked():
                server = Judge(options.read_judge(options.needed(judge, "--judge")), output)
                benchmark = play.ArenaHard(
                    output,
                    options.needed(data, "--data"),
                    baseline,
                    server,
                    PROMPT if judge_prompt is None else read_prompt(judge_prompt),
                    Decoding(options.read_sampling(sampling), seed, dtype, system),
                    terminal,
                    best_of=best_of,
                    chooser=chooser,
                )
                rows += [benchmark.evaluate(participant) for participant in evaluated]
                results.save_all(output, ArenaHard.name, rows, terminal, server.endpoint.usage)
        play.show(terminal, rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        from sppo.benchmarks.arena_hard import play

        return play.table(rows)
