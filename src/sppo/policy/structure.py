"""Measuring what a model computes right once for all models of the same structure, such as the policies of a run."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

_Settings = ParamSpec("_Settings")
_Result = TypeVar("_Result")


def structure(model: Any) -> tuple[Any, ...] | None:
    """All that the computations of a model depend on but the values of its weights; None: it cannot be told.

    Two models with equal structures differ in their weights only.
    """
    # A forward method of a single module, as hooks and patches leave behind, can do anything.
    if any("forward" in vars(module) for module in model.modules()):
        return None
    # Wrappers for several processes and for adapters have no configuration, or one of another kind.
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    config = next(config for config in configs if hasattr(config, "to_dict"))
    settings = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    weight = next(model.parameters())
    return repr(model), str(settings), config._attn_implementation, weight.dtype, weight.device


def measured_once(
    measure: Callable[Concatenate[Any, _Settings], _Result],
) -> Callable[Concatenate[Any, _Settings], _Result]:
    """Keep the result of measuring a model, as long as the process lasts, for all models of the same structure."""
    results: dict[Any, _Result] = {}

    @functools.wraps(measure)
    def measured(model: Any, *args: _Settings.args, **kwargs: _Settings.kwargs) -> _Result:
        known = structure(model)
        if known is None:
            return measure(model, *args, **kwargs)
        key = (known, args, tuple(sorted(kwargs.items())))
        if key not in results:
            results[key] = measure(model, *args, **kwargs)
        return results[key]

    return cast(Callable[Concatenate[Any, _Settings], _Result], measured)
