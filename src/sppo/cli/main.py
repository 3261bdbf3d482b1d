"""The command line: `sppo run RECIPE`, and each stage as a command of its own."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core
from rich.console import Console

from sppo import __version__
from sppo.cli.evaluate import STAGE
from sppo.cli.evaluate import app as evaluate_app
from sppo.cli.game import AsJson, Clip, show_intransitivity, show_matrix, show_standings
from sppo.cli.game import app as game_app
from sppo.progress import Terminal
from sppo.recipe import Recipe, RecipeError, load, read_value
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder

INTERRUPTED, FAILED, STOPPED = 130, 1, 3


class _Commands(typer.core.TyperGroup):
    """The commands; errors of known kinds are said in words, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            message = "\ninterrupted; every finished shard is kept: the same command continues"
            Console(stderr=True).print(message, style="yellow", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, OSError, RuntimeError) as error:
            raise typer.Exit(_explain(error)) from None


app = typer.Typer(
    name="sppo",
    cls=_Commands,
    help="Self-play preference optimisation of language models (SPPO, arXiv:2405.00675).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _located(path: Any) -> Any:
    """Paths as they are, and of addresses of runs the working copies."""
    if isinstance(path, Path):
        return storage.located(path)
    return [storage.located(one) for one in path] if isinstance(path, list) else path


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A recipe (YAML), or a run folder to go on with.", callback=_located
    ),
]
RunFolderArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", callback=_located)]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or the recipe of one.", callback=_located)
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", callback=_located)]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="The run's folder, or its address (s3://...). [default: runs/<recipe's name>]",
        callback=_located,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe, e.g. seed=1."),
]
Redo = Annotated[bool, typer.Option("--redo-stale", help="Remove and redo stages made from another recipe.")]
Iteration = Annotated[
    int | None, typer.Option("--iteration", "-t", min=1, help="Which one. [default: the first that lacks it]")
]


@app.command()
def run(
    recipe: RecipeArgument,
    run_dir: RunDir = None,
    set_: Overrides = None,
    redo_stale: Redo = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; download nothing.")
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates", help="With --dry-run: estimate seconds, by a GPU (h100) or a finished run's folder."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="PROMPT,RESPONSE", help="With --rates: their mean lengths."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Work on this Ray cluster: its head's HOST:PORT, or auto."
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html at the end.")
    ] = True,
) -> None:
    """Play a whole recipe; the same command again continues where it was left."""
    values, folder = _open(recipe, run_dir, set_)
    if dry_run:
        from sppo.dry_run import read_rates, show

        show(values, Terminal(), None if rates is None else read_rates(rates, tokens))
        return
    from sppo import selfplay
    from sppo.report.end_of_run import reported

    terminal = Terminal()
    at_the_end = reported(folder.path, terminal, selfplay.GuardStop) if page else nullcontext()
    if ray is None:
        with at_the_end:
            selfplay.run(values, folder, terminal, redo_stale=redo_stale)
        return
    from sppo.executors.ray import connected

    folder = RunFolder(folder.path.resolve())  # workers may stand elsewhere
    with connected(ray, values, folder.path) as cluster, at_the_end:
        selfplay.run(values, folder, terminal, cluster, redo_stale=redo_stale)


def _stage_command(name: Any, summary: str) -> Callable[..., None]:
    def command(
        run: RunArgument,
        iteration: Iteration = None,
        run_dir: RunDir = None,
        set_: Overrides = None,
        redo_stale: Redo = False,
    ) -> None:
        values, folder = _open(run, run_dir, set_)
        if iteration is not None and iteration > values.iterations:
            raise RunError(f"--iteration {iteration}: the recipe has {values.iterations} iterations")
        from sppo.stages.single import run_stage

        run_stage(values, folder, Terminal(), name, iteration, redo_stale=redo_stale)

    command.__doc__ = summary
    return command


