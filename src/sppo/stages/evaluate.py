"""The evaluate stage: pi_{t+1} against the base and against pi_t on the held-out prompts.

It has two parts, both made shard by shard: the policy's responses to the held-out prompts, and their comparison with
the responses of the base and of pi_t. For the base policy itself (iteration 0) there is nothing to compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sppo import randomness, traits
from sppo.benchmarks.head_to_head.score import across, interval, mean_of_compared, pairs_against
from sppo.progress import Advance
from sppo.recipe import Recipe
from sppo.rundir.folder import StageFolder
from sppo.rundir.tables import EvaluationRow, ResponsesRow, WinRate, read_rows, to_table
from sppo.stages.annotate import ORACLE_PROMPTS
from sppo.stages.capabilities import Capabilities
from sppo.stages.jobs import Work
from sppo.stages.models import Models
from sppo.stages.prompts import Prompts
from sppo.stages.run import HELD_OUT, PolicyState, Run
from sppo.stages.sample import Sample, response_statistics
from sppo.stages.stage import ShardedStage, make_together
from sppo.winrates import Array

Opponent = Literal["base", "previous"]
OracleName = Literal["oracle", "held_out"]


class Respond(Sample):
    """The responses of a policy to the held-out prompts."""

    name = "respond"
    folder_name = "evaluation"

    @property
    def k(self) -> int:
        """The number of responses to each held-out prompt."""
        return self.run.recipe.evaluation.responses

    @property
    def timed_as(self) -> str:
        """The evaluate stage, to which the time belongs."""
        return Evaluate.name

    def settings(self) -> Mapping[str, Any]:
        """The settings that responses are drawn with, and their number."""
        return {**self.run.sampling_settings, "responses": self.k}

    def work(self) -> Any:
        """Draw the responses to one shard of held-out prompts."""
        drawing = super().work()
        # The key of the random numbers names the stage for which the responses are drawn.
        return type(drawing)(drawing.policy, drawing.k, (Evaluate.name, self.iteration))


@dataclass(frozen=True)
class CompareWithOpponents(Work):
    """Compares a policy's responses with those of its opponents, and computes their log-probabilities under the base.

    Attributes:
        opponents: the policies whose responses the second and further sources hold.
        oracles: the oracles that give win rates.
        responses: the number of responses per prompt and policy.
        current: the folder of pi_t, with which some oracles compute; None: the base.
    """

    opponents: tuple[Opponent, ...]
    oracles: tuple[OracleName, ...]
    responses: int
    current: Path | None

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """Make the comparisons of a shard; sources are the policy's responses, then those of each opponent."""
        rows, *opponents_rows = [read_rows(source, ResponsesRow) for source in sources]
        log_probs = models.scorer(None)(
            [row.prompt_token_ids for row in rows],
            [[response.token_ids for response in row.responses] for row in rows],
        )
        models.play(self.current)
        rates: list[list[WinRate]] = []
        for start in range(0, len(rows), ORACLE_PROMPTS):
            part = slice(start, start + ORACLE_PROMPTS)
            rates += self._win_rates(models, rows[part], [opponent[part] for opponent in opponents_rows])
            advance(len(rows[part]))
        compared = [
            EvaluationRow(row.prompt_id, base_log_probs, win_rates)
            for row, base_log_probs, win_rates in zip(rows, log_probs, rates, strict=True)
        ]
        return to_table(compared, EvaluationRow)

    def _win_rates(
        self, models: Models, rows: Sequence[ResponsesRow], opponents_rows: Sequence[Sequence[ResponsesRow]]
    ) -> list[list[WinRate]]:
        """The win rates on each prompt, against each opponent and by each oracle."""
        wanted = across(len(rows), self.responses, self.responses)
        rates: list[list[WinRate]] = [[] for _ in rows]
        for opponent, opponent_rows in zip(self.opponents, opponents_rows, strict=True):
            for oracle in self.oracles:
                pairs = pairs_against(
                    lambda _, texts, held_out=oracle == "held_out": models.compare(  # type: ignore[misc]
                        rows, texts, wanted, held_out=held_out
                    ),
                    [row.prompt_id for row in rows],
                    [row.texts for row in rows],
                    [row.texts for row in opponent_rows],
                )
                whole, each = (mean_of_compared(pairs, axes).tolist() for axes in ((1, 2), 2))
                for prompt_rates, value, by_response in zip(rates, whole, each, strict=True):
                    prompt_rates.append(WinRate(opponent, oracle, value, by_response))
        return rates


