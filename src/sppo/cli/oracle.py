"""Commands about preference oracles: `train-oracle`, and `oracle check`, `inspect`, `convert` and `serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sppo.cli import options
from sppo.cli.tables import show_intransitivity, show_votes

if TYPE_CHECKING:
    from sppo.recipe import OracleConfig

app = typer.Typer()
oracle_app = typer.Typer(
    name="oracle",
    help="Check how an oracle behaves and how intransitive its preferences are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    "train-oracle",
    rich_help_panel=options.MEASURE,
    epilog="Example: sppo train-oracle recipes/oracles/tinyworld.yaml",
)
@options.described_by_docstring
def train_oracle(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS")],
    common: options.OutputOptions,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    set_: options.Overrides = None,
) -> None:
    """Train a PairRM, a reward model or a general preference model on judged pairs; the same command again continues.

    Args:
        settings: The settings of the training (a YAML file).
        output: The folder of the trained oracle. [default: oracles/NAME, after the settings' file]
    """
    from sppo.oracle import training
    from sppo.recipe import load_oracle_training, read_overrides

    folder = output or Path("oracles") / settings.stem
    terminal = common.terminal
    result = training.train(load_oracle_training(settings, read_overrides(set_)), folder, terminal)
    if result:
        from sppo.oracle.training.results import oracle_type, show

        show(result, terminal)
        terminal.show_json(result)
        kind = oracle_type(result)
        probability = ", probability: calibrated" if kind == "pairrm" else ""
        terminal.show(
            f"\nThe oracle is in {folder}; use it in a recipe as oracle: {{type: {kind}, model: {folder}{probability}}}"
        )


@oracle_app.command("convert", epilog="Example: sppo oracle convert PairRM")
@options.described_by_docstring
def convert_oracle(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A PairRM with pickled weights.")],
    common: options.OutputOptions,
) -> None:
    """Convert a PairRM's pytorch_model.bin to model.safetensors; only weights are loaded, no code is run."""
    from sppo.oracle.pairrm_checkpoint import convert_bin

    written = convert_bin(folder)
    common.terminal.show(f"wrote {written}")
    common.terminal.show_json({"file": str(written)})


@oracle_app.command(
    "inspect",
    epilog="Example: sppo oracle inspect runs/quickstart --per-prompt all.csv. Example: sppo oracle inspect votes.csv --figure cycles.svg",
)
@options.described_by_docstring
def inspect_oracle(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="A run folder, or files of votes.", callback=options.local),
    ],
    common: options.OutputOptions,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=1)] = None,
    clip: options.Clip = 0.01,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    per_prompt: Path | None = None,
    by_voter: Annotated[bool, typer.Option("--by-voter")] = False,
    figure: Path | None = None,
    sets: Annotated[int, typer.Option(min=20)] = 1000,
    seed: int = 0,
) -> None:
    """Measure how intransitive preferences are, an oracle's on a run's responses or those of votes, and what a reward loses.

    Args:
        iteration: The iteration of a run. [default: all of them]
        output: Write a run's matrices to this .npy file, which `sppo game` reads.
        per_prompt: Write the measures of each prompt of a run to this .csv file.
        by_voter: Inspect the votes of each voter as well, such as those of several judges in a file.
        figure: Draw the cycles of votes beside those of transitive votes to this .svg, .png or .pdf file.
        sets: How many sets of transitive votes to simulate.
        seed: Random seed of the simulation and of the folds.
    """
    from sppo.rundir.folder import RunError

    runs = [source for source in sources if source.is_dir()]
    if runs and (len(sources) > 1 or by_voter or figure is not None):
        raise RunError(
            f"{runs[0]} is a folder: a run is inspected alone, without --by-voter and --figure; give files of votes instead"
        )
    if runs:
        _inspect_run(runs[0], iteration, clip, output, per_prompt, common=common)
        return
    if iteration is not None or output is not None or per_prompt is not None:
        raise RunError(
            f"{sources[0]} is a file of votes; --iteration, --output and --per-prompt belong to runs"
        )
    _inspect_votes(sources, figure, by_voter=by_voter, sets=sets, seed=seed, common=common)


