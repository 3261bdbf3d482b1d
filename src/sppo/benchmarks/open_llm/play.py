"""The Open LLM Leaderboard: a policy on its six tasks, by lm-eval, in one table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from sppo.benchmarks import published
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.open_llm import files, lm_eval_tasks
from sppo.benchmarks.open_llm.score import TASKS, OpenLlmError, Task, average
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.results import save, show_table
from sppo.policy import load as policies
from sppo.progress import Terminal
from sppo.rundir.folder import RunError
from sppo.rundir.shards import file_digest

NAME = "open-llm"


class OpenLlm:
    """The leaderboard.

    Args:
        home: the evaluation's folder.
        data: local data; None: the hub's.
        columns: of the tasks; None: all six.
        dtype: of the weights; None: by the device.
        batch_size: lm-eval's: a number or `auto`.
        limit: no more than so many examples of each task.
        chat_template: prompts as chat messages; the leaderboard has them plain.
        terminal: where progress is shown.

    Raises:
        RunError: an unknown task or batch size.
    """

    def __init__(
        self,
        home: Path,
        data: Path | None,
        columns: Sequence[str] | None,
        terminal: Terminal,
        *,
        dtype: str | None = None,
        batch_size: str = "8",
        limit: int | None = None,
        chat_template: bool = False,
    ) -> None:
        known = {task.column: task for task in TASKS}
        if not re.fullmatch(r"auto(:\d+)?|[1-9]\d*", batch_size):
            raise RunError(f"--batch-size {batch_size}: a number from 1 on, auto or auto:N is expected")
        unknown = [column for column in columns or [] if column not in known]
        if unknown:
            raise RunError(f"there is no task {unknown[0]!r}; there are {', '.join(known)}")
        self.tasks = [task for task in TASKS if not columns or task.column in columns]
        self.home, self.data, self.terminal = home, data, terminal
        self.device = policies.default_device()
        self.dtype = dtype or ("float32" if self.device == "cpu" else "bfloat16")
        self.batch_size, self.limit, self.chat_template = batch_size, limit, chat_template

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """One policy's row; each task is kept as soon as it is measured."""
        if not participant.is_policy:
            raise RunError(
                f"{participant.name}: the Open LLM Leaderboard needs a policy, not a file of outputs"
            )
        local = {} if self.data is None else self._local_data(self.data)
        scores: dict[str, dict[str, Any]] = {}
        models: list[Any] = []
        with self.terminal.bar(f"{NAME}, {participant.name}", len(self.tasks), "tasks") as advance:
            for task in self.tasks:
                scores[task.column] = self._task(participant, task, models, local.get(task.column, "hub"))
                advance(1)
        values = [row["score"] for row in scores.values()]
        result = {
            "name": participant.name,
            "policy": {"path": str(participant.path), "fingerprint": participant.fingerprint},
            "tasks": scores,
            "average": average(values) if len(self.tasks) == len(TASKS) else None,
            "lm_eval": metadata.version("lm_eval"),
            "data": None if self.data is None else str(self.data),
            "dtype": self.dtype,
            "limit": self.limit,
            "chat_template": self.chat_template,
        }
        save(self.home / participant.file_name / "result.json", NAME, result)
        return result

    def _task(self, participant: Participant, task: Task, models: list[Any], data: Any) -> dict[str, Any]:
        settings = {
            "task": task.name,
            "shots": task.shots,
            "lm_eval": _version(),
            "data": data,
            "dtype": self.dtype,
            "limit": self.limit,
            "chat_template": self.chat_template,
        }
        title = f"{NAME}, {participant.name}: {task.column}"
        made = evaluation_stage(
            self.home / participant.file_name, title, task.column, settings, [participant.fingerprint]
        )
        if not made.is_done():
            models[:] = models or [
                lm_eval_tasks.load_model(
                    participant.path, dtype=self.dtype, batch_size=self.batch_size, device=self.device
                )
            ]
            folder = made.folder / "tasks"
            names = None if self.data is None else files.write_local_tasks(task, self.data, folder)
            made.folder.mkdir(parents=True, exist_ok=True)
            score, kept = lm_eval_tasks.measure(
                models[0],
                task,
                names=names,
                tasks_folder=None if names is None else folder,
                cache=made.folder / "answers",
                limit=self.limit,
                chat_template=self.chat_template,
            )
            made.publish([], score=asdict(score), lm_eval=kept)
        found: dict[str, Any] = made.read_record()["score"]
        return {**found, "shots": task.shots, "metric": task.metric}

    def _local_data(self, data: Path) -> dict[str, list[list[str]]]:
        """Of each task its files and their digests; what is missing is said before hours are spent on other tasks."""
        paths_by_task = {
            task.column: sorted(path for of in files.local_files(task, data).values() for path in of.values())
            for task in self.tasks
        }
        return {
            column: [[str(path.relative_to(data)), file_digest(path)] for path in paths]
            for column, paths in paths_by_task.items()
        }


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells: the rows, and the published ones below them."""
    columns = [task.column for task in TASKS]
    heads = ["Open LLM Leaderboard", *columns, "average", "source"]
    cells: list[list[Any]] = [
        [
            row["name"],
            *(row["tasks"].get(column, {}).get("score") for column in columns),
            row["average"],
            f"lm-eval {row['lm_eval']}" + ("" if row["limit"] is None else f", {row['limit']} of each task"),
        ]
        for row in rows
    ]
    for of in published.rows(NAME):
        cells.append([of.label, *(of.get(column) for column in columns), of.get("average"), of.source])
    return heads, cells


def show(terminal: Terminal, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, and the published ones below them."""
    show_table(terminal, *table(rows))
    subjects = {row["tasks"]["mmlu"]["parts"] for row in rows if "mmlu" in row["tasks"]}
    for count in sorted(subjects - {57}):
        terminal.say(f"note: mmlu is the mean over {count} of its 57 subjects", "yellow")


def _version() -> str:
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise OpenLlmError(
            "the Open LLM Leaderboard needs lm-eval; install it with: pip install 'sppo[eval]'"
        ) from None