class Evaluate(ShardedStage):
    """The evaluation of pi_{t+1} on the held-out prompts.

    Args:
        run: the run.
        iteration: t; 0 for the base policy.
        prompts: the held-out prompts.
        policy: pi_{t+1}.
        base: the evaluation of the base; None for the base itself.
        previous: the evaluation of pi_t; the same object as `base` if pi_t is the base.
    """

    name = "evaluate"
    folder_name = "comparisons"
    record_name = "evaluation.json"
    kind = "evaluate"
    unit = "prompts"

    def __init__(
        self,
        run: Run,
        iteration: int,
        prompts: Prompts,
        policy: PolicyState,
        base: "Evaluate | None" = None,
        previous: "Evaluate | None" = None,
    ) -> None:
        super().__init__(run, iteration)
        self.responses = Respond(run, iteration, prompts, policy)
        watches = bool(run.recipe.evaluation.tasks)
        self.capabilities = Capabilities(run, iteration, policy) if watches else None
        self.opponents: dict[Opponent, Evaluate] = {}
        if base is not None and previous is not None:
            self.opponents["base"] = base
            if previous is not base:
                self.opponents["previous"] = previous

    @property
    def oracles(self) -> tuple[OracleName, ...]:
        """The oracles that give win rates; those of the first one are the run's."""
        return evaluating_oracles(self.run.recipe)

    @property
    def current(self) -> PolicyState:
        """pi_t, which the iteration's responses were drawn from; the base itself where there is no iteration."""
        opponent = self.opponents.get("previous", self.opponents.get("base", self))
        return opponent.responses.policy

    def settings(self) -> Mapping[str, Any]:
        """The oracles, how intervals are computed, and how log-probabilities under the base are."""
        recipe = self.run.recipe
        settings: dict[str, Any] = {
            "evaluation": recipe.evaluation.model_dump(exclude={"oracle", "tasks"}),
            "oracle": self.run.oracle_identity,
            "policy": self.run.policy_settings,
            "mixed_precision": recipe.training.mixed_precision,
            "pack_tokens": recipe.training.pack_tokens,
            "seed": recipe.seed,
        }
        if recipe.evaluation.oracle is not None:
            settings["held_out_oracle"] = self.run.held_out_oracle_identity
        return settings

    def reads(self) -> Sequence[str]:
        """The responses that are compared, the base, under which their log-probabilities are computed, and the scores.

        The scores on watched tasks are those of the policy and of the base. Oracles may compute with pi_t.
        """
        opponents = [opponent.responses.fingerprint for opponent in self.opponents.values()]
        scores = [stage.fingerprint for stage in self._scored()]
        of_oracle = self.run.policies_of(self.run.recipe.oracle, self.current)
        return [self.responses.fingerprint, *opponents, self.run.base.fingerprint, *of_oracle, *scores]

    def _scored(self) -> list[Capabilities]:
        """The scores on watched tasks: the policy's, and for a policy that is compared with the base, the base's."""
        evaluations = [self, *([self.opponents["base"]] if self.opponents else [])]
        return [stage.capabilities for stage in evaluations if stage.capabilities is not None]

    def all_files(self) -> list[StageFolder]:
        """The folders of the scores on watched tasks, of the responses and of the comparisons."""
        scores = [] if self.capabilities is None else self.capabilities.all_files()
        return [*scores, self.responses.files, self.files]

    def is_done(self) -> bool:
        """Whether the scores, the responses and the comparisons are there and whole."""
        scored = self.capabilities is None or self.capabilities.is_done()
        return scored and self.responses.is_done() and super().is_done()

    def sources(self) -> list[list[Path]]:
        """A shard of responses of each policy for each shard; none for the base."""
        if not self.opponents:
            return []
        policies = [self.responses, *(opponent.responses for opponent in self.opponents.values())]
        shards = range(len(self.responses.prompts.counts()))
        return [[policy.files.shard(number) for policy in policies] for number in shards]

    def units(self) -> list[int]:
        """Held-out prompts of each shard."""
        return self.responses.prompts.counts() if self.opponents else []

    def work(self) -> CompareWithOpponents:
        """Compare one shard of responses."""
        responses = self.run.recipe.evaluation.responses
        current = self.run.weights(self.current)
        return CompareWithOpponents(tuple(self.opponents), self.oracles, responses, current)

    def make(self) -> StageFolder:
        """Make the scores, the responses and the comparisons that are missing, and publish the stage."""
        if self.capabilities is not None:
            self.capabilities.make()
        make_together([self.responses, self])
        return self.files

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """The statistics of the responses, and the measures of the comparisons."""
        responses = self.responses.files.shards()
        statistics = response_statistics(responses, self.run)
        measures = self._measures(responses, shards) if self.opponents else {}
        return {**statistics, **measures, **self._task_scores()}

    def _task_scores(self) -> dict[str, Any]:
        """The mean score on each watched task with its interval, and its change from the base's on the same items."""
        scored = [stage.scores() for stage in self._scored()]
        if not scored:
            return {}
        found = {}
        for task, scores in scored[0].items():
            values = np.array(list(scores.values()))
            found[task] = {**self._interval(values), "items": len(values)}
            if self.opponents:
                base = np.array([scored[1][task][item] for item in scores])
                found[task]["change"] = self._interval(values - base)
        return {"tasks": found}

    def _interval(self, values: Array) -> dict[str, Any]:
        """The mean of values and its bootstrap interval, by the recipe's settings."""
        evaluation = self.run.recipe.evaluation
        return interval(
            values,
            confidence=evaluation.confidence,
            resamples=evaluation.resamples,
            seed=randomness.seed("bootstrap", self.run.recipe.seed, self.iteration),
        )

    def _measures(self, responses: Sequence[Path], comparisons: Sequence[Path]) -> dict[str, Any]:
        r"""Win rates against the base and against pi_t with intervals, and the KL to the base in nats per response.

        The KL is the mean of :math:`\log\pi_{t+1}(y|x) - \log\pi_1(y|x)` over the responses y of pi_{t+1}, and its interval
        a bootstrap over prompts, because the responses to one prompt are not independent. If there is
        a held-out oracle, the win rates are its own, and those of the recipe's oracle stand under `by_oracle`. Without
        an oracle there are no win rates.
        """
        rows = [row for path in comparisons for row in read_rows(path, EvaluationRow)]
        sampled = [row for path in responses for row in read_rows(path, ResponsesRow)]
        divergences = np.array(
            [
                [response.log_prob - value for response, value in zip(row.responses, log_probs, strict=True)]
                for row, log_probs in zip(sampled, (row.base_log_probs for row in rows), strict=True)
            ]
        )
        intervals = {oracle: self._intervals(rows, oracle) for oracle in self.oracles}
        measures: dict[str, Any] = {}
        if self.oracles:
            first, *others = self.oracles
            measures = dict(intervals[first])
            if others:
                measures["by_oracle"] = intervals[others[0]]
                held_out, trained = (np.array(_rates(rows, "base", oracle)) for oracle in (first, others[0]))
                measures["oracle_gap"] = self._interval(trained - held_out)
            measures["traits"] = self._traits(rows, sampled)
            rates = [None if np.isnan(rate) else rate for rate in _rates(rows, "base", first)]
            measures["win_rates_vs_base"] = rates
            if None in rates:
                measures["prompts_left_out"] = rates.count(None)
        by_prompt = divergences.mean(axis=1)
        kl_interval = {"kl_interval": self._interval(by_prompt)} if np.isfinite(by_prompt).all() else {}
        return {
            "kl_to_base": float(np.mean(divergences)),
            **kl_interval,
            "held_out_prompts": len(rows),
            **measures,
        }

    def _traits(self, rows: Sequence[EvaluationRow], sampled: Sequence[ResponsesRow]) -> list[dict[str, Any]]:
        """The traits that the responses have taken on since the base, and the win rates of those that have them."""
        shards = self.opponents["base"].responses.files.shards()
        base = [row.texts for path in shards for row in read_rows(path, ResponsesRow)]
        by_oracle: dict[str, Array | None] = {
            oracle: _rates_by_response(rows, "base", oracle) for oracle in self.oracles
        }
        found = traits.risen(
            [row.prompt_id for row in sampled],
            [row.texts for row in sampled],
            base,
            by_oracle.get("oracle"),
            by_oracle.get("held_out"),
        )
        return [trait.record() for trait in found]

    def _intervals(self, rows: Sequence[EvaluationRow], oracle: OracleName) -> dict[str, dict[str, float]]:
        by_opponent = {
            opponent: self._interval(np.array(_rates(rows, opponent, oracle))) for opponent in self.opponents
        }
        previous = by_opponent.get("previous", by_opponent["base"])  # in iteration 1, pi_t is the base
        return {"win_rate_vs_base": by_opponent["base"], "win_rate_vs_previous": previous}


