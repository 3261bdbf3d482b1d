"""Measuring a policy on lm-eval's tasks: all items, or a sample of them that a seed draws."""

import contextlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sppo import randomness
from sppo.benchmarks.open_llm.files import missing_lm_eval
from sppo.benchmarks.open_llm.score import OpenLlmError, Task, TaskScore, score
from sppo.policy.chat_format import ChatFormat
from sppo.progress import Advance, unseen


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
        with quiet():
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


def as_lm_eval_model(model: Any, tokenizer: Any) -> Any:
    """A model that is loaded already as lm-eval's.

    Raises:
        OpenLlmError: lm-eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise missing_lm_eval(error) from error
    with quiet():  # it warns that the model is loaded already
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)


BATCH = 8
"""The number of requests that a model which is loaded already computes together."""

Sample = Mapping[str, Sequence[int]]
"""The items to evaluate: ascending positions within each of lm-eval's tasks; a task without any is left out."""


@cache
def task_manager(tasks_folder: Path | None) -> Any:
    """lm-eval's index of tasks: the packaged ones, or those of a folder alone; read once, because there are thousands.

    Raises:
        OpenLlmError: lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing_lm_eval(error) from error
    folder = None if tasks_folder is None else str(tasks_folder)
    return TaskManager(include_path=folder, include_defaults=folder is None)


Bar = Callable[[int], contextlib.AbstractContextManager[Advance]]
"""Shows a bar of so many answers, and gives the function that advances it."""


def no_bar(count: int) -> contextlib.AbstractContextManager[Advance]:
    """Show no bar."""
    return contextlib.nullcontext(unseen)


class _Counted:
    """lm-eval's model behind a bar of this package, which each answer advances.

    lm-eval hands every answer to the model's cache hook as soon as it is there; this object is the hook that counts, and hands
    them on.
    """

    def __init__(self, model: Any, bar: Bar) -> None:
        self._model, self._bar, self._advance, self._stderr = model, bar, unseen, sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def set_cache_hook(self, hook: Any) -> None:
        self._hook = hook
        self._model.set_cache_hook(self)

    def add_partial(self, *answer: Any) -> None:
        self._hook.add_partial(*answer)
        self._advance(1)

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        return self._answer(self._model.loglikelihood, requests)

    def generate_until(self, requests: Sequence[Any]) -> Any:
        return self._answer(self._model.generate_until, requests)

    def _answer(self, compute: Callable[..., Any], requests: Sequence[Any]) -> Any:
        with contextlib.redirect_stderr(self._stderr), self._bar(len(requests)) as self._advance:
            return compute(requests, disable_tqdm=True)


def load_tasks(manager: Any, names: Sequence[str], title: str, way_out: str) -> dict[str, Any]:
    """lm-eval's tasks by name, with their data; a group is replaced by its members.

    Raises:
        OpenLlmError: lm-eval cannot get or read a task or its data; the message ends with the way out.
    """
    try:
        tasks: dict[str, Any] = manager.load(list(names))["tasks"]
        for task in tasks.values():
            len(task.eval_docs)
    except Exception as error:  # what the hub, the disk, the formats and the tasks' own Python raise
        raise OpenLlmError(f"{title}: lm-eval fails: {_reasons(error)}; {way_out}") from error
    return tasks


def draw(tasks: Mapping[str, Any], count: int, seed: int) -> dict[str, list[int]]:
    """Draw items of the tasks together, without replacement; all of them if there are no more than `count`.

    The sample depends on the seed and on the number of items of each task. A smaller sample is part of a larger one.
    """
    items = [(name, number) for name, task in sorted(tasks.items()) for number in range(len(task.eval_docs))]
    order = randomness.generator("items", seed).permutation(len(items))
    drawn: dict[str, list[int]] = {}
    for position in sorted(order[:count].tolist()):
        name, number = items[position]
        drawn.setdefault(name, []).append(number)
    return drawn


def evaluate(
    model: Any,
    manager: Any,
    names: Sequence[str],
    *,
    shots: int | None,
    title: str,
    way_out: str,
    sample: Sample | None = None,
    cache: Path | None = None,
    chat_template: bool = False,
) -> dict[str, Any]:
    """lm-eval's results of a model on tasks, with the figures of each item under `samples`.

    Args:
        model: the result of :func:`load_model`.
        manager: the result of :func:`task_manager`.
        names: lm-eval's tasks.
        shots: the number of examples in the prompt; None: as the tasks say.
        title: the name of the tasks in errors.
        way_out: the end of the message of an error.
        sample: the items to evaluate; None: all.
        cache: a file of the model's responses, from which an interrupted measurement continues.
        chat_template: whether prompts are chat messages.

    Raises:
        OpenLlmError: lm-eval cannot get or read the data.
    """
    from lm_eval import evaluate as run  # the model is lm-eval's, so it is installed
    from lm_eval.api.model import CachingLM

    tasks = load_tasks(manager, names if sample is None else list(sample), title, way_out)
    try:
        for task in tasks.values():
            set_shots(task, shots)
        _seed()
        evaluated = run(
            lm=model if cache is None else CachingLM(model, f"{cache}_rank0.db"),
            task_dict={"tasks": tasks},
            samples=None if sample is None else {name: list(items) for name, items in sample.items()},
            bootstrap_iters=0,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=True,
        )
    except Exception as error:  # as in load_tasks, and what the model raises
        raise OpenLlmError(f"{title}: lm-eval fails: {_reasons(error)}; {way_out}") from error
    assert evaluated is not None
    return dict(evaluated)


def set_shots(task: Any, shots: int | None) -> None:
    """Give a task of lm-eval's its number of examples; one whose own number is 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own != 0:
        task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
    task.set_fewshot_seed(seed=_SEED)


