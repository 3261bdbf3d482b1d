r"""Algorithm 1 of SPPO (arXiv:2405.00675): the loop over iterations.

for t in 1..T:
    y_1..K ~ pi_t(. | x)                                    sample
    P(y_i > y_j | x) for every pair                         annotate
    P^(y_i > pi_t | x) = mean_j P(y_i > y_j | x)            select
    pi_{t+1} = argmin E (log pi/pi_t - eta (P^ - 1/2))^2    train
    win rate against the base and against pi_t              evaluate
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sppo.executors import Executor
from sppo.executors.local import Local
from sppo.progress import Terminal
from sppo.recipe import Recipe
from sppo.rundir.folder import RunFolder
from sppo.rundir.guard import GuardStop, enforce
from sppo.stages.evaluate import evaluate_base
from sppo.stages.iterations import Iteration, iterations
from sppo.stages.open_run import open_run
from sppo.stages.prompts import all_prompts
from sppo.stages.stage import ShardedStage, make_together
from sppo.stages.summary import Summary

__all__ = ["GuardStop", "run"]


def run(
    recipe: Recipe,
    folder: RunFolder,
    terminal: Terminal,
    executor: Executor | None = None,
    *,
    redo_stale: bool = False,
    callbacks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
) -> dict[str, Any]:
    """Play a whole recipe, from wherever the run folder stands.

    Args:
        recipe: what to do.
        folder: the run's folder; made if it is not there.
        terminal: where progress is shown.
        executor: where shards and policies are computed, its context entered; None: on this machine.
        redo_stale: remove stages that were computed from a different recipe or from different inputs, instead of
            refusing to go on.
        callbacks: functions that are called with the row of each iteration in the summary.

    Returns:
        The run's summary, as in summary.json.

    Raises:
        StaleRun: the folder holds stages of another recipe.
        GuardStop: an iteration failed and the recipe says stop.
    """
    with folder.locked(), contextlib.ExitStack() as place:
        executor = executor or place.enter_context(Local(recipe))
        opened = open_run(recipe, folder, terminal, executor, redo_stale=redo_stale)
        for prompts in all_prompts(opened):
            prompts.make()
        evaluate_base(opened).make()
        summary = Summary(opened)
        summary.show_head()
        for iteration in iterations(opened):
            sample_and_annotate(iteration)
            iteration.select.make()
            iteration.train.make()
            iteration.evaluate.make()
            summary.add(iteration)
            for callback in callbacks:
                callback(summary.row(iteration))
            enforce(opened.recipe.guard, iteration.alarms, iteration.number, folder.path, terminal)
        return summary.finish()


def sample_and_annotate(iteration: Iteration) -> None:
    """Make both stages; where the executor can, a shard is annotated as soon as it is sampled."""
    stages: list[ShardedStage] = [
        stage for stage in (iteration.sample, iteration.annotate) if stage is not None
    ]
    make_together(stages)
