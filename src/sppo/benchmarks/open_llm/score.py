"""The six tasks of the Open LLM Leaderboard (v1), by lm-eval, from the hub's data or from local JSON lines.

A local task is a task file of one's own that includes the packaged one and names other data: prompts, answers' scoring
and examples are the packaged task's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class OpenLlmError(ValueError):
    """lm-eval, its tasks or local data that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Task:
    """One task of the leaderboard.

    Attributes:
        column: in tables.
        name: of lm-eval's task or group.
        file: of the packaged task, within lm-eval's tasks; a folder of tasks where there is one for each subject.
        shots: examples in the prompt.
        metric: of lm-eval's results.
        splits: files of local data, by the split that they are.
    """

    column: str
    name: str
    file: str
    shots: int
    metric: str
    splits: tuple[str, ...]


TASKS = (
    Task("arc", "arc_challenge", "arc/arc_challenge.yaml", 25, "acc_norm,none", ("train", "test")),
    Task("truthfulqa", "truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", 0, "acc,none", ("validation",)),
    Task("winogrande", "winogrande", "winogrande/default.yaml", 5, "acc,none", ("train", "validation")),
    Task("gsm8k", "gsm8k", "gsm8k/gsm8k.yaml", 5, "exact_match,strict-match", ("train", "test")),
    Task("hellaswag", "hellaswag", "hellaswag/hellaswag.yaml", 10, "acc_norm,none", ("train", "validation")),
    Task("mmlu", "mmlu", "mmlu/default", 5, "acc,none", ("dev", "test")),
)
"""In the paper's order of columns."""


@dataclass(frozen=True)
class TaskScore:
    """A policy's score on one task.

    Attributes:
        score: in percent.
        standard_error: in percentage points.
        examples: how many it was measured on.
        parts: of how many subjects; 1 for a task without any.
    """

    score: float
    standard_error: float
    examples: int
    parts: int


