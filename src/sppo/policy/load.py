"""Find, check, hash and load a policy: a folder of whole weights, or the folder of a LoRA adapter and that of its base."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sppo.policy import adapter as adapters
from sppo.policy import model_files
from sppo.policy.adapter import AdapterError
from sppo.policy.chat_format import model_path
from sppo.policy.library_messages import quiet as quiet
from sppo.policy.model_files import load_errors, weights_digest

_log = logging.getLogger(__name__)


class PolicyError(ValueError):
    """A policy that cannot be loaded; the message says what to change."""


def check_place(model: str) -> None:
    """Refuse what is neither a folder here nor can be the name of a model on the hub.

    Raises:
        PolicyError: it is neither.
    """
    if Path(model_path(model)).is_file():
        raise PolicyError(
            f"policy.model: {model!r} is a file; name the folder with config.json and the weights"
        )
    if not Path(model_path(model)).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model, re.ASCII):
        raise PolicyError(
            f"policy.model: there is no folder {model!r} here, and no model on the hub can have that name"
        )


def folder(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder of a model, which can be given as a folder, as `tinyworld`, or by its name on the hub.

    Raises:
        PolicyError: there is no such model, it has no safetensors weights, or it has files that must not be loaded
            (:func:`sppo.policy.model_files.check`).
    """
    check_place(model)
    path = Path(model_path(model))
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        code = {"*.py"} if not trust_remote_code else set()
        patterns = [pattern for pattern in ("*.safetensors", *model_files.READ) if pattern not in code]
        try:
            path = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise PolicyError(
                f"policy.model: {model!r} is neither a folder here nor a model that can be downloaded from the hub: {error}"
            ) from error
    if not any(path.glob("*.safetensors")):
        other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in path.glob(pattern))
        content = f"only {', '.join(other)}" if other else "no weights at all"
        raise PolicyError(
            f"policy.model: {path} has {content}; weights are loaded from safetensors only, which"
            " `model.save_pretrained(folder)` of transformers writes"
        )
    check_files(path, trust_remote_code)
    return path


def check_files(path: Path, trust_remote_code: bool) -> None:
    """Like :func:`sppo.policy.model_files.check`, for a policy.

    Raises:
        PolicyError: the folder has files that must not be loaded.
    """
    with load_errors("policy.model", PolicyError):
        model_files.check(path, trust_remote_code=trust_remote_code)


