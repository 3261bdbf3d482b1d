"""The iterations of a run: which policy plays, which stages there are, and what the guard says of the result."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sppo.rundir import guard
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
        number: t.
        policy: pi_t.
        sample: the responses of pi_t; None where the algorithm needs none.
        annotate: what the oracle says of them; None where the algorithm does not ask.
        select: what is trained on.
        train: pi_{t+1}.
        evaluate: how good pi_{t+1} is.
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
    def alarms(self) -> list[str]:
        """What the guard says of pi_{t+1}, once it is evaluated; nothing where it may stand."""
        run = self.evaluate.run
        base = self.evaluate.opponents["base"].record()
        return guard.alarms(self.evaluate.record(), base, run.recipe.guard)


def iterations(run: Run) -> Iterator[Iteration]:
    """The iterations one after another, each planned when the one before it has been judged by the guard.

    After a failed iteration with `guard.on_failure: fall_back` the next one starts from the same policy again.
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
        train = Train(run, number, select)
        evaluate = Evaluate(run, number, held_out, train.policy, base, previous)
        iteration = Iteration(number, policy, sample, annotate, select, train, evaluate)
        yield iteration
        falls_back = recipe.guard.on_failure == "fall_back" and evaluate.is_done() and iteration.alarms
        if not falls_back:
            accepted.append(train.policy)
            previous = evaluate