def packaged(task: Task) -> dict[str, Path]:
    """The packaged task files by name: one, or one for each subject.

    Raises:
        OpenLlmError: lm-eval is not installed, or has no such task.
    """
    path = _tasks_folder() / task.file
    files = sorted(path.glob(f"{task.name}_*.yaml")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise OpenLlmError(f"this version of lm-eval has no task {task.name!r} at {task.file}")
    return {file.stem if path.is_dir() else task.name: file for file in files}


def local_files(task: Task, data: Path) -> dict[str, dict[str, Path]]:
    """A task's local data: of each of lm-eval's tasks, by its packaged name, the file of each split.

    Args:
        task: of the leaderboard.
        data: with `TASK/SPLIT.jsonl`, for MMLU `mmlu/SUBJECT/SPLIT.jsonl`, rows as in the hub's data sets.

    Returns:
        Of MMLU those subjects that are there.

    Raises:
        OpenLlmError: a file is missing, or all are.
    """
    found = {}
    for name in packaged(task):
        home = data / task.name
        if name != task.name:
            home /= name.removeprefix(f"{task.name}_")
            if not home.is_dir():
                continue
        files = {split: home / f"{split}.jsonl" for split in task.splits}
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise OpenLlmError(f"{task.column}: there is no {missing[0]}; local data have {', '.join(files)}")
        found[name] = files
    if not found:
        raise OpenLlmError(f"{task.column}: {data / task.name} has a folder for no subject")
    return found


def write_local_tasks(task: Task, data: Path, folder: Path) -> list[str]:
    """Task files that read local data.

    Args:
        task: of the leaderboard.
        data: as of :func:`local_files`.
        folder: where the task files are written.

    Returns:
        The names of lm-eval's tasks.

    Raises:
        OpenLlmError: there are no data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    including = packaged(task)
    for name, files in local_files(task, data).items():
        local: dict[str, Any] = {
            "include": str(including[name]),
            "task": f"local_{name}",
            "tag": [],
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path.resolve()) for split, path in files.items()}},
        }
        # splits that the packaged task could use but that local data need not have
        local |= {
            f"{split}_split": None for split in ("training", "validation") if _split(split) not in files
        }
        (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(local))
        names.append(f"local_{name}")
    return names


def load_model(
    folder: Path, *, dtype: str, batch_size: str, device: str, max_length: int | None = None
) -> Any:
    """The policy as lm-eval's model.

    Raises:
        OpenLlmError: lm-eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise _missing(error) from error
    size: int | str = int(batch_size) if batch_size.isdigit() else batch_size
    return HFLM(pretrained=str(folder), dtype=dtype, batch_size=size, device=device, max_length=max_length)


def measure(
    model: Any,
    task: Task,
    *,
    names: Sequence[str] | None = None,
    tasks_folder: Path | None = None,
    cache: Path | None = None,
    limit: int | None = None,
    chat_template: bool = False,
) -> tuple[TaskScore, dict[str, Any]]:
    """Measure a policy on a task.

    Args:
        model: of :func:`load_model`.
        task: of the leaderboard.
        names: of local tasks; None: the packaged task with the hub's data.
        tasks_folder: of local task files.
        cache: a file of the model's answers, which an interrupted measurement goes on from.
        limit: no more than so many examples of each task.
        chat_template: prompts as chat messages; the leaderboard has them plain.

    Returns:
        The score, and lm-eval's results and configuration of each of its tasks.

    Raises:
        OpenLlmError: lm-eval is not installed, or cannot get or read the data.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise _missing(error) from error
    manager = TaskManager(
        include_path=None if tasks_folder is None else str(tasks_folder), include_defaults=names is None
    )
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[task.name] if names is None else list(names),
            num_fewshot=task.shots,
            task_manager=manager,
            use_cache=None if cache is None else str(cache),
            limit=limit,
            apply_chat_template=chat_template,
            log_samples=False,
            bootstrap_iters=0,
        )
    except Exception as error:  # what the hub, the disk, the formats and the tasks' own Python raise
        way_out = (
            "without the hub name a folder of local data"
            if names is None
            else "local data are whole JSON lines with the columns of the hub's data sets, in every file at least one"
        )
        raise OpenLlmError(f"{task.column}: lm-eval fails: {_reasons(error)}; {way_out}") from error
    assert found is not None
    counts = {name: int(count["effective"]) for name, count in found["n-samples"].items()}
    leaves = {name: found["results"][name] for name in counts}
    kept = {
        "results": leaves,
        "versions": found.get("versions", {}),
        "n-samples": counts,
        "n-shot": found.get("n-shot", {}),
    }
    return _weighted(leaves, counts, task.metric), kept


def average(scores: Iterable[float]) -> float:
    """The leaderboard's average: of the six tasks alike."""
    values = list(scores)
    return sum(values) / len(values)


def _reasons(error: BaseException) -> str:
    """An error and what it was raised from: the loaders of data sets say only there what is wrong."""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return said if error.__cause__ is None else f"{said} ({_reasons(error.__cause__)})"


def _weighted(results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], metric: str) -> TaskScore:
    """The mean over all examples of all parts."""
    total = sum(counts.values())
    mean = sum(counts[name] * float(results[name][metric]) for name in counts) / total
    # a share of right answers, but for TruthfulQA's: there its binomial error is an upper bound
    error = math.sqrt(max(mean * (1 - mean), 0.0) / max(total - 1, 1))
    return TaskScore(100 * mean, 100 * error, total, len(counts))


def _split(name: str) -> str:
    return "train" if name == "training" else name


def _tasks_folder() -> Path:
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise _missing(error) from error
    return Path(lm_eval.tasks.__file__).parent


def _missing(error: ImportError) -> OpenLlmError:
    return OpenLlmError(
        f"the Open LLM Leaderboard needs lm-eval, which does not load ({error}); install it with: pip install 'sppo[eval]'"
    )
