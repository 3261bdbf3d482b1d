"""A recipe is one YAML file that describes a whole run and is checked before anything is computed.

An unknown key is an error that names the nearest known one. Loading a recipe imports neither torch nor
transformers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sppo.comparisons import Choice
from sppo.reading import regular
from sppo.recipe import registry
from sppo.recipe.algorithm import Algorithm, AlgorithmConfig
from sppo.recipe.endpoint import ANSWERS, EndpointConfig, keep_answers_in
from sppo.recipe.inputs import Policy, Prompts, PromptSource
from sppo.recipe.judgment import Evaluation, Guard, WatchedTask
from sppo.recipe.mistakes import describe
from sppo.recipe.oracle import OracleConfig, OracleSection
from sppo.recipe.oracle_training import OracleTraining
from sppo.recipe.presets import PRESETS
from sppo.recipe.renamed import current_key, with_current_keys
from sppo.recipe.run_policies import in_run, run_policies
from sppo.recipe.sampling import Sampling, SamplingConfig
from sppo.recipe.section import RecipeError, Section, Trackers
from sppo.recipe.training import MOST_PACK_TOKENS, Lora, Training
from sppo.recipe.workers import Workers
from sppo.recipe.yaml_values import read_overrides, read_value, write_value
from sppo.selection import Rule

__all__ = [
    "ANSWERS",
    "MOST_PACK_TOKENS",
    "Algorithm",
    "AlgorithmConfig",
    "EndpointConfig",
    "Evaluation",
    "Guard",
    "Lora",
    "OracleConfig",
    "OracleSection",
    "OracleTraining",
    "Policy",
    "PromptSource",
    "Prompts",
    "Recipe",
    "RecipeError",
    "Sampling",
    "Section",
    "Training",
    "WatchedTask",
    "Workers",
    "dump",
    "keep_answers_in",
    "load",
    "load_oracle_training",
    "parse",
    "parse_algorithm",
    "parse_endpoint",
    "parse_oracle",
    "parse_sampling",
    "read_overrides",
    "read_value",
]


PACKAGED = Path(__file__).parents[1] / "recipes"
"""The folder of the recipes that come with the package and can be named without a path."""
# The class of the name checks each mapping when a recipe is read, so that importing this module loads no engine.
_DEFAULT_SAMPLING: Any = {"engine": "transformers"}
_DEFAULT_ALGORITHM: Any = {"type": "sppo"}


class Recipe(Section):
    """A whole run; recipes/ has examples, and docs/recipes.md explains the fields."""

    preset: Literal["paper", "official-code"] | None = None
    """Settings to start from, which the recipe's own keys replace (docs/presets.md)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed of everything that is drawn: the division of prompts, responses, steps, intervals."""
    iterations: int = Field(3, ge=1, le=1000)
    """The number of iterations, T."""
    policy: Policy
    prompts: Prompts
    sampling: SamplingConfig = _DEFAULT_SAMPLING
    selection: Rule = "best_worst"
    """The rule that chooses which of the K responses are trained on."""
    algorithm: AlgorithmConfig = _DEFAULT_ALGORITHM
    oracle: OracleConfig | None = None
    """May be left out if the algorithm needs no preferences."""
    training: Training = Training.model_validate({})
    evaluation: Evaluation = Evaluation.model_validate({})
    guard: Guard = Guard.model_validate({})
    workers: Workers = Workers.model_validate({})
    shard_prompts: int = Field(256, ge=1)
    """Prompts in one shard, the most that an interruption can lose."""
    cpu_threads: int | None = Field(None, ge=1, le=1024)
    """Threads that torch uses on a CPU; None: a measurement of about a second finds the number when a run begins."""
    report_to: Trackers = Field(default_factory=list)
    """Transformers' experiment trackers, e.g. wandb, or [wandb, tensorboard]."""

    @field_validator("oracle")
    @classmethod
    def _present_if_needed(cls, value: Any, info: ValidationInfo) -> Any:
        algorithm = info.data.get("algorithm")
        if value is None and algorithm is not None and algorithm.preferences:
            raise ValueError(
                f"missing, but algorithm.type: {algorithm.type} learns from preferences; name an oracle, e.g."
                " {type: pairrm, model: llm-blender/PairRM}"
            )
        return value

    @model_validator(mode="after")
    def _one_source_for_each_iteration(self) -> "Recipe":
        train = self.prompts.train
        if isinstance(train, list) and len(train) != self.iterations:
            raise ValueError(
                f"prompts.train: {len(train)} sources for {self.iterations} iterations;"
                " give one source for all, or one for each iteration"
            )
        return self

    @model_validator(mode="after")
    def _algorithm_has_what_it_needs(self) -> "Recipe":
        algorithm, name = self.algorithm, f"algorithm.type: {self.algorithm.type}"
        if algorithm.preferences and self.sampling.k < 2:
            raise ValueError(
                f"sampling.k: {self.sampling.k}, but {name} compares responses; set it to 2 or more"
            )
        if algorithm.all_responses and self.selection != "all":
            raise ValueError(f"selection: {self.selection}, but {name} needs all K responses; set it to all")
        if algorithm.annotators and self.oracle is not None and len(self.oracle.annotators) < 2:
            one = "oracle: 1 member of the panel has a weight" if self.oracle.annotators else None
            raise ValueError(
                f"{one or f'oracle.type: {self.oracle.type}'}, but {name} chooses between several annotators; name them in"
                " oracle: {type: panel, members: [...]}, with wrappers inside its members, or choose another algorithm"
            )
        for key, value in ({} if self.oracle is None else self.oracle.win_rate_settings).items():
            if algorithm.uses_comparisons:
                raise ValueError(
                    f"oracle.{key}: {value}, but {name} computes its payoffs from the comparisons and not from P^; set it to"
                    " mean, or choose another algorithm"
                )
        for number, source in enumerate(self.prompts.train_sources):
            if algorithm.demonstrations and source.demonstration is None:
                place = f"prompts.train.{number}" if isinstance(self.prompts.train, list) else "prompts.train"
                raise ValueError(
                    f"{place}.demonstration: missing, but {name} learns from demonstrations; name the column that"
                    f" holds them, e.g. {{source: {source.source}, demonstration: completion}}"
                )
        return self

    @model_validator(mode="after")
    def _compared_pairs_suffice(self) -> "Recipe":
        chosen = None if self.oracle is None else self.oracle.chosen_comparisons()
        if chosen is None or not self.algorithm.preferences:
            return self
        said = f"oracle.comparisons.type: {chosen.type}"
        if self.algorithm.all_responses and chosen.type != "all":
            raise ValueError(
                f"{said}, but algorithm.type: {self.algorithm.type} needs the comparisons of all pairs; set it to all"
            )
        if chosen.settles and self.selection != "best_worst":
            raise ValueError(
                f"{said} finds the best and the worst response only, but selection: {self.selection} trains on others too;"
                " set selection: best_worst, or comparisons: {type: random, ...}"
            )
        if chosen.settles and self.algorithm.all_win_rates:
            raise ValueError(
                f"{said} settles the win rates of the best and the worst response only, but algorithm.log_partition: samples"
                " needs all of them; choose another log_partition, or comparisons: {type: random, ...}"
            )
        chosen.check_budget(self.sampling.k)
        return self

    @model_validator(mode="after")
    def _engine_suits_the_oracles(self) -> "Recipe":
        for key, oracle in {"oracle": self.oracle, "evaluation.oracle": self.evaluation.oracle}.items():
            try:
                _ = oracle and in_run(oracle, {"base": self.policy, "current": self.policy}, self.sampling)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        return self

    @model_validator(mode="after")
    def _win_rates_are_by_one_oracle(self) -> "Recipe":
        other = "another policy in each iteration, so win rates of different iterations could not be compared"
        if "current" in run_policies(self.evaluation.oracle):
            raise ValueError(
                f"evaluation.oracle: computes with policy: current, which is {other}; set policy: base, or name a policy"
            )
        if self.evaluation.oracle is None and "current" in run_policies(self.oracle):
            raise ValueError(
                f"evaluation.oracle: missing, but oracle computes with policy: current, which is {other}; name an oracle that"
                " stays the same, such as the same one with policy: base"
            )
        return self

    @model_validator(mode="after")
    def _win_rates_of_policies_are_plain(self) -> "Recipe":
        held_out = self.evaluation.oracle
        for key, value in ({} if held_out is None else held_out.win_rate_settings).items():
            raise ValueError(
                f"evaluation.oracle.{key}: {value} has no effect on the win rate of one policy against another; set it to mean"
            )
        return self

    @property
    def comparisons(self) -> Choice:
        """The choice of the pairs of a prompt's responses that annotation compares."""
        chosen = None if self.oracle is None else self.oracle.chosen_comparisons()
        return Choice("all", self.sampling.k) if chosen is None else chosen.of(self.sampling.k)

    @model_validator(mode="after")
    def _quantised_weights_are_not_trained(self) -> "Recipe":
        quantization, adapter = self.policy.quantization, self.training.adapter
        if quantization is not None and adapter is None:
            raise ValueError(
                f"policy.quantization: {quantization} weights cannot be trained; train an adapter on top of them"
                " with training.adapter: {type: lora}"
            )
        if quantization is not None and adapter is not None and adapter.merge:
            raise ValueError(
                f"training.adapter.merge: true, but the next iteration would round the merged weights to {quantization}"
                " and lose part of the update; set merge: false, and merge the last adapter with `sppo export`"
            )
        return self

    def needed_oracle(self, purpose: str) -> OracleSection:
        """The oracle, for a purpose that requires one.

        Raises:
            RecipeError: the recipe has no oracle.
        """
        if self.oracle is None:
            raise RecipeError(f"oracle: missing; {purpose} needs one")
        return self.oracle

    def needed_held_out_oracle(self, purpose: str) -> OracleSection:
        """The oracle that policies are compared by: the held-out oracle, or else the one that they learn from.

        Raises:
            RecipeError: the recipe has neither.
        """
        return self.evaluation.oracle or self.needed_oracle(purpose)


