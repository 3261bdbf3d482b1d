"""`sppo evaluate ifeval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class IFEval:
    """IFEval as `sppo evaluate` finds it."""

    name = "ifeval"
    help = "IFEval: the share of verifiable instructions that responses follow, by a program."
    example = "sppo evaluate ifeval runs/quickstart --data input_data.jsonl"

    @staticmethod
    @options.expanded
    def command(
        common: options.ResponseOptions,
        best_of: options.BestOfOptions,
        data: Annotated[
            Path | None,
            typer.Option("--data", help="The benchmark's file of prompts, input_data.jsonl."),
        ] = None,
        limit: Annotated[
            int | None, typer.Option(min=1, help="Evaluate only the first prompts, for a first look.")
        ] = None,
    ) -> None:
        """Evaluate policies and files of responses."""
        from sppo.benchmarks import results
        from sppo.benchmarks.ifeval import play
        from sppo.rundir.folder import RunError

        participants = common.participants()
        if not participants:
            raise RunError("nothing to evaluate: name policies, or files of responses")
        file = options.needed(data, "--data")
        with common.evaluation(IFEval.name, best_of) as evaluation:
            benchmark = play.IFEval(evaluation, file, limit)
            rows = [benchmark.evaluate(participant) for participant in participants]
            results.save_all(evaluation.home, IFEval.name, rows, evaluation.terminal)
        common.show(IFEval.table(rows), rows)

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """The four scores, each with its standard error over prompts."""
        measures = ["prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"]
        heads = ["IFEval", *(head for name in measures for head in (name.replace("_", " "), "+-"))]
        cells = [
            [row["name"], *(row[key] for name in measures for key in (name, f"{name}_error")), row["prompts"]]
            for row in rows
        ]
        return [*heads, "prompts"], cells