def base_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder with a policy's whole weights: the policy's own, or that of an adapter's base.

    Raises:
        AdapterError: the base cannot be found, or is not the one that the adapter was trained on.
    """
    if not adapters.is_adapter(path):
        return path
    recorded = adapters.base_of(path)
    candidates = [
        Path(model_path(recorded.model)),
        *([path / recorded.relative] if recorded.relative else []),
    ]
    base = next((candidate.resolve() for candidate in candidates if candidate.is_dir()), None)
    try:
        base = base or folder(recorded.model, revision=recorded.revision, trust_remote_code=trust_remote_code)
    except PolicyError as error:
        raise AdapterError(
            f"{path} is an adapter of {recorded.model!r}, which cannot be found ({error}); restore that policy, or"
            f" write its folder as base_model_name_or_path into {path / adapters.CONFIG}"
        ) from error
    if adapters.is_adapter(base):
        raise AdapterError(
            f"{path} is an adapter of {base}, which is an adapter itself; merge that one first: sppo export"
        )
    if recorded.sha256 is not None and weights_digest(base) != recorded.sha256:
        raise AdapterError(
            f"{path} is an adapter for another base: the weights or config.json of {base} are not those that it"
            f" was trained on. Write the folder of the right base as base_model_name_or_path into {path / adapters.CONFIG}"
        )
    return base


def digest(path: Path) -> str:
    """SHA-256 over the names and contents of a policy's files, including those of an adapter's base."""
    own = model_files.digest(path)
    if not adapters.is_adapter(path):
        return own
    return hashlib.sha256(f"{own}\0{digest(base_folder(path))}".encode()).hexdigest()


def count_parameters(path: Path) -> int:
    """The number of parameters in the safetensors files, read from their headers."""
    return sum(math.prod(shape) for shape in model_files.tensor_shapes(path).values())


def count_adaptable(path: Path, target_modules: str | Sequence[str], r: int) -> tuple[int, int]:
    """The number of parameters in the layers that an adapter would adapt, and the number in the adapter.

    Args:
        path: a folder of whole weights, of which only the headers are read.
        target_modules: names of layers, or `all-linear` for all layers but the embeddings and the output head.
        r: the rank of the adapter.
    """
    adapted = adapter = 0
    for name, shape in model_files.tensor_shapes(path).items():
        layer = name.removesuffix(".weight")
        if target_modules == "all-linear":
            chosen = not layer.endswith(("embed_tokens", "lm_head", "wte", "wpe"))
        else:
            chosen = any(f".{layer}".endswith(f".{target}") for target in target_modules)
        if len(shape) == 2 and layer != name and chosen:
            adapted += math.prod(shape)
            adapter += r * sum(shape)
    return adapted, adapter


def load(
    path: Path,
    *,
    dtype: str,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    quantization: str | None = None,
) -> Any:
    """Load a policy in evaluation mode; an adapter is loaded into its base.

    Args:
        path: a folder as :func:`folder` returns it.
        dtype: `float32` or `bfloat16`; an adapter's weights are float32 in either case.
        attn_implementation: as in transformers.
        trust_remote_code: run Python code that comes with the model.
        device: None: the accelerator if there is one, else the CPU.
        quantization: the data type that all weights but an adapter's are quantised to; None: the one recorded in an
            adapter's folder, or none.

    Raises:
        PolicyError: transformers cannot load the policy, or weights are missing or not finite.
        AdapterError: an adapter does not fit its base, or the base cannot be found.
    """
    if not adapters.is_adapter(path):
        return _load_whole(path, dtype, attn_implementation, trust_remote_code, device, quantization)
    base = base_folder(path, trust_remote_code=trust_remote_code)
    recorded = adapters.quantization_of(path, quantization)
    whole = _load_whole(base, dtype, attn_implementation, trust_remote_code, device, recorded)
    model = adapters.attach(whole, path)
    refuse_non_finite(model.named_parameters(), f"policy.model: {path} cannot be used")
    if adapters.adapts_embeddings(model):
        raise AdapterError(
            f"{path} adapts the token embeddings or the output head, which is not supported while training;"
            " merge it first: sppo export"
        )
    return model.eval()


def load_merged(path: Path, *, dtype: str, trust_remote_code: bool = False) -> Any:
    """Load a policy as one ordinary model on the CPU; an adapter is merged into its base.

    An adapter that was trained on quantised weights is merged into these, converted back to `dtype`, so that the merged
    model is the one that was trained.
    """
    if not adapters.is_adapter(path):
        return _load_whole(path, dtype, None, trust_remote_code, "cpu", None)
    base = base_folder(path, trust_remote_code=trust_remote_code)
    recorded = adapters.quantization_of(path, None)
    model = _load_whole(base, dtype, None, trust_remote_code, "cpu", recorded)
    if recorded is not None or quantization_method(base) is not None:
        model = model.dequantize()
    return adapters.merge(adapters.attach(model, path))


def quantization_method(path: Path) -> str | None:
    """The method by which a folder's weights are quantised, as its config.json says; None if they are not."""
    file = path / "config.json"
    config = model_files.read_configuration(file) if file.is_file() else {}
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else None


def refuse_non_finite(weights: Iterable[tuple[str, Any]], beginning: str) -> None:
    """Refuse the weights of a policy that are NaN or infinite; the message begins as given.

    Raises:
        PolicyError: a weight is not finite.
    """
    with load_errors(beginning, PolicyError):
        model_files.refuse_non_finite(weights)