def load(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package, such as `quickstart`.
        overrides: dotted keys to values that replace the file's, e.g. ``{"training.learning_rate": 1e-4}``.

    Raises:
        RecipeError: the file cannot be read, is not a mapping, or a field is wrong.
    """
    return parse(_read_mapping(Path(path)), overrides, name=str(path))


def load_oracle_training(
    settings: str | os.PathLike[str] | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> OracleTraining:
    """Read the settings of `sppo train-oracle`, a file or a mapping, in the way that :func:`load` reads a recipe.

    Raises:
        RecipeError: as for :func:`load`.
    """
    if isinstance(settings, Mapping):
        mapping, name = settings, "the settings"
    else:
        mapping, name = _read_mapping(Path(settings)), str(settings)
    read: OracleTraining = _validated(OracleTraining, _overridden(mapping, overrides), name)
    return read


def _read_mapping(path: Path) -> dict[str, Any]:
    packaged = PACKAGED / f"{path}.yaml"
    try:
        text = regular(packaged if packaged.is_file() and not path.exists() else path).read_text(
            encoding="utf-8"
        )
    except FileNotFoundError:
        names = sorted(recipe.stem for recipe in PACKAGED.glob("*.yaml"))
        near = registry.nearest(str(path), names)
        question = "" if near is None else f"did you mean {near}? Otherwise "
        raise RecipeError(
            f"{path}: there is no such recipe; {question}name a YAML file, or a recipe of the package: {', '.join(names)}"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); save the recipe as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}") from error
    mapping = read_value(text, name=str(path))
    if mapping is None:
        raise RecipeError(f"{path}: the recipe is empty; see recipes/ for examples")
    if not isinstance(mapping, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, not {type(mapping).__name__}")
    return mapping


def parse(
    mapping: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, name: str = "recipe"
) -> Recipe:
    """Make a Recipe from a mapping, whose values replace its preset's, and from overrides, which replace both.

    Raises:
        RecipeError: a field is wrong; the message names every wrong field.
    """
    merged = _overridden(mapping, overrides)
    preset = merged.get("preset")
    if isinstance(preset, str) and preset in PRESETS:
        merged = _merge(PRESETS[preset], merged)
    recipe: Recipe = _validated(Recipe, merged, name)
    return recipe


def parse_oracle(mapping: Mapping[str, Any]) -> OracleSection:
    """Make an `oracle:` section from a mapping, with the checks of a recipe.

    Raises:
        RecipeError: a field is wrong.
    """
    oracle: OracleSection = _validated(OracleConfig, mapping, "the oracle")
    return oracle


def parse_endpoint(mapping: Mapping[str, Any]) -> EndpointConfig:
    """Make an `endpoint:` section from a mapping, with the checks of a recipe.

    Raises:
        RecipeError: a field is wrong.
    """
    endpoint: EndpointConfig = _validated(EndpointConfig, mapping, "the endpoint")
    return endpoint


def parse_sampling(mapping: Mapping[str, Any]) -> Sampling:
    """Make a `sampling:` section from a mapping, with the checks of a recipe.

    Raises:
        RecipeError: a field is wrong.
    """
    sampling: Sampling = _validated(SamplingConfig, mapping, "the sampling")
    return sampling


def parse_algorithm(mapping: Mapping[str, Any]) -> Algorithm:
    """Make an `algorithm:` section from a mapping, with the checks of a recipe.

    Raises:
        RecipeError: a field is wrong.
    """
    algorithm: Algorithm = _validated(AlgorithmConfig, mapping, "the algorithm")
    return algorithm


def _validated(annotation: Any, mapping: Mapping[str, Any], name: str) -> Any:
    """The section that an annotation makes of a mapping; the error lists everything that is wrong."""
    mapping = _with_home_folders(mapping)
    try:
        return TypeAdapter(annotation).validate_python(mapping)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in describe(error, annotation, mapping))
        raise RecipeError(f"{name} cannot be used:\n{lines}") from None


def _with_home_folders(value: Any) -> Any:
    """Expand the `~` at the beginning of every path in a recipe, whichever section it stands in."""
    if isinstance(value, Mapping):
        return {key: _with_home_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_home_folders(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def dump(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML that :func:`load` reads back to an equal Recipe."""
    return write_value(recipe.model_dump(mode="json"))


def _overridden(mapping: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    merged = with_current_keys(mapping)
    if isinstance(merged.get("algorithm"), Mapping):
        # the type that is meant, so that an override by another type replaces the whole section
        merged["algorithm"] = {**_DEFAULT_ALGORITHM, **merged["algorithm"]}
    for dotted, value in (overrides or {}).items():
        for key in reversed(current_key(dotted).split(".")):
            value = {key: value}
        merged = _merge(merged, with_current_keys(value))
    return merged


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            # an oracle or algorithm of another type has other keys: it replaces the whole section
            same_type = "type" not in value or value["type"] == merged[key].get("type", value["type"])
            merged[key] = _merge(merged[key], value) if same_type else dict(value)
        else:
            merged[key] = value
    return merged