def evaluating_oracles(recipe: Recipe) -> tuple[OracleName, ...]:
    """The oracles that give a recipe's win rates, beginning with the held-out oracle if there is one."""
    held_out: tuple[OracleName, ...] = () if recipe.evaluation.oracle is None else ("held_out",)
    return held_out if recipe.oracle is None else (*held_out, "oracle")


def _rates(rows: Sequence[EvaluationRow], opponent: Opponent, oracle: OracleName) -> list[float]:
    return [
        rate.win_rate
        for row in rows
        for rate in row.win_rates
        if (rate.opponent, rate.oracle) == (opponent, oracle)
    ]


def _rates_by_response(rows: Sequence[EvaluationRow], opponent: Opponent, oracle: OracleName) -> Array | None:
    """[prompts, m] win rates of the single responses; None if an earlier version wrote a row, and did not keep them."""
    rates = [
        rate.by_response
        for row in rows
        for rate in row.win_rates
        if (rate.opponent, rate.oracle) == (opponent, oracle)
    ]
    return None if any(of is None for of in rates) else np.array(rates, dtype=np.float64)


def evaluate_base(run: Run) -> Evaluate:
    """The evaluation of the base policy, with which every later policy is compared."""
    return Evaluate(run, HELD_OUT, Prompts(run, HELD_OUT), run.base)
