"""The six tasks of the Open LLM Leaderboard (v1), by lm-eval, from the hub's data or from local JSON lines.

A local task is a task file that includes the packaged one and names other data. Prompts, examples and scoring are those
of the packaged task.
"""

from pathlib import Path
from typing import Any

import yaml

from sppo.benchmarks.open_llm.score import OpenLlmError, Task


def packaged(task: Task) -> dict[str, Path]:
    """The packaged task files by name: one file, or one for each subject.

    Raises:
        OpenLlmError: lm-eval is not installed, or has no such task.
    """
    path = _tasks_folder() / task.file
    files = sorted(path.glob(f"{task.name}_*.yaml")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise OpenLlmError(f"this version of lm-eval has no task {task.name!r} at {task.file}")
    return {file.stem if path.is_dir() else task.name: file for file in files}


def local_files(task: Task, data: Path) -> dict[str, dict[str, Path]]:
    """The files of a task's local data, by the packaged name of each of lm-eval's tasks and by split.

    Args:
        task: a task of the leaderboard.
        data: a folder with `TASK/SPLIT.jsonl`, or for MMLU `mmlu/SUBJECT/SPLIT.jsonl`, with rows as in the hub's data sets.

    Returns:
        The files; for MMLU those of the subjects that are there.

    Raises:
        OpenLlmError: a file is missing, or all are.
    """
    by_name = {}
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
        by_name[name] = files
    if not by_name:
        raise OpenLlmError(f"{task.column}: {data / task.name} has no folder of a subject")
    return by_name


def write_local_tasks(task: Task, data: Path, folder: Path) -> list[str]:
    """Write task files that read local data.

    Args:
        task: a task of the leaderboard.
        data: the folder of the data, as for :func:`local_files`.
        folder: where the task files are written.

    Returns:
        The names of lm-eval's tasks.

    Raises:
        OpenLlmError: a file of the data is missing.
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


def _split(name: str) -> str:
    return "train" if name == "training" else name


def _tasks_folder() -> Path:
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise missing_lm_eval(error) from error
    return Path(lm_eval.tasks.__file__).parent


def missing_lm_eval(error: ImportError) -> OpenLlmError:
    """An error that says how lm-eval is installed."""
    return OpenLlmError(
        f"lm-eval is needed, which does not load ({error}); install it with: pip install 'sppo[eval]'"
    )
