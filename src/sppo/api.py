"""The Python interface of the package: `sppo.run`, `sppo.load_run`, and the object that both return.

What is handed over in memory becomes part of the run folder (prompts) or of the recipe (the name of a function), so that
a run that was started from Python is continued, reported and compared like any other.
"""

import hashlib
import html
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sppo.progress import Terminal
from sppo.recipe import OracleSection, Recipe, RecipeError, load, parse
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder, write_text
from sppo.rundir.reader import RunReader, Table, is_run
from sppo.rundir.shards import read_shard

if TYPE_CHECKING:
    import datasets

Oracle = Callable[..., Any] | Mapping[str, Any] | OracleSection
Prompts = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]
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
    folder = storage.located(Path(run_dir).expanduser())
    replaced: dict[str, Any] = dict(overrides or {})
    if oracle is not None:
        replaced["oracle"] = _oracle_values(oracle)
    if prompts is not None:
        replaced["prompts.train"] = _source(prompts, folder, "train")
    if held_out is not None:
        replaced["prompts.held_out"] = (
            held_out if isinstance(held_out, int) else _source(held_out, folder, "held-out")
        )
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        values = parse(recipe, replaced)
    else:
        values = read_recipe(Path(recipe).expanduser(), replaced)
    terminal = Terminal(None if progress else Console(quiet=True))
    play(values, folder, terminal, on=on, redo_stale=redo_stale, report=report, callbacks=callbacks)
    return Run(folder)


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
        RunError: the path is a folder without a recipe.
        RecipeError: the recipe or an override is wrong.
    """
    if not path.is_dir():
        return load(path, overrides)
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
        return (
            f"Run({str(self.path)!r}, {len(self.iterations)} of {self.recipe.iterations} iterations finished)"
        )

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


def _oracle_values(oracle: Oracle) -> Any:
    if isinstance(oracle, OracleSection):
        return oracle.model_dump(mode="json")
    if not callable(oracle):
        return oracle
    from sppo.oracle.function import named

    return {"type": "function", "function": named(oracle)}


def _source(prompts: Prompts, folder: Path, name: str) -> Any:
    """A recipe's source of prompts; prompts in memory are written into the run folder under a name by their content."""
    if isinstance(prompts, str | Mapping):
        return prompts
    if isinstance(prompts, os.PathLike):
        return os.fspath(prompts)
    rows = [_row(number, row) for number, row in enumerate(prompts)]
    if not rows:
        raise RecipeError(f"prompts.{name}: there are no prompts")
    text = "".join(f"{row}\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder.resolve() / "inputs" / f"{name}-{digest}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return {"source": str(path)}


def _row(number: int, row: Any) -> str:
    if isinstance(row, str):
        row = {"prompt": row}
    elif isinstance(row, list | tuple):
        row = {"messages": list(row)}
    if not isinstance(row, Mapping):
        raise RecipeError(
            f"prompts: number {number} is {type(row).__name__}; a prompt is a text, a list of messages, or a mapping of"
            " columns such as {'prompt': ...}"
        )
    try:
        return json.dumps(dict(row), ensure_ascii=False)
    except TypeError as error:
        raise RecipeError(
            f"prompts: number {number} cannot be stored: {error}; keep only columns of text"
        ) from error
