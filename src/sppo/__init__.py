"""Self-play preference optimisation of language models (SPPO, arXiv:2405.00675)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppo.api import Report, Run, evaluate, load_run, run, train_oracle

__version__ = "0.1.0.dev0"
__all__ = ["Report", "Run", "evaluate", "load_run", "run", "train_oracle"]


def __getattr__(name: str) -> Any:
    # Names and modules are imported when they are first used, so that `import sppo` answers at once.
    if name in __all__:
        return getattr(importlib.import_module("sppo.api"), name)
    try:
        return importlib.import_module(f"sppo.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"sppo.{name}":
            raise
        raise AttributeError(f"module 'sppo' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
