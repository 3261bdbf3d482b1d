"""A LoRA adapter's folder: what peft writes, and which base policy it was made for.

    adapter_config.json, adapter_model.safetensors    peft's own; it loads anywhere
    base_policy.json                                  the base's fingerprint, its way from here, its quantisation

peft warns where an adapter does not fit a model; here that is an error.
"""

import copy
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base_policy.json"


class AdapterError(ValueError):
    """An adapter that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class BasePolicy:
    """The policy that an adapter belongs to.

    Attributes:
        model: its folder or hub name, peft's `base_model_name_or_path`.
        revision: of a hub model.
        relative: its folder seen from the adapter's, for folders that have been moved together.
        sha256: of its weights and configuration; None where another program wrote the adapter.
        quantization: what its weights were rounded to while the adapter was trained.
    """

    model: str
    revision: str | None = None
    relative: str | None = None
    sha256: str | None = None
    quantization: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a policy's folder holds an adapter instead of whole weights."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> BasePolicy:
    """The base of an adapter's folder.

    Raises:
        AdapterError: its files cannot be read or do not name a base.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        record = folder / BASE
        ours = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        values = {name: ours.get(name) for name in ("relative", "sha256", "quantization")}
        model, revision, kind = (config[key] for key in ("base_model_name_or_path", "revision", "peft_type"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{folder}: the adapter's {CONFIG} or {BASE} is damaged: {error!r}") from error
    if not isinstance(model, str) or not all(
        value is None or isinstance(value, str) for value in (revision, *values.values())
    ):
        raise AdapterError(f"{folder}: {CONFIG} does not say what base_model_name_or_path is; write it there")
    if kind != "LORA":
        raise AdapterError(f"{folder} is an adapter of type {kind}; only LORA can be used")
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(f"{folder} has {CONFIG}, but not the weights {WEIGHTS}")
    return BasePolicy(model, revision, **values)


def quantization_of(folder: Path, wanted: str | None) -> str | None:
    """What an adapter's base is rounded to: what it was trained on; an adapter of another program says nothing.

    Raises:
        AdapterError: something else is wanted.
    """
    base = base_of(folder)
    if base.sha256 is None:
        return wanted
    if wanted not in (None, base.quantization):
        raise AdapterError(
            f"policy.quantization: {wanted}, but the adapter in {folder} was trained on a base"
            f" {'in ' + base.quantization if base.quantization else 'that is not quantised'}; say the same, or"
            " merge the adapter first: sppo export"
        )
    return base.quantization


def attach(model: Any, folder: Path) -> Any:
    """A base model with an adapter's weights in it, in float32, as peft's PeftModel; not trainable.

    Raises:
        AdapterError: a name or shape of the adapter does not fit the model, or weights are missing.
    """
    require_peft()
    from peft import LoraConfig, PeftConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = model.name_or_path
    try:
        config = PeftConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        config.base_model_name_or_path, config.inference_mode = None, True
        found = inject(model, config)
        weights = {key: value.float() for key, value in load_file(folder / WEIGHTS).items()}
        result: Any = set_peft_model_state_dict(found, weights, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise AdapterError(
            f"{folder} does not fit the base policy {name}: {type(error).__name__}: {error}"
        ) from error
    missing = [key for key, parameter in found.named_parameters() if parameter.is_meta]
    for what, keys in (
        ("lacks", missing),
        ("has weights without a place in the base:", result.unexpected_keys),
    ):
        if keys:
            raise AdapterError(
                f"{folder} does not fit the base policy {name}: it {what} {', '.join(sorted(keys)[:5])}"
                f"{' and more' if len(keys) > 5 else ''}; it is an adapter of another base"
            )
    return found


def inject(model: Any, config: Any) -> Any:
    """A PeftModel around a model, whose adapter's weights are on the meta device."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # the ends of the model are looked at by :func:`adapts_embeddings`
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        return get_peft_model(model, config, low_cpu_mem_usage=True)


def adapts_embeddings(model: Any) -> bool:
    """Whether an adapter changes the token embeddings or the output head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    bare = model.get_base_model()
    ends = (bare.get_input_embeddings(), bare.get_output_embeddings())
    return any(isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) for end in ends)


def merge(model: Any) -> Any:
    r"""The ordinary model whose weights are :math:`W + \frac{\alpha}{r} B A`, rounded once to W's dtype.

    Raises:
        AdapterError: a merged weight is not finite.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AdapterError(f"the adapter cannot be merged: {error}") from error


def save(model: Any, folder: Path, base: BasePolicy) -> None:
    """Write a PeftModel's adapter, and nothing of its base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.revision, config.inference_mode = base.model, base.revision, True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set is written in another order each time
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    weights = {
        name: value.contiguous()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    record = {"sha256": base.sha256, "relative": base.relative, "quantization": base.quantization}
    (folder / BASE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def relative_path(base: Path, folder: Path) -> str | None:
    """The way from an adapter's folder to its base's; None where there is none, as between two drives."""
    try:
        return os.path.relpath(base.absolute(), folder.absolute())
    except ValueError:
        return None


def require_peft(quantization: str | None = None) -> None:
    """Refuse, with the way out, what is not installed.

    Raises:
        AdapterError: peft is not installed, or bitsandbytes is needed and is not.
    """
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise AdapterError("adapters need peft, which is not installed; pip install 'sppo[peft]'")
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise AdapterError(
            f"policy.quantization: {quantization} needs bitsandbytes, which is not installed;"
            " pip install 'sppo[qlora]'"
        )