def _inspect_run(
    run: Path,
    iteration: int | None,
    clip: float,
    output: Path | None,
    per_prompt: Path | None,
    *,
    common: options.OutputOptions,
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from sppo import game as games
    from sppo.compare import game as run_games
    from sppo.rundir.reader import RunReader

    preferences = RunReader(run).preferences(iteration)
    matrices = np.concatenate([compared.matrices for compared in preferences.values()])
    measures = games.intransitivity(matrices, clip=clip)
    if output is not None:
        games.write_table(output, matrices)
    if per_prompt is not None:
        columns = {
            "iteration": [number for number, compared in preferences.items() for _ in compared.prompt_ids],
            "prompt_id": [
                prompt_id for compared in preferences.values() for prompt_id in compared.prompt_ids
            ],
            **vars(measures),
        }
        pyarrow.csv.write_csv(pa.table(columns), per_prompt)
    show_intransitivity(measures.means(), common.terminal)
    if run_games.is_transitive(run):
        common.terminal.note(
            "this oracle gives each response one score, so its preferences are transitive by construction"
        )


def _inspect_votes(
    files: list[Path],
    figure: Path | None,
    *,
    by_voter: bool,
    sets: int,
    seed: int,
    common: options.OutputOptions,
) -> None:
    from sppo.compare import people

    terminal = common.terminal
    sides = people.inspect(files, terminal, by_voter=by_voter, sets=sets, seed=seed)
    show_votes(sides, terminal)
    for text in (note for side in sides for note in people.notes(side)):
        terminal.note(text)
    if figure is not None:
        people.draw(sides, figure)
        terminal.show(f"wrote the figure to {figure}")


@oracle_app.command("check", epilog="Example: sppo oracle check runs/quickstart")
@options.described_by_docstring
def check_oracle(
    oracle: Annotated[str, typer.Argument(metavar="ORACLE")],
    common: options.OutputOptions,
    held_out: Annotated[bool, typer.Option("--held-out")] = False,
    responses: Path | None = None,
    run: options.OtherRun = None,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=1)] = None,
    limit: Annotated[int, typer.Option(min=1)] = 200,
    tie: Annotated[float, typer.Option(min=0, max=0.5)] = 0.05,
) -> None:
    """Check an oracle's consistency under order, its length bias, near ties, cycles, truncated texts and speed.

    Args:
        oracle: A run, a recipe, an oracle's type, or a mapping (or a file with one) as under a recipe's `oracle:`.
        held_out: Check the held-out oracle (`evaluation.oracle`) of a run instead of the one that it learns from.
        responses: A .jsonl file of prompts with responses. [default: the run's own responses]
        iteration: The iteration of the run.
        limit: The largest number of prompts to check.
        tie: Count a comparison as a near tie if |P - 1/2| is below this.
    """
    from sppo.oracle import check as oracle_check
    from sppo.recipe.oracle import oracle_name

    config, own_run = _chosen(oracle, held_out)
    source = run or own_run
    material = oracle_check.responses_for(source, responses, iteration, limit, config.prompt_form())
    terminal = common.terminal
    if own_run is not None:
        role = "held-out oracle" if held_out else "oracle that the run learns from"
        terminal.say(f"checking {oracle_name(config)}, the {role}")
    findings = oracle_check.check_oracle(config, material, terminal, run=source, tie=tie)
    oracle_check.show(findings, terminal)


def _chosen(oracle: str, held_out: bool) -> "tuple[OracleConfig, Path | None]":
    """The oracle that an argument names, and its run if it is a run's."""
    from sppo.benchmarks.options import read_oracle
    from sppo.oracle import check as oracle_check
    from sppo.rundir.folder import RunError

    run = Path(oracle)
    if (run / "recipe.yaml").is_file():
        return oracle_check.oracle_of_run(run, held_out=held_out), run
    if held_out:
        raise RunError(f"--held-out: {oracle} is no run, so it has no held-out oracle; leave --held-out out")
    return read_oracle(oracle), None


@oracle_app.command(
    "serve",
    epilog="Example: sppo oracle serve runs/quickstart --port 8766",
)
@options.described_by_docstring
def serve_oracle(
    oracle: Annotated[str, typer.Argument(metavar="ORACLE")],
    common: options.OutputOptions,
    held_out: Annotated[bool, typer.Option("--held-out")] = False,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8766,
    cohort: Annotated[int | None, typer.Option(min=2)] = None,
    cohort_seconds: Annotated[float, typer.Option(min=0.1)] = 600,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE")] = None,
    max_responses: Annotated[int, typer.Option(min=2)] = 64,
    max_characters: Annotated[int, typer.Option(min=1)] = 100_000,
    max_waiting: Annotated[int, typer.Option(min=1)] = 1024,
) -> None:
    """Serve an oracle to other trainers and programs over HTTP: K x K preferences, win rates, rewards of cohorts.

    Args:
        oracle: A run, a recipe, an oracle's type, or a mapping (or a file with one) as under a recipe's `oracle:`.
        held_out: Serve the held-out oracle (`evaluation.oracle`) of a run instead of the one that it learns from.
        host: The address to listen on; the default can be reached from this machine only.
        port: The port to listen on; 0 takes any free port.
        cohort: The number of responses to a prompt that /verify waits for and compares with each other.
        cohort_seconds: How long a response waits until its cohort is complete.
        api_key_env: The environment variable that holds the key that requests must bring. [default: none is needed]
        max_responses: The most responses to a prompt.
        max_characters: The most characters of a prompt or a response.
        max_waiting: The most prompts that wait for the oracle, and the most responses that wait for their cohorts.
    """
    from sppo.oracle_server.serving import serve

    config, run = _chosen(oracle, held_out)
    serve(
        config,
        common.terminal,
        run=run,
        host=host,
        port=port,
        cohort=cohort,
        cohort_seconds=cohort_seconds,
        api_key_env=api_key_env,
        responses=max_responses,
        characters=max_characters,
        waiting=max_waiting,
    )
