"""`sppo evaluate open-llm`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class OpenLlm:
    """The Open LLM Leaderboard as `sppo evaluate` finds it."""

    name = "open-llm"
    help = "Open LLM Leaderboard: ARC, HellaSwag, MMLU, TruthfulQA, WinoGrande and GSM8K, by lm-eval."

    @staticmethod
    def command(
        policies: options.Policies,
        data: Annotated[
            Path | None,
            typer.Option(
                "--data", help="A folder of local data, TASK/SPLIT.jsonl. [default: the hub's data]"
            ),
        ] = None,
        task: Annotated[
            list[str] | None,
            typer.Option(
                help="A task to run: arc, truthfulqa, winogrande, gsm8k, hellaswag or mmlu; may be repeated."
                " [default: all six]"
            ),
        ] = None,
        batch_size: Annotated[str, typer.Option(help="lm-eval's batch size: a number, or auto.")] = "8",
        limit: Annotated[
            int | None,
            typer.Option(min=1, help="Evaluate only this many examples of each task, for a first look."),
        ] = None,
        chat_template: Annotated[
            bool,
            typer.Option(
                "--chat-template", help="Format prompts as chat messages; the leaderboard does not."
            ),
        ] = False,
        dtype: options.Dtype = None,
        every_iteration: options.EveryIteration = False,
        output: options.Output = Path("evaluations/open-llm"),
    ) -> None:
        """Measure policies on the leaderboard's tasks."""
        from sppo.benchmarks import participants, results
        from sppo.benchmarks.open_llm import play
        from sppo.progress import Terminal
        from sppo.rundir.folder import RunFolder

        evaluated = participants.resolve(policies, every_iteration=every_iteration)
        terminal = Terminal()
        with RunFolder(output).locked():
            benchmark = play.OpenLlm(
                output,
                data,
                task,
                terminal,
                dtype=dtype,
                batch_size=batch_size,
                limit=limit,
                chat_template=chat_template,
            )
            rows = [benchmark.evaluate(participant) for participant in evaluated]
            results.save_all(output, OpenLlm.name, rows, terminal)
        play.show(terminal, rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        from sppo.benchmarks.open_llm import play

        return play.table(rows)
