"""`sppo evaluate head-to-head`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.benchmarks import options


class HeadToHead:
    """The head-to-head comparison as `sppo evaluate` finds it."""

    name = "head-to-head"
    help = "Win rates between policies by an oracle, with confidence intervals and the von Neumann winner."
    example = "sppo evaluate head-to-head runs/quickstart --every-iteration"

    @staticmethod
    @options.expanded
    def command(
        common: options.ResponseOptions,
        oracle: options.Oracle = None,
        prompts: Annotated[
            str | None,
            typer.Option(
                help="A file or data set of prompts. [default: the prompts of the output files, or the first run's"
                " held-out prompts]"
            ),
        ] = None,
        responses: Annotated[
            int, typer.Option(min=1, help="The number of responses of each policy to each prompt.")
        ] = 1,
        confidence: Annotated[
            float, typer.Option(min=0.5, max=0.999, help="The level of the confidence intervals.")
        ] = 0.95,
        votes: Annotated[
            list[Path] | None,
            typer.Option(
                help="Show people's votes instead of an oracle's: RUN/arena/votes.parquet of `sppo arena`; may be"
                " repeated."
            ),
        ] = None,
    ) -> None:
        """Compare policies and files of outputs on the same prompts, or show people's votes."""
        from sppo.benchmarks import participants
        from sppo.benchmarks.head_to_head import play
        from sppo.recipe import PromptSource
        from sppo.rundir.folder import RunError

        if votes:
            if common.policies or oracle:
                raise RunError(
                    "--votes: votes say who is compared, and by whom; name neither policies nor --oracle"
                )
            play.show(common.terminal, play.of_votes(votes, confidence=confidence, seed=common.seed))
            return
        if not common.policies:
            raise RunError("head to head needs at least two policies or files of outputs, or --votes")
        run = next((run for run in map(participants.run_of, common.policies) if run is not None), None)
        if run is not None and len(common.policies) == 1:  # its policies against each other
            common = replace(common, every_iteration=True)
        compared = common.participants()
        if oracle is None and run is None:
            raise RunError("no oracle: name one with --oracle, e.g. --oracle '{type: pairrm, model: PATH}'")
        config = options.read_oracle(oracle or str(run))
        asked = None
        if prompts is not None:
            asked = play.read_prompts(PromptSource.model_validate({"source": prompts}))
        elif run is not None and all(participant.is_policy for participant in compared):
            asked = participants.held_out_prompts(run)
        with common.evaluation(HeadToHead.name, run=run) as evaluation:
            game = play.play(evaluation, compared, config, asked, responses=responses, confidence=confidence)
        play.show(evaluation.terminal, game)
        evaluation.terminal.show(f"all of it is in {evaluation.home / 'head-to-head.json'}")

    @staticmethod
    def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
        """No table: the report shows the win-rate matrix instead."""
        return [], []
