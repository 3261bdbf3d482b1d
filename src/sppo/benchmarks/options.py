"""What the evaluation's options mean: a judge, an oracle, decoding settings, as a mapping or a file of one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo import recipe
from sppo.recipe import EndpointConfig, OracleConfig, RecipeError, Sampling


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
        return Sampling.model_validate({})
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
