"""The folder of a LoRA adapter, which holds peft's files and a record of the base policy that it was trained on.

    adapter_config.json, adapter_model.safetensors    peft's own files, which other programs can load
    base_policy.json                                  the base's digest, its relative path, and its quantisation

If an adapter does not fit a model, peft only warns; this module raises an error.
"""

import copy
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.policy.model_files import load_errors
from sppo.reading import read_mapping

if TYPE_CHECKING:
    from sppo.recipe.training import Lora

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base_policy.json"


class AdapterError(ValueError):
    """An adapter cannot be used; the message says what to change."""


@dataclass(frozen=True)
class BasePolicy:
    """The policy that an adapter belongs to.

    Attributes:
        model: the base's folder or its name on the hub (peft's `base_model_name_or_path`).
        revision: the revision of a model on the hub.
        relative: the base's folder relative to the adapter's, for folders that are moved together.
        sha256: the digest of the base's weights and configuration; None if another program wrote the adapter.
        quantization: the data type that the base's weights were quantised to while the adapter was trained.
    """

    model: str
    revision: str | None = None
    relative: str | None = None
    sha256: str | None = None
    quantization: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a policy's folder holds an adapter rather than whole weights."""
    return (folder / CONFIG).is_file()


def is_adapted(model: Any) -> bool:
    """Whether a model in memory has an adapter that is not merged."""
    return hasattr(model, "peft_config")


def base_of(folder: Path) -> BasePolicy:
    """Read which base an adapter belongs to.

    Raises:
        AdapterError: the adapter's files cannot be read or do not name a base.
    """
    try:
        config = read_mapping(folder / CONFIG)
        record = folder / BASE
        recorded = read_mapping(record) if record.is_file() else {}
        values = {name: recorded.get(name) for name in ("relative", "sha256", "quantization")}
        model, revision, kind = (config[key] for key in ("base_model_name_or_path", "revision", "peft_type"))
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"{folder}: the adapter's {CONFIG} or {BASE} is damaged: {error!r}") from error
    if not isinstance(model, str) or not all(
        value is None or isinstance(value, str) for value in (revision, *values.values())
    ):
        raise AdapterError(
            f"{folder}: {CONFIG} has no base_model_name_or_path; add the base's folder or hub name"
        )
    if kind != "LORA":
        raise AdapterError(f"{folder} is an adapter of type {kind}; only LORA can be used")
    if config.get("megatron_config") is not None:  # peft would import the module that megatron_core names
        raise AdapterError(
            f"{folder}: {CONFIG}: megatron_config: such adapters run code that they name; remove it"
        )
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(f"{folder} has {CONFIG}, but not the weights {WEIGHTS}")
    return BasePolicy(model, revision, **values)


def quantization_of(folder: Path, wanted: str | None) -> str | None:
    """The quantisation of an adapter's base: the recorded one, or the wanted one if another program wrote the adapter.

    Raises:
        AdapterError: the wanted quantisation is not the recorded one.
    """
    base = base_of(folder)
    if base.sha256 is None:
        return wanted
    if wanted not in (None, base.quantization):
        raise AdapterError(
            f"policy.quantization: {wanted}, but the adapter in {folder} was trained on a base"
            f" {'in ' + base.quantization if base.quantization else 'that is not quantised'}; set it to the same value, or"
            " merge the adapter first: sppo export"
        )
    return base.quantization


def attach(model: Any, folder: Path) -> Any:
    """Load an adapter into its base model, with the adapter's weights in float32; returns a PeftModel in inference mode.

    Raises:
        AdapterError: a name or shape of the adapter does not fit the model, or weights are missing.
    """
    require_peft()
    from peft import LoraConfig, PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    name = model.name_or_path
    with load_errors(f"{folder} does not fit the base policy {name}", AdapterError):
        config = PeftConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        config.base_model_name_or_path, config.inference_mode = None, True
        weights = {key: value.float() for key, value in load_file(folder / WEIGHTS).items()}
        # peft writes a layer of `modules_to_save` twice if the embeddings were resized, under its own name as well.
        own = ".modules_to_save."
        weights = {
            key: value
            for key, value in weights.items()
            if own not in key or key.replace(own, ".") not in weights
        }
        _refuse_other_vocabulary(model, weights, folder)
        adapted = inject(model, config)
        result: Any = set_peft_model_state_dict(adapted, weights, low_cpu_mem_usage=True)
    missing = [key for key, parameter in adapted.named_parameters() if parameter.is_meta]
    for fault, keys in (
        ("lacks", missing),
        ("has weights for layers that the base does not have:", result.unexpected_keys),
    ):
        if keys:
            raise AdapterError(
                f"{folder} does not fit the base policy {name}: it {fault} {', '.join(sorted(keys)[:5])}"
                f"{' and more' if len(keys) > 5 else ''}; it is an adapter of another base"
            )
    return adapted