def _seed() -> None:
    """Seed the generators that tasks and models may use, with lm-eval's own seeds.

    Its function `simple_evaluate` does the same, and collects an account of the machine besides, which takes seconds each time.
    """
    import torch

    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


_SEED = 1234
"""lm-eval's seed of examples, numpy and torch."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars and the notes of lm-eval and of its data sets, which would interfere with our own."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def measure(
    model: Any,
    task: Task,
    *,
    names: Sequence[str] | None = None,
    tasks_folder: Path | None = None,
    cache: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    chat_template: bool = False,
    bar: Bar = no_bar,
) -> tuple[TaskScore, dict[str, Any]]:
    """Measure a policy on a task of the leaderboard.

    Args:
        model: the result of :func:`load_model`.
        task: a task of the leaderboard.
        names: the names of local tasks; None: the packaged task with the hub's data.
        tasks_folder: the folder of local task files.
        cache: a file of the model's responses, from which an interrupted measurement continues.
        limit: the number of items to evaluate, which are drawn from the whole task; None: all of them.
        seed: the seed that draws them.
        chat_template: whether prompts are chat messages; the leaderboard's are plain.
        bar: shows how many answers are there; with a cache only.

    Returns:
        The score, and lm-eval's results and configuration of each of its tasks.

    Raises:
        OpenLlmError: lm-eval cannot get or read the data.
    """
    way_out = HUB if names is None else LOCAL
    wanted = [task.name] if names is None else list(names)
    sample = None
    counted = _Counted(model, bar)  # outside of the silence, since it keeps the standard error for the bar
    with quiet():
        manager = task_manager(tasks_folder)
        if limit is not None:
            sample = draw(load_tasks(manager, wanted, task.column, way_out), limit, seed)
        evaluated = evaluate(
            counted,
            manager,
            wanted,
            shots=task.shots,
            title=task.column,
            way_out=way_out,
            sample=sample,
            cache=cache,
            chat_template=chat_template,
        )
    counts = {name: int(count["effective"]) for name, count in evaluated["n-samples"].items()}
    leaves = {name: evaluated["results"][name] for name in counts}
    kept = {"results": leaves, "n-samples": counts}
    kept |= {key: evaluated.get(key, {}) for key in ("versions", "n-shot")}
    return score(evaluated["samples"], task.metric), kept


HUB = "without the hub name a folder of local data"
LOCAL = "local data are whole JSON lines with the columns of the hub's data sets, at least one in every file"


def _reasons(error: BaseException) -> str:
    """An error with its causes, since loaders of data sets say only in the cause what is wrong."""
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return reason if error.__cause__ is None else f"{reason} ({_reasons(error.__cause__)})"
