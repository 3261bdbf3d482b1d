"""The Python interface of the package: `sppo.run`, `sppo.load_run` and the object that both return, and further functions.

What is handed over in memory becomes part of the run folder (prompts) or of the recipe (the name of a function), so that
a run that was started from Python is continued, reported and compared like any other.
"""

import html
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sppo.instructions import INPUTS
from sppo.memory_inputs import Oracle, Rows, oracle_values, source
from sppo.progress import Terminal, counted_text
from sppo.recipe import Recipe, RecipeError, load, load_oracle_training, parse, registry
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.reader import RunReader, Table, is_run
from sppo.rundir.shards import read_shard

if TYPE_CHECKING:
    import datasets

Prompts = Rows
Callback = Callable[[Mapping[str, Any]], None]


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    oracle: Oracle | None = None,
    prompts: Prompts | None = None,
    held_out: Prompts | int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    on: str = "local",
    redo_stale: bool = False,
    report: bool = True,
    progress: bool = True,
) -> "Run":
    """Play all iterations of a recipe (Algorithm 1 of arXiv:2405.00675); the same call again continues where it was left.

    Args:
        recipe: a YAML file, or the recipe's keys and values.
        oracle: replaces the recipe's `oracle`. Its keys and values, or a function `(prompts, responses) -> [N, K, K]` of
            preference probabilities that stands at the top level of a module, program or notebook.
        prompts: replaces the recipe's `prompts.train`: a source as in a recipe, or the prompts themselves, as texts, as
            conversations (lists of messages), as rows with the columns of docs/data.md, or as a `datasets.Dataset`.
        held_out: replaces `prompts.held_out`: like `prompts`, or the number of prompts to set aside.
        run_dir: the run's folder or address; by default runs/NAME after the recipe's file.
        overrides: dotted keys and the values that replace the recipe's, e.g. `{"training.learning_rate": 1e-6}`.
        callbacks: functions that are called after each iteration with its row of the summary.
        on: where to compute, as in `sppo run --on`: `local`, `ray:ADDRESS`, or an installed plug-in.
        redo_stale: remove and redo the stages that were computed from a different recipe or from different inputs.
        report: write report.html when the run ends.
        progress: show progress bars and the table of iterations.

    Raises:
        RecipeError: the recipe cannot be used; the message names every wrong field.
        StaleRun: the folder holds stages of another recipe, and `redo_stale` is not set.
        GuardStop: an iteration failed, and the recipe says that this stops the run.
    """
    if run_dir is None:
        if not isinstance(recipe, str | os.PathLike):
            raise RecipeError("run_dir: missing; name the folder of the run, e.g. run_dir='runs/mine'")
        run_dir = run_folder(Path(recipe))
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):
        raise RecipeError(
            f"callbacks: must be a list of functions (got {callbacks!r}), e.g. callbacks=[print]"
        )
    folder = storage.located(Path(run_dir).expanduser())
    replaced = {**(overrides or {}), **_handed_over(oracle, prompts, held_out, folder / "inputs")}
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        values = parse(recipe, replaced)
    else:
        values = read_recipe(Path(recipe).expanduser(), replaced)
    terminal = Terminal(None if progress else Console(quiet=True))
    play(values, folder, terminal, on=on, redo_stale=redo_stale, report=report, callbacks=callbacks)
    return Run(folder)


def _handed_over(
    oracle: Oracle | None, prompts: Prompts | None, held_out: Prompts | int | None, folder: Path
) -> dict[str, Any]:
    """The recipe's keys that what is handed over replaces; prompts are written into the folder."""
    values: dict[str, Any] = {}
    if oracle is not None:
        values["oracle"] = oracle_values(oracle)
    if prompts is not None:
        values["prompts.train"] = source(prompts, folder, "prompts")
    if held_out is not None:
        values["prompts.held_out"] = _held_out(held_out, folder)
    return values


def _held_out(held_out: Prompts | int, folder: Path) -> Any:
    if isinstance(held_out, bool | float):
        raise RecipeError(
            f"held_out: must be a whole number of prompts, or prompts (got {held_out!r}); for a share of the prompts, compute"
            " it: held_out=len(prompts) // 5"
        )
    return held_out if isinstance(held_out, int) else source(held_out, folder, "held-out")


