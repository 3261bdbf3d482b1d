"""The versions of packages and the number of CPU threads that a run is computed with, which no fingerprint holds.

Both can change the last digits of a result, since sums round by the order in which they are added up.
"""

import platform
import sys
from importlib import metadata

PACKAGES = ("sppo", "torch", "transformers", "accelerate", "numpy", "pyarrow")


def environment() -> dict[str, str]:
    """The versions of packages and of Python, and the number of torch's threads once torch has been imported."""
    found = {name: metadata.version(name) for name in PACKAGES}
    found["Python"] = platform.python_version()
    torch = sys.modules.get("torch")
    if torch is not None:
        found["CPU threads"] = str(torch.get_num_threads())
    return found


def header(environment: dict[str, str]) -> str:
    """The environment as a comment line of YAML, which stands at the head of a run's recipe.yaml."""
    return f"# {', '.join(f'{name} {value}' for name, value in environment.items())}\n"


def changes(recipe_text: str, environment: dict[str, str]) -> list[str]:
    """The differences to the environment at the head of a recipe.yaml, for instance `torch 2.12.0 -> 2.13.0`."""
    first = recipe_text.partition("\n")[0].removeprefix("# ")
    before = {name: value for name, _, value in (item.rpartition(" ") for item in first.split(", "))}
    return [
        f"{name} {before[name]} -> {value}"
        for name, value in environment.items()
        if before.get(name, value) != value
    ]
