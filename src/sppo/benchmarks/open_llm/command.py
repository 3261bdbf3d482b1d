"""`sppo evaluate open-llm`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options, published


class OpenLlm:
    """The Open LLM Leaderboard as `sppo evaluate` finds it."""

    name = "open-llm"
    help = "Open LLM Leaderboard: ARC, HellaSwag, MMLU, TruthfulQA, WinoGrande and GSM8K, by lm-eval."
    example = "sppo evaluate open-llm runs/quickstart --task arc --limit 100"

    @staticmethod
    @options.expanded
    def command(
        common: options.PolicyOptions,
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
            typer.Option(min=1, help="Evaluate only this many items of each task, drawn by --seed."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Random seed that draws the items of --limit.")] = 0,
        chat_template: Annotated[
            bool,
            typer.Option(
                "--chat-template", help="Format prompts as chat messages; the leaderboard does not."
            ),
        ] = False,
    ) -> None:
        """Measure policies on the leaderboard's tasks."""
        from sppo.benchmarks import results
        from sppo.benchmarks.open_llm import play
        from sppo.rundir.folder import RunError, RunFolder

        participants = common.participants()
        if not participants:
            raise RunError("nothing to evaluate: name policies")
        terminal, home = common.terminal, common.home(OpenLlm.name)
        with RunFolder(home).locked():
            benchmark = play.OpenLlm(
                home,
                data,
                task,
                terminal,
                dtype=common.dtype,
                batch_size=batch_size,
                limit=limit,
                seed=seed,
                chat_template=chat_template,
            )
            rows = [benchmark.evaluate(participant) for participant in participants]
            results.save_all(home, OpenLlm.name, rows, terminal)
        common.show(OpenLlm.table(rows), rows)
        subjects = {row["tasks"]["mmlu"]["parts"] for row in rows if "mmlu" in row["tasks"]}
        for count in sorted(subjects - {57}):
            terminal.say(f"note: mmlu is the mean over {count} of its 57 subjects", "yellow")

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The results with the published ones below them."""
        from sppo.benchmarks.open_llm.score import TASKS

        columns = [task.column for task in TASKS]
        cells: list[list[Any]] = []
        for row in rows:
            scores = [row["tasks"].get(column, {}) for column in columns]
            sample = "" if row["limit"] is None else f", {row['limit']} items of each task"
            source = f"lm-eval {row['lm_eval']}{sample}"
            cells.append([row["name"], *(score.get("score") for score in scores), row["average"], source])
            errors = [score.get("standard_error") for score in scores]
            cells.append(["  standard error", *errors, row["average_standard_error"], ""])
        for known in published.rows(OpenLlm.name):
            figures = [known.get(column) for column in columns]
            cells.append([known.label, *figures, known.get("average"), known.source])
        return ["Open LLM Leaderboard", *columns, "average", "source"], cells