def _load_whole(
    path: Path,
    dtype: str,
    attn_implementation: str | None,
    trust_remote_code: bool,
    device: str | None,
    quantization: str | None,
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    method = quantization_method(path)
    if method and quantization:
        raise PolicyError(
            f"policy.quantization: {quantization}, but the weights of {path} are already quantised ({method}); leave"
            " policy.quantization out"
        )
    options: dict[str, Any] = {"device_map": {"": device}} if method else {}
    if quantization:
        options = _quantized(quantization, getattr(torch, dtype), device)
    check_files(path, trust_remote_code)
    with load_errors(f"policy.model: {path} cannot be loaded", PolicyError), quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise PolicyError(
            f"policy.model: {path} lacks weights of its architecture: {', '.join(names[:5])}"
            f"{' and more' if len(names) > 5 else ''}; they would be random"
        )
    # The other processes of a machine read the same files, or none.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # Values that are not finite are lost in quantised weights, so those are looked at as they are stored.
        weights = model_files.stored_weights(path) if options else model.named_parameters()
        refuse_non_finite(weights, f"policy.model: {path} cannot be used")
        _name_unused_weights(path, model)
    if options:
        for module in model.modules():
            # On some CPUs bitsandbytes repacks the weights for inference: the result rounds differently and has no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model.eval()
    return model.to(device).eval()


def _name_unused_weights(path: Path, model: Any) -> None:
    """Log which weights of a folder the language model does not contain, such as those of a vision tower."""
    # transformers drops them without a message, so every policy that is saved lacks them. Weights can be fused while they are
    # loaded, so a group of weights counts as dropped if most of its names have no counterpart in the model.
    groups: dict[str, list[str]] = {}
    for name in model_files.tensor_shapes(path):
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    own = tuple(name.removeprefix("model.") for name, _ in model.named_parameters())
    dropped = {
        group: names
        for group, names in groups.items()
        if 2 * sum(name.endswith(own) for name in names) < len(names)
    }
    if dropped and count_parameters(path) > model.num_parameters():
        _log.warning(
            "policy.model: %s is a %s without %d of the %d weights in %s, which are not part of any policy that is saved: %s",
            path,
            type(model).__name__,
            sum(map(len, dropped.values())),
            sum(map(len, groups.values())),
            path,
            ", ".join(sorted(dropped)),
        )


def _quantized(quantization: str, dtype: Any, device: str) -> dict[str, Any]:
    """The arguments that quantise a QLoRA base (arXiv:2305.14314): NF4 weights with quantised scales, products in dtype."""
    from transformers import BitsAndBytesConfig

    assert quantization == "nf4"
    adapters.require_peft(quantization)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def default_device() -> str:
    """`cuda` if there is such a device, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype() -> str:
    """The data type of weights that only compute: `bfloat16` on an accelerator, `float32` without."""
    return "float32" if default_device() == "cpu" else "bfloat16"


def config_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder with a policy's config.json: the policy's own, or that of an adapter's base."""
    return (
        path if (path / "config.json").is_file() else base_folder(path, trust_remote_code=trust_remote_code)
    )


def tokenizer_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder with a policy's tokenizer: the policy's own, or that of an adapter's base."""
    own = (path / "tokenizer_config.json").is_file()
    return path if own else base_folder(path, trust_remote_code=trust_remote_code)


def context_length(path: Path, trust_remote_code: bool = False) -> int:
    """The largest number of tokens that the model can process, prompt and response together.

    A model whose RoPE changes for the whole sequence once it exceeds a length (longrope) is used up to that length:
    beyond it, log pi(y|x) would depend on the sequences that are computed together and on the sampler's cache.
    """
    config = text_config(path, trust_remote_code)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 1 << 20
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") == "longrope":
            length = min(length, parameters.get("original_max_position_embeddings") or length)
    return int(length)


def vocabulary_size(path: Path, trust_remote_code: bool = False) -> int:
    """The number of tokens that the model has logits for."""
    return int(text_config(path, trust_remote_code).vocab_size)


def text_config(path: Path, trust_remote_code: bool = False) -> Any:
    """The configuration of a policy's language model, as transformers reads it.

    Raises:
        PolicyError: it cannot be read.
    """
    from transformers import AutoConfig

    path = config_folder(path, trust_remote_code=trust_remote_code)
    with load_errors(f"policy.model: the configuration of {path} cannot be loaded", PolicyError):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
