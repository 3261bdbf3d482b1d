"""Measures a policy on one of the leaderboard's tasks by lm-eval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.benchmarks.open_llm.files import missing_lm_eval
from sppo.benchmarks.open_llm.score import OpenLlmError, Task, TaskScore, weighted


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
        raise missing_lm_eval(error) from error
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
        raise missing_lm_eval(error) from error
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
    return weighted(leaves, counts, task.metric), kept


def _reasons(error: BaseException) -> str:
    """An error and what it was raised from: the loaders of data sets say only there what is wrong."""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return said if error.__cause__ is None else f"{said} ({_reasons(error.__cause__)})"
