"""`sppo export`: write a policy as one ordinary transformers folder, with an adapter merged into its base."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.model_files import read_configuration
from sppo.policy.opening import OpenPolicy
from sppo.rundir.folder import RunError, publish_folder

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def export(
    source: OpenPolicy,
    target: Path,
    model_card: Callable[[str, OpenPolicy], str],
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a policy as an ordinary transformers folder with a model card.

    Args:
        source: the policy to export.
        target: a folder that does not exist yet; it is created complete or not at all.
        model_card: returns the text of the model card, given the name of the model and the policy.
        dtype: the data type of the weights; None: that of the policy's configuration; for an adapter that of the policies that
            its run saves, or of its base's configuration if it belongs to no run.
        max_shard_size: the largest size of one file of weights, as in transformers, e.g. `5GB`.

    Returns:
        The folder of the policy that was exported.

    Raises:
        RunError: the target exists already, or the size cannot be parsed.
        PolicyError, AdapterError: the policy cannot be loaded.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"{target} exists already; choose a folder that does not exist yet")
    if not _SIZE.fullmatch(max_shard_size):
        raise RunError(f"--max-shard-size {max_shard_size}: give it as a number and a unit, e.g. 5GB")
    folder = source.folder
    temporary = target.absolute().parent / f".{target.name}.exporting"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # The model card is there first, so that the one of the base does not take its place.
        (temporary / "README.md").write_text(model_card(target.name, source), encoding="utf-8")
        source.write(temporary, dtype or default_dtype(source), max_shard_size=max_shard_size)
        publish_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def default_dtype(source: OpenPolicy) -> str:
    """The data type in which a policy is exported; an adapter's as its run would have merged it."""
    # Rounded to the type of its base, a merged update would lose most of what small steps have learnt.
    if source.run_dtype is not None and adapters.is_adapter(source.folder):
        return source.run_dtype
    return stored_dtype(source.folder)


def stored_dtype(folder: Path) -> str:
    """The data type of the weights according to the policy's configuration; float32 if it has no entry."""
    config = read_configuration(policies.base_folder(folder) / "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype")
    return dtype if dtype in ("float32", "bfloat16", "float16") else "float32"


def describe(folder: Path) -> str:
    """Describe in words what was exported."""
    if not adapters.is_adapter(folder):
        return str(folder)
    base = adapters.base_of(folder)
    quantised = f", quantised to {base.quantization} as in training" if base.quantization else ""
    return f"{folder}, merged into {base.model}{quantised}"


def note_on_settings(source: OpenPolicy) -> str | None:
    """Say which settings of the policy are not in the exported folder; None if all are."""
    if not source.not_in_folder:
        return None
    return (
        f"the policy was used with {', '.join(source.not_in_folder)}, which a folder of transformers cannot hold; the model"
        " card (README.md) says how to write prompts with them"
    )
