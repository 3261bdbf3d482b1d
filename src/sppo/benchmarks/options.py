"""The options that the benchmarks' commands share, and what their values mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sppo import recipe
from sppo.recipe import EndpointConfig, OracleConfig, RecipeError, Sampling
from sppo.rundir.folder import RunError

_POLICIES = (
    "Policy folders, run folders, hub names or files of outputs; NAME=PATH gives one a name of its own."
)

Policies = Annotated[list[str], typer.Argument(metavar="POLICY...", help=_POLICIES)]
OptionalPolicies = Annotated[list[str] | None, typer.Argument(metavar="[POLICY...]", help=_POLICIES)]
Output = Annotated[Path, typer.Option("-o", "--output", help="The folder in which all results are kept.")]
Oracle = Annotated[
    str | None,
    typer.Option(
        "--oracle",
        help="The oracle that compares: a type, '{type: ..., ...}', a YAML file, a recipe or a run.",
    ),
]
SamplingSettings = Annotated[
    str | None,
    typer.Option(
        "--sampling",
        help="Sampling settings as in a recipe: '{temperature: 0.7, max_new_tokens: 2048}', or a YAML file.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed for sampling.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        "--dtype",
        help="Data type of the policies' weights. [default: bfloat16 on an accelerator, float32 without]",
    ),
]
System = Annotated[str | None, typer.Option("--system", help="A system message for the policies.")]
EveryIteration = Annotated[
    bool,
    typer.Option(
        "--every-iteration", help="Evaluate a run's base policy and the policy of each of its iterations."
    ),
]
BestOf = Annotated[
    int,
    typer.Option(
        "--best-of",
        min=1,
        help="Sample this many responses and evaluate the one that --best-of-oracle prefers.",
    ),
]
BestOfOracle = Annotated[
    str | None,
    typer.Option(
        "--best-of-oracle",
        help="The oracle that chooses the best response; the paper uses PairRM for best of 16.",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="The judge's server: '{url: http://HOST/v1, model: NAME, api_key_env: VARIABLE}', or a YAML file.",
    ),
]
JudgePromptFile = Annotated[
    Path | None,
    typer.Option("--judge-prompt", help="The benchmark's own judge prompt, a file of its repository."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="The benchmark's data folder: question.jsonl and the files of responses beside it."
    ),
]
JudgmentFiles = Annotated[
    list[Path] | None,
    typer.Option("--judgments", help="Score a file of judgments made elsewhere; may be repeated."),
]


def needed(value: Any, option: str) -> Any:
    """The value of an option that this call cannot do without.

    Raises:
        RunError: the option was not given.
    """
    if value is None:
        raise RunError(f"{option} is missing; see `sppo evaluate BENCHMARK --help`")
    return value


def require_policies_or_judgments(policies: Sequence[Any], judgments: Sequence[Path] | None) -> None:
    """Check that a command has something to do.

    Raises:
        RunError: neither policies nor files of judgments were named.
    """
    if not policies and not judgments:
        raise RunError("nothing to evaluate: name policies, or files of judgments with --judgments")


def read_best_of_oracle(best_of: int, oracle: str | None) -> OracleConfig | None:
    """The oracle that chooses the best of n responses; None where each policy responds once.

    Raises:
        RunError: there are several responses and no oracle.
        RecipeError: the oracle's configuration is wrong.
    """
    if best_of > 1 and oracle is None:
        raise RunError("--best-of: name the oracle that chooses with --best-of-oracle")
    return None if best_of == 1 else read_oracle(oracle or "")


def read_oracle(text: str) -> OracleConfig:
    """An oracle: its type alone, a mapping as in a recipe, a file with one, a recipe, or a run's folder (its judge).

    Raises:
        RecipeError: it is none of these, or a field is wrong.
    """
    path = Path(text)
    if (path / "recipe.yaml").is_file():
        return recipe.load(path / "recipe.yaml").needed_held_out_oracle(f"--oracle {text}")
    value = _value(text, "--oracle")
    if isinstance(value, str):
        value = {"type": value}
    mapping = _mapping(value, "--oracle")
    # a recipe, or what a recipe says under `oracle:`
    return recipe.parse_oracle(_mapping(mapping["oracle"], "oracle") if "oracle" in mapping else mapping)


def read_judge(text: str) -> EndpointConfig:
    """A judge behind an OpenAI-compatible server: a mapping with `url` and `model`, or a file with one.

    Raises:
        RecipeError: it is neither, or a field is wrong.
    """
    return recipe.parse_endpoint(_mapping(_value(text, "--judge"), "--judge"))


def read_sampling(text: str | None) -> Sampling:
    """Decoding settings as in a recipe's `sampling:`: a mapping, a file with one, or a recipe; None: the defaults.

    Raises:
        RecipeError: it is none of these, or a field is wrong.
    """
    if text is None:
        return recipe.parse_sampling({})
    mapping = _mapping(_value(text, "--sampling"), "--sampling")
    return recipe.parse_sampling(mapping.get("sampling", mapping))


def _value(text: str, option: str) -> Any:
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise RecipeError(f"{option}: there is no file {path}")
        return recipe.read_value(path.read_text(encoding="utf-8"), name=f"{option} {path}")
    return recipe.read_value(text, name=option)


def _mapping(value: Any, option: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(
            f"{option}: a mapping like '{{key: value}}' or a file with one is expected, not {value!r}"
        )
    return value
