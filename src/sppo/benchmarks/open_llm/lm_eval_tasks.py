"""Measuring a policy on one of the leaderboard's tasks by lm-eval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.benchmarks.open_llm.files import missing_lm_eval
from sppo.benchmarks.open_llm.score import OpenLlmError, Task, TaskScore, weighted
from sppo.policy.chat_format import ChatFormat


def load_model(
    folder: Path,
    *,
    dtype: str,
    batch_size: str,
    device: str,
    max_length: int | None = None,
    chat: ChatFormat | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The policy in a folder as lm-eval's model.

    Args:
        folder: whole weights and a tokenizer.
        dtype: the data type of the weights.
        batch_size: a number or `auto`.
        device: where the weights go.
        max_length: the longest sequence in tokens; None: the model's own.
        chat: the tokenizer, the template's arguments and date, and the end of a thought, where prompts are chat messages.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        OpenLlmError: lm-eval is not installed, or the policy does not load.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise missing_lm_eval(error) from error
    size: int | str = int(batch_size) if batch_size.isdigit() else batch_size
    try:
        return HFLM(
            pretrained=str(folder),
            dtype=dtype,
            batch_size=size,
            device=device,
            max_length=max_length,
            tokenizer=None if chat is None else chat.tokenizer,
            chat_template_args=None if chat is None else chat.template.variables,
            think_end_token=chat.thought.end if chat is not None and chat.thought is not None else None,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        trust = (
            "; if you trust it, --set policy.trust_remote_code=true" if "trust_remote" in str(error) else ""
        )
        raise OpenLlmError(f"{folder} does not load: {_reasons(error)}{trust}") from error


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
        model: the result of :func:`load_model`.
        task: a task of the leaderboard.
        names: the names of local tasks; None: the packaged task with the hub's data.
        tasks_folder: the folder of local task files.
        cache: a file of the model's responses, from which an interrupted measurement continues.
        limit: the number of examples of each task to evaluate; None: all of them.
        chat_template: whether prompts are chat messages; the leaderboard's are plain.

    Returns:
        The score, and lm-eval's results and configuration of each of its tasks.

    Raises:
        OpenLlmError: lm-eval cannot get or read the data.
    """
    import lm_eval  # the model is lm-eval's, so it is installed
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=None if tasks_folder is None else str(tasks_folder), include_defaults=names is None
    )
    try:
        evaluated = lm_eval.simple_evaluate(
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
            else "local data are whole JSON lines with the columns of the hub's data sets, at least one in every file"
        )
        raise OpenLlmError(f"{task.column}: lm-eval fails: {_reasons(error)}; {way_out}") from error
    assert evaluated is not None
    counts = {name: int(count["effective"]) for name, count in evaluated["n-samples"].items()}
    leaves = {name: evaluated["results"][name] for name in counts}
    kept = {"results": leaves, "n-samples": counts}
    kept |= {key: evaluated.get(key, {}) for key in ("versions", "n-shot")}
    return weighted(leaves, counts, task.metric), kept


def _reasons(error: BaseException) -> str:
    """An error with its causes, since loaders of data sets say only in the cause what is wrong."""
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return reason if error.__cause__ is None else f"{reason} ({_reasons(error.__cause__)})"
