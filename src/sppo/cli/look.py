"""Commands that compare runs and show them to people: `compare`, `report` and `arena`."""

from pathlib import Path
from typing import Annotated

import typer

from sppo.cli import options

app = typer.Typer()


@app.command(
    rich_help_panel=options.RUN,
    epilog="Example: sppo compare recipes/quickstart.yaml --algorithms sppo,dpo,ipo --seeds 3",
)
@options.described_by_docstring
def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE")],
    common: options.OutputOptions,
    algorithms: Annotated[str, typer.Option(metavar="NAME,NAME,...")] = "sppo,dpo,ipo",
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    redo_stale: options.RedoStale = False,
) -> None:
    """Run several algorithms on the same prompts, oracle and budget, and compare them over seeds.

    Args:
        recipe: A recipe (a YAML file).
        algorithms: The algorithms to compare, by `algorithm.type`; NAME=TYPE lists a type under a name of its own, so
            that it can take part more than once.
        seeds: How many seeds to run, counted from the recipe's seed.
        output: The folder of the comparison. [default: compare/NAME, after the recipe's file]
        set_: Replace a value in every run (iterations=2) or in those of one algorithm (dpo.algorithm.beta=0.3); may
            be repeated.
    """
    from sppo import compare as comparison
    from sppo.recipe import read_overrides

    folder = output or Path("compare") / recipe.stem
    overrides = read_overrides(set_)
    comparison.compare(recipe, algorithms, seeds, overrides, folder, common.terminal, redo_stale=redo_stale)


@app.command(rich_help_panel=options.LOOK, epilog="Example: sppo report runs/quickstart --watch 30")
@options.described_by_docstring
def report(
    runs: options.Runs,
    common: options.OutputOptions,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    evaluations: list[Path] | None = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs")] = False,
    watch: Annotated[float | None, typer.Option(min=1, metavar="SECONDS")] = None,
) -> None:
    """Write an HTML page about one run or several, finished or not; it works without a server or network.

    Args:
        output: The page to write. [default: RUN/report.html; for several runs report.html]
        evaluations: A folder with results of `sppo evaluate`; may be repeated. [default: evaluations; RUN/evaluations]
        all_pairs: Ask the oracle about the pairs of policies that were not compared so far.
        watch: Look for progress at this interval and update the page until the runs end.
    """
    from sppo.report import page
    from sppo.report.watching import watch as follow

    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    folders = evaluations or [Path("evaluations")]
    if watch is None:
        page.write(runs, target, evaluations=folders, all_pairs=all_pairs)
    else:
        follow(runs, target, common.terminal, seconds=watch, evaluations=folders, all_pairs=all_pairs)
    common.terminal.show(f"the page is {target}")
    common.terminal.show_json({"page": str(target)})


@app.command(rich_help_panel=options.LOOK, epilog="Example: sppo arena runs/quickstart --policies 1,3")
@options.described_by_docstring
def arena(
    run: options.RunFolderArgument,
    common: options.OutputOptions,
    policies: Annotated[str | None, typer.Option(metavar="NAME,NAME")] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
    oracle: bool = True,
) -> None:
    """Serve a page on which people compare two policies of a run blind; votes are kept in RUN/arena.

    Args:
        policies: The policies to compare: base, or the number of an iteration. [default: the base and the last
            accepted policy]
        host: The address to listen on; the default can be reached from this machine only.
        port: The port to listen on; 0 takes any free port.
        oracle: Also ask the run's oracle about the responses that people compared.
    """
    from sppo.arena.serving import serve

    names = None if policies is None else [name.strip() for name in policies.split(",")]
    serve(run, common.terminal, host=host, port=port, policies=names, ask_oracle=oracle)
