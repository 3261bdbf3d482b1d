"""The `evaluation:` and `guard:` sections: how an iteration is measured, and when it has failed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sppo.recipe.oracle import OracleConfig
from sppo.recipe.section import Section


class WatchedTask(Section):
    """A task of lm-eval that every policy of the run is measured on, so that preferences are not bought with knowledge."""

    task: str = Field(min_length=1)
    """A task of lm-eval, such as arc_challenge or mmlu, or a task file that ends in .yaml."""
    items: int = Field(100, ge=2)
    """Items of the task, drawn by the recipe's seed; the base and all policies get the same ones."""
    shots: int | None = Field(None, ge=0)
    """Examples in the prompt; None: as many as the task says."""
    metric: str | None = Field(None, min_length=1)
    """The figure of an item by lm-eval's name, e.g. acc or `exact_match,strict-match`; None takes acc_norm, else acc, else
    exact_match."""
    data: str | None = Field(None, min_length=1)
    """A folder of local data in the layout of `sppo evaluate open-llm --data`, for a task of the Open LLM Leaderboard; None
    reads the data that the task itself names."""

    @property
    def is_file(self) -> bool:
        """Whether the task is a task file."""
        return self.task.endswith((".yaml", ".yml"))

    @property
    def name(self) -> str:
        """The task's name in tables."""
        return Path(self.task).stem if self.is_file else self.task

    @model_validator(mode="after")
    def _one_source_of_data(self) -> "WatchedTask":
        if self.is_file and self.data is not None:
            raise ValueError(
                f"data: {self.data}, but the task file {self.task} names its own; leave data out"
            )
        return self


class Evaluation(Section):
    """The measurement of each policy on the held-out prompts after its iteration."""

    responses: int = Field(4, ge=1)
    """Responses per prompt and policy."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence of the intervals."""
    resamples: int = Field(2000, ge=100)
    """Resamples of the bootstrap over prompts."""
    oracle: OracleConfig | None = None
    """A held-out oracle, which then gives the win rates; those by the recipe's `oracle` are reported beside them."""
    tasks: list[WatchedTask] = Field(default_factory=list)
    """Tasks of lm-eval, each a name, a task file or a mapping, that the base and every policy are measured on."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_of_tasks(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError(
                "must be a list of lm-eval tasks, e.g. [arc_challenge, {task: mmlu, items: 200}]"
            )
        if any(not isinstance(item, str | Mapping | WatchedTask) for item in value):
            raise ValueError("must hold names of lm-eval tasks, task files, or mappings with the key `task`")
        return [{"task": item} if isinstance(item, str) else item for item in value]

    @field_validator("tasks")
    @classmethod
    def _different_tasks(cls, value: list[WatchedTask]) -> list[WatchedTask]:
        names = [task.name for task in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice; name each task once")
        return value


class Guard(Section):
    """The limits beyond which an iteration has failed, and what happens then."""

    on_failure: Literal["stop", "keep", "fall_back"] = "stop"
    """Whether a failed iteration stops the run, is kept, or is replaced by the policy before it."""
    min_length_ratio: float = Field(0.25, ge=0)
    """Least mean number of response tokens, relative to the base policy's."""
    max_length_ratio: float = Field(4.0, gt=0)
    """Largest mean number of response tokens, relative to the base policy's."""
    max_repetition: float = Field(0.3, ge=0)
    """Largest rise of the share of repeated 4-grams above the base policy's."""
    max_truncated_rise: float = Field(0.5, ge=0, le=1)
    """Largest rise of the share of truncated responses above the base policy's."""
    max_kl_per_token: float = Field(1.0, gt=0)
    """Largest KL divergence from the base policy, in nats per response token."""
    max_kl: float | None = Field(None, gt=0)
    """Largest KL divergence from the base policy, in nats per response; None sets no limit."""
    min_trained_share: float = Field(0.5, ge=0, le=1)
    """Least share of the iteration's prompts that have a response to train on."""
    max_sampler_deviation: float = Field(0.05, gt=0)
    """Largest mean deviation of the sampler's log-probabilities from the trainer's, in nats per token."""
    max_task_fall: float = Field(0.0, ge=0, le=1)
    """Largest fall of a watched task's score (`evaluation.tasks`) below the base policy's; an iteration fails if the whole
    interval of the fall lies beyond it."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> "Guard":
        if self.min_length_ratio > self.max_length_ratio:
            raise ValueError(
                f"min_length_ratio: {self.min_length_ratio:g} is above max_length_ratio: {self.max_length_ratio:g}"
            )
        return self