def _refuse_other_vocabulary(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter that was made after tokens had been added to its base."""
    tokens = model.get_input_embeddings().weight.shape[0]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    for key, value in weights.items():
        # A copy of the layer and the factors of LoRA have one dimension of the vocabulary; the other one is the layer's
        # width or the rank.
        if any(f".{name}." in key for name in names) and value.ndim == 2 and max(value.shape) > tokens:
            rows = max(value.shape)
            raise AdapterError(
                f"{folder} does not fit the base policy {model.name_or_path}: {key} is for {rows} tokens, but the base has"
                f" {tokens}, because tokens were added before the adapter was trained; resize the base with"
                f" model.resize_token_embeddings({rows}), save it with the adapter's tokenizer, and write its folder as"
                f" base_model_name_or_path into {folder / CONFIG}"
            )


def inject(model: Any, config: Any) -> Any:
    """Wrap a model in a PeftModel whose adapter's weights are on the meta device."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # Adapted embeddings and output heads are dealt with by :func:`adapts_embeddings` and :func:`merge`.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        # peft has patterns for the experts of mixtures, which `all-linear` does not adapt.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not")
        return get_peft_model(model, config, low_cpu_mem_usage=True)


def lora_config(settings: "Lora", task_type: str | None = None) -> Any:
    """peft's configuration of an adapter, as `training.adapter` describes it."""
    from peft import LoraConfig

    # Dropout would add noise to the log-ratios, and those of the first step would not be 0.
    return LoraConfig(
        task_type=task_type,
        lora_dropout=0.0,
        **settings.model_dump(include={"r", "lora_alpha", "target_modules", "use_rslora"}),
    )


def added(model: Any, settings: "Lora", seed: int, task_type: str | None = None) -> Any:
    """Add a fresh trainable adapter to a model, whose own weights get no gradients.

    Args:
        model: the model.
        settings: the recipe's `training.adapter`.
        seed: decides the matrices A of the adapter; the matrices B are zero.
        task_type: peft's name of the model's task; None if it has no class for it.

    Raises:
        AdapterError: a name matches no layer, or peft is not installed.
    """
    require_peft()
    import torch
    from peft import get_peft_model

    if fault := fault_of_targets(model, settings, "the model"):
        raise AdapterError(f"target_modules: {fault}")
    # The adapter is initialised with a seed of its own, so that the training's random numbers do not depend on it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, lora_config(settings, task_type))


def fault_of_targets(model: Any, settings: "Lora", name: str) -> str | None:
    """The fault of the names of layers to adapt, as a phrase that calls the model by `name`; None if each matches a layer."""
    layers = [layer for layer, _ in model.named_modules()]
    for target in settings.target_modules if isinstance(settings.target_modules, list) else []:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            return f"{target!r} matches no layer of {name}; its linear layers are {linear_layers(model)}"
    return None


def linear_layers(model: Any) -> str:
    """The last parts of the names of a model's linear layers, without the output head's, separated by commas."""
    import torch

    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return ", ".join(sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"}))


def adapts_embeddings(model: Any) -> bool:
    """Whether an adapter changes the token embeddings or the output head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    bare = model.get_base_model()
    ends = (bare.get_input_embeddings(), bare.get_output_embeddings())
    return any(isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) for end in ends)


def merge(model: Any) -> Any:
    r"""Merge an adapter into its base: the weights become :math:`W + \frac{\alpha}{r} B A`, rounded once to W's dtype.

    Raises:
        AdapterError: a merged weight is not finite.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    bare = model.get_base_model()
    inputs, head = bare.get_input_embeddings(), bare.get_output_embeddings()
    if bare.config.get_text_config().tie_word_embeddings and (
        isinstance(inputs, BaseTunerLayer) or isinstance(head, BaseTunerLayer)
    ):
        # The update belongs to one of the two layers only, so merging it into the weights that they share would change the
        # other one as well. The head gets weights of its own, and the configuration says so.
        layer: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        bare.config.tie_word_embeddings = bare.config.get_text_config().tie_word_embeddings = False
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AdapterError(f"the adapter cannot be merged: {error}") from error


def save(model: Any, folder: Path, base: BasePolicy) -> None:
    """Write the adapter of a PeftModel, without the weights of its base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.revision, config.inference_mode = base.model, base.revision, True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # the order of a set differs between processes
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
    """The relative path from an adapter's folder to its base's; None if there is none, as between two drives."""
    try:
        return os.path.relpath(base.absolute(), folder.absolute())
    except ValueError:
        return None


def require_peft(quantization: str | None = None) -> None:
    """Refuse adapters if a package that they need is not installed.

    Raises:
        AdapterError: peft is not installed, or quantisation is wanted and bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise AdapterError("adapters need peft, which is not installed; pip install 'sppo[peft]'")
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise AdapterError(
            f"policy.quantization: {quantization} needs bitsandbytes, which is not installed;"
            " pip install 'sppo[qlora]'"
        )
