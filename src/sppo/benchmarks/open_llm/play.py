"""The Open LLM Leaderboard: a policy on its six tasks, by lm-eval, in one table."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.open_llm import files, lm_eval_tasks
from sppo.benchmarks.open_llm.score import TASKS, OpenLlmError, Task, average
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.results import save
from sppo.policy import load as policies
from sppo.policy.opening import OpenPolicy
from sppo.progress import Terminal
from sppo.rundir.folder import RunError
from sppo.rundir.shards import file_digest

NAME = "open-llm"


class OpenLlm:
    """The leaderboard with the settings of the command.

    Args:
        home: the evaluation's folder.
        data: the folder of local data; None: the hub's data.
        columns: the columns of the tasks to run; None: all six.
        dtype: the data type of the weights; None: by the device.
        batch_size: lm-eval's batch size: a number or `auto`.
        limit: the number of items of each task to evaluate; None: all of them.
        seed: the seed that draws these items.
        chat_template: whether prompts are chat messages; the leaderboard's are plain.
        terminal: where progress is shown.

    Raises:
        RunError: a task or the batch size is unknown.
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
        seed: int = 0,
        chat_template: bool = False,
    ) -> None:
        known = {task.column: task for task in TASKS}
        if not re.fullmatch(r"auto(:\d+)?|[1-9]\d*", batch_size):
            raise RunError(f"--batch-size {batch_size}: a number from 1 on, auto or auto:N is expected")
        unknown = [column for column in columns or [] if column not in known]
        if unknown:
            raise RunError(f"there is no task {unknown[0]!r}; there are {', '.join(known)}")
        self.tasks = [task for task in TASKS if not columns or task.column in columns]
        self.home, self.data, self.terminal, self.batch_size = home, data, terminal, batch_size
        dtype = dtype or policies.default_dtype()
        self.settings: dict[str, Any] = {
            "dtype": dtype,
            "limit": limit,
            "seed": None if limit is None else seed,
            "chat_template": chat_template,
        }

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """Evaluate a policy and return its row; each task is kept as soon as it is measured."""
        if participant.policy is None:
            raise RunError(
                f"{participant.name}: the Open LLM Leaderboard needs a policy, not a file of outputs"
            )
        local = {} if self.data is None else self._digests(self.data)
        scores: dict[str, dict[str, Any]] = {}
        with contextlib.ExitStack() as temporary:
            policy = participant.policy
            load = cache(lambda: self._load(policy, temporary))
            for task in self.tasks:
                scores[task.column] = self._measure(participant, task, load, local.get(task.column, "hub"))
        is_whole = len(self.tasks) == len(TASKS)
        mean, error = average(list(scores.values())) if is_whole else (None, None)
        row = {
            "name": participant.name,
            "policy": participant.record(),
            "tasks": scores,
            "average": mean,
            "average_standard_error": error,
            "lm_eval": metadata.version("lm_eval"),
            "data": None if self.data is None else str(self.data),
            **self.settings,
        }
        save(self.home / participant.file_name / "result.json", NAME, row)
        return row

    def _load(self, policy: OpenPolicy, temporary: contextlib.ExitStack) -> Any:
        """The policy as lm-eval's model; the folder of a merged adapter is kept until the end of the evaluation."""
        dtype = self.settings["dtype"]
        folder = temporary.enter_context(policy.ordinary_folder(dtype))
        return lm_eval_tasks.load_model(
            folder,
            dtype=dtype,
            batch_size=self.batch_size,
            device=policies.default_device(),
            # base models without a chat template are measured as well: it is loaded only where it is used
            chat=policy.chat if self.settings["chat_template"] else None,
            trust_remote_code=policy.settings.trust_remote_code,
        )

    def _measure(
        self, participant: Participant, task: Task, load: Callable[[], Any], data: Any
    ) -> dict[str, Any]:
        settings = {
            "task": task.name,
            "shots": task.shots,
            "lm_eval": _version(),
            "data": data,
            **self.settings,
        }
        title = f"{NAME}, {participant.name}: {task.column}"
        home = self.home / participant.file_name
        stage = evaluation_stage(home, title, task.column, settings, [participant.fingerprint])
        if not stage.is_done():
            model = load()
            folder = stage.folder / "tasks"
            names = None if self.data is None else files.write_local_tasks(task, self.data, folder)
            stage.folder.mkdir(parents=True, exist_ok=True)
            score, kept = lm_eval_tasks.measure(
                model,
                task,
                names=names,
                tasks_folder=None if names is None else folder,
                cache=stage.folder / "answers",
                limit=self.settings["limit"],
                seed=self.settings["seed"] or 0,
                chat_template=self.settings["chat_template"],
                bar=lambda count: self.terminal.bar(title, count, "answers"),
            )
            stage.publish([], score=asdict(score), lm_eval=kept)
        score_of_task: dict[str, Any] = stage.read_record()["score"]
        return {**score_of_task, "shots": task.shots, "metric": task.metric}

    def _digests(self, data: Path) -> dict[str, list[list[str]]]:
        """The files of each task with their digests; a missing file is an error before any task is measured."""
        return {
            task.column: [
                [str(path.relative_to(data)), file_digest(path)]
                for path in sorted(
                    path for splits in files.local_files(task, data).values() for path in splits.values()
                )
            ]
            for task in self.tasks
        }


def _version() -> str:
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise OpenLlmError(
            "the Open LLM Leaderboard needs lm-eval; install it with: pip install 'sppo[eval]'"
        ) from None
