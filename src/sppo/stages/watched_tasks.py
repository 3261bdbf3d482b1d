"""Watched tasks (`evaluation.tasks`): what a policy knows, measured item by item by lm-eval's tasks."""

import contextlib
import difflib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo.benchmarks.open_llm import files, lm_eval_tasks
from sppo.benchmarks.open_llm.score import TASKS, OpenLlmError
from sppo.recipe import RecipeError, WatchedTask
from sppo.rundir.shards import file_digest

METRICS = ("acc_norm", "acc", "exact_match")
"""The figures of an item that are taken if the recipe names none, the first that the task has."""
_LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow", "pandas")


class WatchedTaskError(RecipeError):
    """A watched task that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class LoadedTask:
    """A watched task with its data.

    Attributes:
        config: the recipe's entry.
        manager: lm-eval's index that finds the task.
        tasks: lm-eval's tasks by name: one, or the members of a group.
        metric: the name of the figure of an item.
        filter: the name of lm-eval's filter of answers; None: the task's first.
    """

    config: WatchedTask
    manager: Any
    tasks: Mapping[str, Any]
    metric: str
    filter: str | None

    @property
    def size(self) -> int:
        """The number of items that the task has."""
        return sum(len(task.eval_docs) for task in self.tasks.values())

    def draw(self, seed: int) -> list[tuple[str, int]]:
        """The items that the seed draws, as lm-eval's task and the position in it."""
        drawn = lm_eval_tasks.draw(self.tasks, self.config.items, seed)
        return [(member, number) for member, numbers in drawn.items() for number in numbers]

    def requests(self, items: Sequence[tuple[str, int]]) -> tuple[int, int]:
        """The number of requests to a model that the items take, and their characters in all."""
        lengths: list[int] = []
        with lm_eval_tasks.quiet():
            for member, numbers in _by_member(items).items():
                task = self.tasks[member]
                lm_eval_tasks.set_shots(task, self.config.shots)
                task.build_all_requests(limit=None, samples=numbers, rank=0, world_size=1)
                for instance in task.instances:
                    lengths.append(sum(len(text) for text in instance.args if isinstance(text, str)))
        return len(lengths), sum(lengths)

    def measure(self, model: Any, items: Sequence[tuple[str, int]]) -> list[float]:
        """A policy's scores of the items.

        Args:
            model: the policy as lm-eval's model.
            items: lm-eval's task and the position in it, for each item.

        Raises:
            WatchedTaskError: lm-eval fails, or gives an item no number.
        """
        sample = _by_member(items)
        with lm_eval_tasks.quiet(), _named(self.config):
            evaluated = lm_eval_tasks.evaluate(
                model,
                self.manager,
                list(sample),
                shots=self.config.shots,
                title=self.config.name,
                way_out=_way_out(self.config),
                sample=sample,
            )
        scores: dict[tuple[str, int], Any] = {}
        for member, rows in evaluated["samples"].items():
            wanted = self.filter or rows[0]["filter"]
            for row in rows:
                if row["filter"] == wanted:
                    scores[member, row["doc_id"]] = row.get(self.metric)
        values = [scores.get(item) for item in items]
        wrong = next(
            (n for n, value in enumerate(values) if not isinstance(value, int | float)), None
        )  # True counts as 1
        if wrong is not None:
            raise WatchedTaskError(
                f"evaluation.tasks: {self.config.name}: {self.metric} of item {items[wrong][1]} is {values[wrong]!r}, no"
                " number; name another metric"
            )
        return [float(value) for value in values if value is not None]


@contextlib.contextmanager
def opened(config: WatchedTask) -> Iterator[LoadedTask]:
    """A watched task with its data, which may come from the hub.

    Raises:
        WatchedTaskError: lm-eval is not installed, does not know the task or cannot read its data, or the task has no
            figure of an item that is better when higher.
    """
    with tempfile.TemporaryDirectory() as folder:
        with lm_eval_tasks.quiet(), _named(config):
            manager, names = _found(config, Path(folder))
            tasks = lm_eval_tasks.load_tasks(manager, names, config.name, _way_out(config))
            loaded = LoadedTask(config, manager, tasks, *_metric(config, tasks))
        yield loaded


def check_name(config: WatchedTask) -> None:
    """Check that lm-eval knows a task, without reading its data.

    Raises:
        WatchedTaskError: it does not, or lm-eval is not installed.
    """
    with lm_eval_tasks.quiet(), _named(config), tempfile.TemporaryDirectory() as folder:
        _found(config, Path(folder))


