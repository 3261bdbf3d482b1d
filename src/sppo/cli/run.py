"""`sppo run`, and a command for each stage of an iteration."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sppo.cli import options

app = typer.Typer()


@app.command(
    rich_help_panel=options.RUN,
    epilog="Example: sppo run recipes/quickstart.yaml --set iterations=2 --run-dir runs/short",
)
@options.described_by_docstring
def run(
    recipe: options.RecipeArgument,
    common: options.OutputOptions,
    run_dir: options.RunDir = None,
    set_: options.Overrides = None,
    redo_stale: options.RedoStale = False,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    rates: Annotated[str | None, typer.Option(metavar="GPU|RUN")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="PROMPT,RESPONSE")] = None,
    on: Annotated[str | None, typer.Option(metavar="PLACE")] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    report: bool = True,
    iterations: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Run all iterations of a recipe; the same command again continues an interrupted run.

    Args:
        dry_run: Show what the run would do; compute and download nothing.
        rates: With --dry-run: estimate the time from the speed of a GPU (a100, h100, h200) or of a finished run.
        tokens: With --rates: the mean lengths of prompts and responses to assume, in tokens.
        on: Where to compute: local, ray:ADDRESS, or NAME[:ADDRESS] of an installed plug-in. [default: local]
        ray: Compute on this Ray cluster, like --on ray:ADDRESS: HOST:PORT of its head node, or auto.
        report: Write RUN/report.html when the run ends.
        iterations: The number of iterations, T; more than before continue a finished run. [default: as the recipe says]
    """
    from sppo.api import play
    from sppo.rundir.folder import RunError

    further = [] if iterations is None else [f"iterations={iterations}"]
    values, folder = options.open_run(recipe, run_dir, [*(set_ or []), *further])
    if dry_run:
        from sppo.dry_run import read_rates, show

        show(values, common.terminal, None if rates is None else read_rates(rates, tokens))
        return
    if on is not None and ray is not None:
        raise RunError(f"--ray {ray}: it stands for --on ray:{ray}; leave out --on {on}")
    place = on or ("local" if ray is None else f"ray:{ray}")
    play(values, folder.path, common.terminal, on=place, redo_stale=redo_stale, report=report)


@app.command(rich_help_panel=options.STAGES, epilog="Example: sppo sample runs/quickstart --best-of 16")
@options.described_by_docstring
def sample(
    run: options.RunArgument,
    common: options.OutputOptions,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=0)] = None,
    run_dir: options.RunDir = None,
    set_: options.Overrides = None,
    redo_stale: options.RedoStale = False,
    best_of: Annotated[int | None, typer.Option(min=2, max=1024)] = None,
    mixture: Annotated[bool, typer.Option("--mixture")] = False,
    weights: Annotated[str | None, typer.Option(metavar="W,W,...")] = None,
    prompts: str | None = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Sample K responses to each prompt of an iteration; or the best of n, or from the averaged policy.

    Args:
        iteration: The iteration. [default: the first that lacks responses; with --best-of, the last one]
        best_of: Sample this many responses and keep the one that the oracle prefers.
        mixture: Sample each response from one of the run's policies, drawn at random: the averaged policy.
        weights: The weights of the mixture's policies, the base policy first. [default: equal weights]
        prompts: With --best-of or --mixture: prompts to use instead of the held-out ones.
        output: With --best-of or --mixture: the JSON lines file to write. [default: a file in RUN/draws]
    """
    from sppo.rundir.folder import RunError

    if best_of is None and not mixture:
        for option, value in (("--weights", weights), ("--prompts", prompts), ("--output", output)):
            if value is not None:
                raise RunError(f"{option} works only with --best-of or --mixture")
        if iteration == 0:
            raise RunError("--iteration 0: iterations are counted from 1; 0 is the base with --best-of only")
        run_stage("sample", run, iteration, run_dir, set_, redo_stale, common)
        return
    from sppo.benchmarks.run_samples import SampleRequest, sample_responses

    if weights is not None and not mixture:
        raise RunError("--weights works only with --mixture")
    if iteration is not None and mixture:
        raise RunError("--iteration: the mixture is made of all iterations; leave out one of the two options")
    values, folder = options.open_run(run, run_dir, set_)
    request = SampleRequest(
        n=best_of or values.sampling.k,
        best=best_of is not None,
        mixture=mixture,
        weights=None if weights is None else tuple(options.parse_numbers(weights, "--weights")),
        iteration=iteration,
        prompts=prompts,
    )
    written = sample_responses(values, folder.path, request, common.terminal, output)
    common.terminal.show(str(written))
    common.terminal.show_json({"file": str(written)})


def run_stage(
    stage: Any,
    run: Path,
    iteration: int | None,
    run_dir: Path | None,
    overrides: list[str] | None,
    redo_stale: bool,
    common: options.OutputOptions,
) -> None:
    """Run one stage of an iteration, the first unfinished iteration unless one is named."""
    from sppo.progress import counted_text
    from sppo.rundir.folder import RunError

    values, folder = options.open_run(run, run_dir, overrides)
    if iteration is not None and iteration > values.iterations:
        raise RunError(
            f"--iteration {iteration}: the recipe has {counted_text(values.iterations, 'iteration')}"
        )
    from sppo.stages import single

    single.run_stage(values, folder, common.terminal, stage, iteration, redo_stale=redo_stale)


def stage_command(stage: str) -> Callable[..., None]:
    """The function behind the command of a stage that needs no options of its own."""

    def command(
        run: options.RunArgument,
        common: options.OutputOptions,
        iteration: options.Iteration = None,
        run_dir: options.RunDir = None,
        set_: options.Overrides = None,
        redo_stale: options.RedoStale = False,
    ) -> None:
        run_stage(stage, run, iteration, run_dir, set_, redo_stale, common)

    return options.expanded(command)


for _stage, _summary in (
    ("annotate", "Ask the oracle to compare each pair of an iteration's responses."),
    ("select", "Choose the responses to train on and compute the opponent's log-probabilities."),
    ("train", "Train the next policy on the selected responses."),
):
    app.command(
        _stage,
        help=_summary,
        rich_help_panel=options.STAGES,
        epilog=f"Example: sppo {_stage} runs/quickstart --iteration 1",
    )(stage_command(_stage))