@app.command()
def sample(
    run: RunArgument,
    iteration: Annotated[
        int | None,
        typer.Option(
            "--iteration",
            "-t",
            min=0,
            help="Which one. [default: the first that lacks it; of other draws, the last policy]",
        ),
    ] = None,
    run_dir: RunDir = None,
    set_: Overrides = None,
    redo_stale: Redo = False,
    best_of: Annotated[
        int | None,
        typer.Option(min=2, max=1024, help="Draw so many, and keep what the oracle ranks first among them."),
    ] = None,
    mixture: Annotated[
        bool,
        typer.Option(
            "--mixture", help="Draw each response by one of the run's policies: the averaged policy."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="Of the mixture's policies, the base first. [default: equal]"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Other prompts than the run's held-out ones, for --best-of and --mixture."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file (JSON lines) of --best-of and --mixture. [default: in RUN/draws]"
        ),
    ] = None,
) -> None:
    """Draw K responses to each prompt of an iteration from its policy; or the best of n, or of the averaged policy."""
    if best_of is None and not mixture:
        for name, value in (("--weights", weights), ("--prompts", prompts), ("--output", output)):
            if value is not None:
                raise RunError(f"{name} is for --best-of and --mixture")
        if iteration == 0:
            raise RunError("--iteration 0: iterations are counted from 1; with --best-of, 0 is the base")
        _stage_command("sample", "")(run, iteration, run_dir, set_, redo_stale)
        return
    from sppo.benchmarks.run_samples import SampleRequest, sample_responses

    if weights is not None and not mixture:
        raise RunError("--weights is for --mixture")
    if iteration is not None and mixture:
        raise RunError("--iteration: the mixture is of all iterations; leave one out")
    values, folder = _open(run, run_dir, set_)
    wanted = SampleRequest(
        n=best_of or values.sampling.k,
        best=best_of is not None,
        mixture=mixture,
        weights=None if weights is None else _numbers(weights, "--weights"),
        iteration=iteration,
        prompts=prompts,
    )
    terminal = Terminal()
    terminal.say(str(sample_responses(values, folder.path, wanted, terminal, output)))


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RunError(f"{name} {text}: give numbers with commas between them, e.g. 1,1,2") from None


for _name, _summary in (
    ("annotate", "Ask the oracle about every pair of an iteration's responses."),
    ("select", "Choose the responses to train on and compute the opponent's log-probabilities."),
    ("train", "Fit the next policy to its targets."),
):
    app.command(name=_name, help=_summary)(_stage_command(_name, _summary))
_summary = "Compare an iteration's policy with the base and the previous one on held-out prompts."
evaluate_app.command(name=STAGE, help=_summary)(_stage_command("evaluate", _summary))
app.add_typer(evaluate_app, name="evaluate")


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
    algorithms: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Types of `algorithm:`; NAME=TYPE gives one a name of its own, so that it can be there twice.",
        ),
    ] = "sppo,dpo,ipo",
    seeds: Annotated[int, typer.Option(min=1, help="How many, counted from the recipe's own.")] = 5,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Its folder. [default: compare/<recipe's name>]")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace a value for all, e.g. iterations=2; or for one: dpo.algorithm.beta=0.3.",
        ),
    ] = None,
    redo_stale: Redo = False,
) -> None:
    """Algorithms side by side on the same prompts, oracle and budget; the same command again continues."""
    from sppo import compare as comparison

    home = output or Path("compare") / recipe.stem
    comparison.compare(recipe, algorithms, seeds, _overrides(set_), home, Terminal(), redo_stale=redo_stale)


@app.command()
def report(
    runs: Runs,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page. [default: RUN/report.html; of several, report.html]"),
    ] = None,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder with results of `sppo evaluate`; may be repeated. [default: evaluations; RUN/evaluations]"
        ),
    ] = None,
    all_pairs: Annotated[
        bool,
        typer.Option(
            "--all-pairs", help="Ask the oracle about the pairs of policies that were not compared."
        ),
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="Write it anew whenever the runs have got further, until they end."
        ),
    ] = None,
) -> None:
    """Write one HTML page about a run, finished or not, or about several; it needs no server and no network."""
    from sppo.report import page
    from sppo.report.watching import watch as follow

    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    folders = evaluations or [Path("evaluations")]
    if watch is None:
        page.write(runs, target, evaluations=folders, all_pairs=all_pairs)
    else:
        follow(runs, target, Terminal(), seconds=watch, evaluations=folders, all_pairs=all_pairs)
    Terminal().say(f"the page is {target}")