def is_local(config: WatchedTask) -> bool:
    """Whether the data of a task lie on this machine; those of packaged tasks come from the hub."""
    return config.data is not None or (
        config.is_file and _read(Path(config.task)).get("dataset_path") in _LOCAL_FORMATS
    )


def identity(config: WatchedTask) -> dict[str, Any]:
    """The settings of a task, with the digests of its task file and of its local data.

    Raises:
        WatchedTaskError: a file is missing or cannot be read.
    """
    values = config.model_dump(exclude={"task", "data"})
    if config.is_file:
        path = Path(config.task)
        sources = [path, *sorted(path.parent.glob("*.py")), *_data_files(_read(path))]
    elif config.data is not None:
        sources = sorted((Path(config.data) / config.task).rglob("*.jsonl"))
    else:
        sources = []
    return {"task": config.name, **values, "files": [_digest(config, source) for source in sources]}


def _digest(config: WatchedTask, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise WatchedTaskError(
            f"evaluation.tasks: {config.name}: {path} cannot be read: {error.strerror}"
        ) from error


def _found(config: WatchedTask, folder: Path) -> tuple[Any, list[str]]:
    """lm-eval's index of tasks, and the names of the task in it; a folder takes task files that are written."""
    if config.is_file:
        path = Path(config.task)
        content = _read(path)
        name = content.get("task", content.get("group"))
        if not isinstance(name, str):
            raise WatchedTaskError(f"evaluation.tasks: {path}: a task file has a key `task` with its name")
        return lm_eval_tasks.task_manager(path.parent), [name]
    if config.data is not None:
        known = {task.name: task for task in TASKS}
        if config.task not in known:
            raise WatchedTaskError(
                f"evaluation.tasks: {config.task}: data is for the tasks {', '.join(known)}; write a task file (.yaml) that"
                " names its data instead"
            )
        names = files.write_local_tasks(known[config.task], Path(config.data), folder)
        return lm_eval_tasks.task_manager(folder), names
    manager = lm_eval_tasks.task_manager(None)
    if config.task not in manager.all_tasks:
        near = difflib.get_close_matches(config.task, manager.all_tasks, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists its tasks"
        raise WatchedTaskError(f"evaluation.tasks: lm-eval has no task {config.task!r}; {hint}")
    return manager, [config.task]


def _metric(config: WatchedTask, tasks: Mapping[str, Any]) -> tuple[str, str | None]:
    better = {name: higher for task in tasks.values() for name, higher in task.higher_is_better().items()}
    if config.metric is None:
        usable = [name for name in METRICS if name in better]
        if not usable:
            raise WatchedTaskError(
                f"evaluation.tasks: {config.name} has none of {', '.join(METRICS)}; name one of its metrics:"
                f" {', '.join(better)}"
            )
        return usable[0], None
    name, _, wanted = config.metric.partition(",")
    if not better.get(name):
        usable = [metric for metric, higher in better.items() if higher]
        raise WatchedTaskError(
            f"evaluation.tasks: {config.name}: metric: {config.metric} is no figure of it that is better when higher;"
            f" there are {', '.join(usable)}"
        )
    return name, wanted or None


def _read(path: Path) -> dict[str, Any]:
    """A task file as a mapping, in which functions of lm-eval's notation (`!function`) are left out."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WatchedTaskError(f"evaluation.tasks: the task file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WatchedTaskError(f"evaluation.tasks: the task file {path} is no mapping")
    return content


def _data_files(content: Mapping[str, Any]) -> list[Path]:
    """The local files that a task file reads its data from."""
    arguments = content.get("dataset_kwargs")
    named = arguments.get("data_files", {}) if isinstance(arguments, dict) else {}
    values = list(named.values()) if isinstance(named, dict) else [named]
    flat = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [Path(path) for path in flat if isinstance(path, str) and Path(path).is_file()]


def _by_member(items: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    sample: dict[str, list[int]] = {}
    for member, number in sorted(items):
        sample.setdefault(member, []).append(number)
    return sample


def _way_out(config: WatchedTask) -> str:
    if config.data is not None:
        return lm_eval_tasks.LOCAL
    return "without the hub name a task file (.yaml) whose data lie here, or `data`"


@contextlib.contextmanager
def _named(config: WatchedTask) -> Iterator[None]:
    """Say in errors of lm-eval's tasks which key of the recipe they are about."""
    try:
        yield
    except OpenLlmError as error:
        raise WatchedTaskError(f"evaluation.tasks: {error}") from error