def play(
    recipe: Recipe,
    folder: Path,
    terminal: Terminal,
    *,
    on: str = "local",
    redo_stale: bool = False,
    report: bool = True,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Play a recipe in a folder, at a place to compute, and write its report; the core of `sppo run` and :func:`run`."""
    from sppo import selfplay
    from sppo.executors import executor_at
    from sppo.report.end_of_run import reported

    if on != "local":
        folder = folder.resolve()  # workers may run in another working directory
    at_the_end = reported(folder, terminal, selfplay.GuardStop) if report else nullcontext()
    with executor_at(on, recipe, folder) as executor, at_the_end:
        selfplay.run(
            recipe, RunFolder(folder), terminal, executor, redo_stale=redo_stale, callbacks=callbacks
        )


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe's file, or the recipe of a run folder.

    Raises:
        RunError: the path is a folder without a recipe, or the recipe reads what `sppo inputs` has yet to write.
        RecipeError: the recipe or an override is wrong.
    """
    if not path.is_dir():
        recipe = load(path, overrides)
        if Path(recipe.policy.model).is_relative_to(INPUTS) and not INPUTS.is_dir():
            raise RunError(
                f"{path}: there is no folder {INPUTS}, which the recipe reads; `sppo inputs` writes it"
            )
        return recipe
    if not is_run(path):
        raise RunError(
            f"{path} is not a run folder, because it has no recipe.yaml; name a recipe to start a run"
        )
    return load(RunReader(path).recipe_file, overrides)


def run_folder(recipe: Path) -> Path:
    """The folder of a recipe's run if none is named: runs/NAME after the recipe's file; a run folder is its own."""
    return recipe if recipe.expanduser().is_dir() else Path("runs") / recipe.stem


def load_run(run_dir: str | os.PathLike[str]) -> "Run":
    """Open a run folder, finished or not.

    Raises:
        RunError: the folder is not a run's.
    """
    return Run(storage.located(Path(run_dir).expanduser()))


def evaluate(
    benchmark: str,
    *policies: "Run | str | os.PathLike[str]",
    prompts: Prompts | None = None,
    oracle: Oracle | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Play a benchmark, as `sppo evaluate BENCHMARK` does, and return its results.

    Args:
        benchmark: its name: head-to-head, alpaca-eval, arena-hard, mt-bench, open-llm, ifeval, or a plug-in's.
        policies: runs, policy folders, hub names or files of outputs.
        prompts: replaces the benchmark's prompts, where it lets them be replaced (head-to-head); as in :func:`run`.
        oracle: the oracle that compares; as in :func:`run`.
        output: the folder of all results; by default evaluations/BENCHMARK.
        progress: show progress bars and the table of results.
        options: the further options of the command, e.g. `data=PATH`, `responses=4`, `sampling={"temperature": 0.7}`;
            dashes become underscores.

    Returns:
        The content of OUTPUT/BENCHMARK.json.

    Raises:
        RunError: there is no such option, or the benchmark cannot be played with what is given.
        sppo.recipe.registry.UnknownName: there is no such benchmark.
    """
    play_benchmark = registry.load("benchmarks", benchmark).command
    home = Path(output or Path("evaluations") / benchmark)
    given = {**options, "output": home}
    if policies:
        given["policies"] = [_place(policy) for policy in policies]
    if prompts is not None:
        rows = source(prompts, home / "inputs", "prompts")
        given["prompts"] = rows["source"] if isinstance(rows, Mapping) else rows
    if oracle is not None:
        given["oracle"] = oracle if isinstance(oracle, str) else oracle_values(oracle)
    known = inspect.signature(play_benchmark).parameters
    for name in given.keys() - known.keys():
        near = registry.nearest(name, known)
        raise RunError(
            f"{name}: {benchmark} has no such option"
            + (f"; did you mean {near}?" if near else f"; it has {', '.join(known)}")
        )
    values = {name: parameter.default for name, parameter in known.items()} | {"quiet": not progress} | given
    for name in ("oracle", "sampling", "judge", "best_of_oracle"):
        if isinstance(values.get(name), Mapping):
            values[name] = json.dumps(values[name])  # the command reads YAML, of which JSON is a part
    play_benchmark(**values)
    result: dict[str, Any] = json.loads((home / f"{benchmark}.json").read_text(encoding="utf-8"))
    return result


def train_oracle(
    settings: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    pairs: Rows | None = None,
    output: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an oracle on judged pairs, as `sppo train-oracle` does; the same call again continues.

    Args:
        settings: a YAML file, or its keys and values, such as `encoder` and `training`; None takes the defaults.
        pairs: replaces `pairs`: a source, or the rows themselves, as mappings or as a `datasets.Dataset`, with `chosen`
            and `rejected`, or with the columns of docs/train_oracle.md.
        output: the folder of the trained oracle: `{"type": "pairrm", "model": FOLDER}`, or with a head on a backbone
            `{"type": "reward_model", "model": FOLDER}` or `{"type": "general_preference", "model": FOLDER}`.
        overrides: dotted keys and the values that replace those of the settings.
        progress: show progress bars and the measures.

    Returns:
        The content of train_oracle.json: the measures on held-out pairs, and those of a length-only baseline.

    Raises:
        RecipeError: the settings cannot be used.
        sppo.oracle.OracleError: the pairs cannot be used.
    """
    from sppo.oracle import training
    from sppo.oracle.training.results import show

    folder = Path(output).expanduser()
    replaced = dict(overrides or {})
    if pairs is not None:
        rows = source(pairs, folder.parent / "inputs", "pairs")
        replaced["pairs"] = rows if isinstance(rows, Mapping) else {"source": rows}
    terminal = Terminal(None if progress else Console(quiet=True))
    read = load_oracle_training(settings or {}, replaced)
    result = training.train(read, folder, terminal)
    show(result, terminal)
    return result


def _place(policy: "Run | str | os.PathLike[str]") -> str:
    return str(policy.path) if isinstance(policy, Run) else os.fspath(policy)


class Run:
    """The results of a run. Nothing is changed by reading them.

    Args:
        path: the run's folder.

    Raises:
        RunError: the folder is not a run's.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RunReader(path)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._reader.path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self._reader.recipe

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json; before the first iteration has ended, one without iterations."""
        return self._reader.summary or {"iterations": []}

    @property
    def iterations(self) -> list[dict[str, Any]]:
        """The figures of each finished iteration: win rates with intervals, lengths, KL, seconds, warnings."""
        return list(self.summary["iterations"])

    def policy(self, iteration: int | None = None) -> Path:
        """The folder of a policy, which transformers can load.

        Args:
            iteration: the iteration that trained the policy; 0: the base policy; None: the policy that the run has
                accepted last.

        Raises:
            RunError: there is no such policy yet.
        """
        if iteration is None:
            return self._reader.last_policy().folder
        return self._reader.named_policy(iteration).folder

    def responses(self, iteration: int, *, held_out: bool = False) -> "datasets.Dataset":
        """The responses that an iteration was trained on, one row for each prompt.

        Args:
            iteration: the iteration t, whose responses pi_t gave.
            held_out: read the responses to the held-out prompts instead, which the policy that the iteration has trained
                gave; iteration 0 is the base policy.

        Raises:
            RunError: there are none yet.
        """
        return self._data_set("evaluation" if held_out else "responses", iteration)

    def preferences(self, iteration: int) -> "datasets.Dataset":
        """The preference matrices P(y_i > y_j | x) of an iteration, [K, K] for each prompt.

        Raises:
            RunError: there are none yet.
        """
        return self._data_set("preferences", iteration)

    def report(self) -> "Report":
        """Write the page about the run, and return it; a notebook shows it.

        Raises:
            ValueError: nothing of the run can be shown yet.
        """
        from sppo.report import page

        path = self.path / "report.html"
        page.write([self.path], path)
        return Report(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.iterations)} of {counted_text(self.recipe.iterations, 'iteration')} finished)"

    def _data_set(self, table: Table, iteration: int) -> "datasets.Dataset":
        import datasets
        import pyarrow as pa

        shards = self._reader.table(iteration, table)
        return datasets.Dataset(pa.concat_tables([read_shard(shard) for shard in shards]))


class Report(os.PathLike[str]):
    """The page about a run. A notebook shows it in a frame of its own.

    Args:
        path: the HTML file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        # In a frame, the page's styles cannot reach the notebook's, and the notebook's cannot reach the page's.
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe title="Report" srcdoc="{page}" style="width: 100%; height: 800px; border: 0"></iframe>'
        )