@app.command()
def arena(
    run: RunFolderArgument,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="base, or the number of an iteration, each. [default: the base and the last accepted policy]",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where it listens; anything but this machine is for you to name.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    oracle: Annotated[
        bool, typer.Option("--oracle/--no-oracle", help="Ask the run's oracle about what people voted on.")
    ] = True,
) -> None:
    """People compare two policies of a run blind, on a page of this machine; votes are kept in RUN/arena."""
    from sppo.arena.serving import serve

    names = None if policies is None else [name.strip() for name in policies.split(",")]
    serve(run, Terminal(), host=host, port=port, policies=names, ask_oracle=oracle)


@app.command()
def chat(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, or the folder of a policy.", callback=_located),
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the most probable token.")] = 1.0,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
) -> None:
    """Talk to the policy of a run; an empty line begins anew, Ctrl-D ends."""
    from sppo.cli.conversation import converse

    converse(run, Terminal(), max_new_tokens=max_new_tokens, temperature=temperature, system=system)


@app.command()
def export(
    policy: Annotated[
        Path,
        typer.Argument(
            metavar="POLICY", help="A run folder, or the folder of a policy or adapter.", callback=_located
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights. [default: as they are stored]"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Of one file of weights.")] = "5GB",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Upload it as well, for nobody else to see; the owner must be you."
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to-hub: for all to see.")] = False,
) -> None:
    """Write a policy as one ordinary transformers folder; an adapter is merged into its base."""
    from sppo.policy import export as exports
    from sppo.policy import hub
    from sppo.report import model_card

    if push_to_hub is not None:
        hub.check_owner(push_to_hub)
    elif public:
        raise RunError("--public is for --push-to-hub")
    exported = exports.export(policy, out, model_card.card, dtype=dtype, max_shard_size=max_shard_size)
    Terminal().say(f"{out}: {exports.describe(exported)}")
    if push_to_hub is not None:
        Terminal().say(hub.push(out, push_to_hub, public=public))


@app.command("train-oracle")
def train_oracle(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS", help="Settings of the training (YAML).")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The PairRM's folder. [default: oracles/<settings' name>]"),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Train a PairRM from judged pairs; the same command again continues where it was left."""
    from sppo.oracle import training
    from sppo.recipe import load_oracle_training

    folder = output or Path("oracles") / settings.stem
    result = training.train(load_oracle_training(settings, _overrides(set_)), folder, Terminal())
    if result:
        training.show(result, Terminal())
        Terminal().say(
            f"\nThe PairRM is in {folder}; a recipe names it as oracle: {{type: pairrm, model: {folder}}}"
        )


oracle_app = typer.Typer(help="Look at a preference oracle.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(oracle_app, name="oracle")
app.add_typer(game_app, name="game")


@oracle_app.command("convert")
def convert_oracle(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A PairRM with pickled weights.")],
) -> None:
    """Write a pytorch_model.bin as model.safetensors beside it; only weights are loaded, no code is run."""
    from sppo.oracle.pairrm_checkpoint import convert_bin

    Terminal().say(f"written: {convert_bin(folder)}")


@oracle_app.command("inspect")
def inspect_oracle(
    run: RunFolderArgument,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=1, help="Only this one.")] = None,
    clip: Clip = 0.01,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the matrices as .npy, for `sppo game`.")
    ] = None,
    per_prompt: Annotated[
        Path | None, typer.Option("--per-prompt", help="Write every prompt's measures as .csv.")
    ] = None,
) -> None:
    """How intransitive an oracle is on a run's responses, and what a scalar reward would lose; means over prompts."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from sppo import game as games
    from sppo.compare import game as run_games
    from sppo.rundir.reader import RunReader

    found = RunReader(run).preferences(iteration)
    matrices = np.concatenate([part.matrices for part in found.values()])
    measures = games.intransitivity(matrices, clip=clip)
    if output is not None:
        games.write_table(output, matrices)
    if per_prompt is not None:
        columns = {
            "iteration": [number for number, part in found.items() for _ in part.prompt_ids],
            "prompt_id": [name for part in found.values() for name in part.prompt_ids],
            **vars(measures),
        }
        pyarrow.csv.write_csv(pa.table(columns), per_prompt)
    show_intransitivity(measures.means(), as_json=as_json)
    if run_games.is_transitive(run):
        note = (
            "note: this oracle has one score per response, so its preferences are transitive by construction"
        )
        Terminal(Console(stderr=True)).say(note, "yellow")


