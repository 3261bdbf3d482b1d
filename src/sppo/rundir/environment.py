"""The versions of packages, the number of CPU threads and the kind of CPU that a run is computed with.

No fingerprint holds them, though all can change the last digits of a result, since sums round by the order in which they
are added up.
"""

import platform
import sys
from functools import cache
from importlib import metadata

PACKAGES = ("sppo", "torch", "transformers", "accelerate", "numpy", "pyarrow")
CPU_THREADS = "CPU threads"


def environment() -> dict[str, str]:
    """The versions of packages and of Python; once torch has been imported, its threads and the CPU's way with bfloat16."""
    found = dict(_installed())
    torch = sys.modules.get("torch")
    if torch is not None:
        found[CPU_THREADS] = str(torch.get_num_threads())
        found["bfloat16 products"] = "native" if multiplies_bfloat16() else "emulated"
    return found


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    # Each look reads a file, and every record of a stage asks.
    versions = [(name, metadata.version(name)) for name in PACKAGES]
    return (*versions, ("Python", platform.python_version()))


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU multiplies matrices of bfloat16 natively (AVX-512 BF16 or AMX)."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def header(environment: dict[str, str]) -> str:
    """The environment as a comment line of YAML, which stands at the head of a run's recipe.yaml."""
    return f"# {', '.join(f'{name} {value}' for name, value in environment.items())}\n"


def read_header(text: str) -> dict[str, str]:
    """The environment in the first line of a text, as :func:`header` writes it; empty if the line is no comment."""
    first = text.partition("\n")[0]
    items = first.removeprefix("# ").split(", ") if first.startswith("# ") else []
    return {name: value for name, _, value in (item.rpartition(" ") for item in items)}


def changes(before: dict[str, str], environment: dict[str, str]) -> list[str]:
    """The differences between two environments in what both of them have, for instance `torch 2.12.0 -> 2.13.0`."""
    return [
        f"{name} {before[name]} -> {value}"
        for name, value in environment.items()
        if before.get(name, value) != value
    ]
