"""The recipe sections of a run's inputs: the base policy pi_1 and the prompts x."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from sppo.recipe.section import Section, TemplateDate


class Policy(Section):
    """The base policy pi_1: a causal language model that transformers can load."""

    model: str = Field(min_length=1)
    """A folder, a hub name, or `tinyworld`."""
    revision: str | None = None
    """The revision of a model on the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights during training."""
    attn_implementation: str | None = None
    """Attention implementation of transformers; None takes its default."""
    quantization: Literal["nf4"] | None = None
    """Round the weights to 4 bits in every stage (QLoRA); needs training.adapter."""
    chat_template: str | None = None
    """A jinja file that replaces the tokenizer's own template."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the chat template, e.g. `{enable_thinking: false}`."""
    template_date: TemplateDate | None = None
    """The date, as YYYY-MM-DD, that the chat template writes as today's; None takes the clock's."""
    thought: list[str] | None = Field(None, min_length=2, max_length=2)
    """Texts that begin and end a thought, e.g. `["<think>", "</think>"]`; oracles and benchmarks do not read thoughts."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model."""
    parameters: float | None = Field(None, gt=0)
    """Number of parameters, for --dry-run before the model is downloaded."""

    @field_validator("thought")
    @classmethod
    def _is_thought(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not all(map(str.strip, value)) or value[0] == value[1]):
            raise ValueError("must be two different texts, such as ['<think>', '</think>']")
        return value

    @property
    def template_settings(self) -> dict[str, Any]:
        """The arguments of `sppo.policy.chat_format.load` that say how conversations are written and responses read."""
        return {name: getattr(self, name) for name in _TEMPLATE}

    @property
    def changed_template_settings(self) -> dict[str, Any]:
        """The template's settings, apart from its file, that differ from the defaults, as plain values."""
        return self.model_dump(mode="json", include=_TEMPLATE - {"chat_template"}, exclude_defaults=True)


_TEMPLATE = {"chat_template", "template_arguments", "template_date", "thought"}


class PromptSource(Section):
    """A source of prompts: a file (.jsonl, .json, .parquet, .csv, .txt), a data set, or tinyworld's own."""

    source: str = Field(min_length=1)
    """A path, a pattern such as `data/*.jsonl`, the name of a data set on the hub, tinyworld/train or tinyworld/held-out."""
    split: str = "train"
    """The split of a data set."""
    config: str | None = Field(None, min_length=1)
    """The configuration of a data set that has several."""
    column: str | None = None
    """The column of prompts; None takes the first of the usual ones, which docs/data.md lists."""
    demonstration: str | None = Field(None, min_length=1)
    """The column of responses to learn from, e.g. `completion`, `chosen` or `messages`; None reads none."""
    revision: str | None = None
    """The revision of a data set on the hub."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many prompts, from the beginning."""
    rows: int | None = Field(None, ge=1)
    """Number of prompts, for --dry-run before the data set is downloaded."""


def _as_source(value: Any) -> Any:
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, Mapping | PromptSource):
        return value
    raise ValueError("must be a file, a hub data set, or a mapping with the key `source`")


class Prompts(Section):
    """Prompts to train on and held-out prompts to evaluate on."""

    train: PromptSource | list[PromptSource]
    """One source, or one for each iteration."""
    held_out: PromptSource | int = 200
    """A source, or the number of prompts to set aside from the training prompts."""
    per_iteration: int | None = Field(None, ge=1)
    """Number of prompts in each iteration; None divides all prompts evenly."""
    parts: int | None = Field(None, ge=1)
    """Number of parts that one source is divided into, without `per_iteration`. Iterations beyond them begin with the first
    part again. None: one part for each iteration; a run that is continued with more iterations keeps its parts."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest rendered prompt, in tokens; None allows what the model's context holds."""
    invalid: Literal["error", "skip"] = "error"
    """Whether empty, duplicate, over-long, non-UTF-8 and malformed prompts stop the run or are left out."""
    system: Literal["template", "merge"] = "template"
    """Template renders system messages with the chat template; merge puts them before the first user message."""

    @property
    def train_sources(self) -> list[PromptSource]:
        """The sources of training prompts: one for all iterations, or one for each."""
        return self.train if isinstance(self.train, list) else [self.train]

    @field_validator("train", mode="before")
    @classmethod
    def _train_sources(cls, value: Any) -> Any:
        return [_as_source(item) for item in value] if isinstance(value, list) else _as_source(value)

    @field_validator("held_out", mode="before")
    @classmethod
    def _held_out_source(cls, value: Any) -> Any:
        if isinstance(value, bool | float):
            raise ValueError("must be a source of prompts, or a whole number of them")
        if not isinstance(value, int):
            return _as_source(value)
        if value < 1:
            raise ValueError("at least 1 held-out prompt is needed to measure a win rate")
        return value
