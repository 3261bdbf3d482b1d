"""The iterations of a run: which policy plays, which stages there are, and how the guard judges the result."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from sppo.rundir import guard
from sppo.rundir.summary import oracle_counts
from sppo.stages.annotate import Annotate
from sppo.stages.evaluate import Evaluate, evaluate_base
from sppo.stages.prompts import Prompts
from sppo.stages.run import PolicyState, Run
from sppo.stages.sample import Sample
from sppo.stages.select import Select
from sppo.stages.stage import Stage
from sppo.stages.train import Train

StageName = Literal["sample", "annotate", "select", "train", "evaluate"]


@dataclass(frozen=True)
class Iteration:
    """One iteration of Algorithm 1.

    Attributes:
        number: the iteration, t.
        policy: pi_t.
        sample: the stage that draws responses from pi_t; None for algorithms that need none.
        annotate: the stage that asks the oracle about them; None for algorithms that need no preferences.
        select: the stage that selects what is trained on.
        train: the stage that trains pi_{t+1}.
        evaluate: the stage that measures how good pi_{t+1} is.
    """

    number: int
    policy: PolicyState
    sample: Sample | None
    annotate: Annotate | None
    select: Select
    train: Train
    evaluate: Evaluate

    @property
    def stages(self) -> dict[StageName, Stage]:
        """The stages that the algorithm needs, in their order."""
        stages: dict[StageName, Stage | None] = {
            "sample": self.sample,
            "annotate": self.annotate,
            "select": self.select,
            "train": self.train,
            "evaluate": self.evaluate,
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    @cached_property
    def measures(self) -> dict[str, Any]:
        """The measures of pi_{t+1}, and the amount that it was trained on; known once it is evaluated."""
        annotated = {} if self.annotate is None else self.annotate.record()
        counted = oracle_counts(self.evaluate.run.folder, self.number)
        prompts = self.select.prompts.record()
        return guard.measured(self.evaluate.record(), self.select.record(), prompts, annotated, counted)

    @cached_property
    def alarms(self) -> list[str]:
        """The reasons for which the guard fails pi_{t+1}, once it is evaluated; an empty list if it does not."""
        base = self.evaluate.opponents["base"].record()
        return guard.alarms(self.measures, base, self.evaluate.run.recipe.guard)

    @cached_property
    def warnings(self) -> list[str]:
        """Why pi_{t+1} may have learnt next to nothing, once it is evaluated."""
        opponents = self.evaluate.opponents
        previous = opponents.get("previous", opponents["base"]).record()
        return guard.warnings(self.measures, previous, self.train.record()["steps"])


def iterations(run: Run) -> Iterator[Iteration]:
    """Plan the iterations one after another, each when the guard has judged the one before.

    After a failed iteration, `guard.on_failure: fall_back` lets the next one start from the same policy again.
    """
    recipe, held_out = run.recipe, Prompts(run, 0)
    base = previous = evaluate_base(run)
    accepted = [run.base]
    for number in range(1, recipe.iterations + 1):
        policy = accepted[-1]
        references = [accepted[s - 1] for s in recipe.algorithm.reference_policies(len(accepted))]
        prompts = Prompts(run, number)
        sample = Sample(run, number, prompts, policy) if recipe.algorithm.samples else None
        asks = sample is not None and recipe.algorithm.preferences
        annotate = Annotate(run, number, sample) if asks and sample is not None else None
        select = Select(run, number, prompts, policy, sample, annotate, references)
        train = Train(run, number, select, accepted[recipe.algorithm.initial_policy(len(accepted)) - 1])
        evaluate = Evaluate(run, number, held_out, train.policy, base, previous)
        iteration = Iteration(number, policy, sample, annotate, select, train, evaluate)
        yield iteration
        falls_back = recipe.guard.on_failure == "fall_back" and evaluate.is_done() and iteration.alarms
        if not falls_back:
            accepted.append(train.policy)
            previous = evaluate