@oracle_app.command("check")
def check_oracle(
    oracle: Annotated[
        str,
        typer.Argument(
            metavar="ORACLE", help="A run, a recipe, a file or mapping as under `oracle:`, or a type."
        ),
    ],
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="A .jsonl of prompts with responses. [default: the run's own]"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run whose responses are compared.", callback=_located)
    ] = None,
    iteration: Annotated[int | None, typer.Option("--iteration", "-t", min=1, help="Of the run.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="No more than the first so many prompts.")] = 200,
    tie: Annotated[float, typer.Option(min=0, max=0.5, help="|P - 1/2| below it is a near tie.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """How an oracle behaves: order consistency, length, near ties, cycles, texts cut, speed."""
    from sppo.benchmarks.options import read_oracle
    from sppo.oracle import check as oracle_check

    config = read_oracle(oracle)
    home = run or (Path(oracle) if (Path(oracle) / "recipe.yaml").is_file() else None)
    material = oracle_check.responses_for(home, responses, iteration, limit)
    terminal = Terminal(Console(stderr=as_json))
    found = oracle_check.check_oracle(config, material, terminal, run=home, tie=tie)
    oracle_check.show(found, Terminal(), as_json=as_json)


@game_app.command("policies")
def game_of_policies(runs: Runs, as_json: AsJson = False) -> None:
    """The game between all policies of some runs: Nash mixture, and the gaps of the last and the averaged policy."""
    from sppo import game as games
    from sppo.compare import game as run_games

    names, payoff, rivals, challenges = run_games.policies(runs, run_games.oracle_of(runs[0]).compare)
    found = games.empirical_game(payoff, names=names, challengers=challenges, challenger_names=rivals)
    if not as_json:
        show_matrix("Win rate of the row policy against the column policy", found.names, found.payoff)
    show_standings(found, as_json=as_json)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"sppo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _open(path: Path, run_dir: Path | None, overrides: list[str] | None) -> tuple[Recipe, RunFolder]:
    """The recipe and run folder that a command is about: given a run folder, the recipe in it."""
    values = _overrides(overrides)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise RunError(f"{path} is no run folder: it has no recipe.yaml; give a recipe to begin one")
        return load(path / "recipe.yaml", values), RunFolder(run_dir or path)
    return load(path, values), RunFolder(run_dir or Path("runs") / path.stem)


def _overrides(items: list[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {item}: give it as key=value, e.g. --set training.learning_rate=1e-4")
        values[key] = read_value(text, name=f"--set {item}")
    return values


def main() -> None:
    """Entry point."""
    app()


def _explain(error: Exception) -> int:
    """Say an error of a known kind and give its exit code; raise any other, which is a fault of this program."""
    import errno

    from rich.text import Text

    from sppo.progress import printable

    text = str(error)
    code = FAILED
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = f"no space left on the disk ({error.filename or text}); free some: the same command continues"
    elif type(error).__module__.split(".")[0] != "sppo" and not isinstance(error, OSError):
        raise error
    elif isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        text = f"{error}; something of another kind is in the way there: move it"
    elif type(error).__name__ == "GuardStop":
        code = STOPPED
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), printable(text)), soft_wrap=True)
    return code


if __name__ == "__main__":
    main()
