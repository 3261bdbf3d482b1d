"""A policy on disk, found, checked, hashed and loaded: a transformers folder, or a LoRA adapter's beside its base."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sppo.policy import adapter as adapters
from sppo.policy.adapter import AdapterError
from sppo.policy.chat_format import model_path
from sppo.rundir.shards import file_digest

_WEIGHTS = ("*.safetensors",)
_OTHERS = ("*.json", "*.jinja", "*.model", "*.txt")


class PolicyError(ValueError):
    """A policy that cannot be loaded; the message says what to change."""


def folder(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder of a model: itself, the embedded policy's, or a snapshot of the hub's.

    Raises:
        PolicyError: there is none, or it has no safetensors weights.
    """
    path = Path(model_path(model))
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        patterns = [*_WEIGHTS, *_OTHERS, *(["*.py"] if trust_remote_code else [])]
        try:
            path = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise PolicyError(
                f"policy.model: {model!r} is neither a folder here nor a model that the hub gives: {error}"
            ) from error
    if not any(path.glob("*.safetensors")):
        other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in path.glob(pattern))
        found = f"only {', '.join(other)}" if other else "no weights at all"
        raise PolicyError(
            f"policy.model: {path} has {found}; weights are loaded from safetensors only, which"
            " `model.save_pretrained(folder)` of transformers writes"
        )
    return path


def base_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder that a policy's whole weights lie in: its own, or that of an adapter's base.

    Raises:
        AdapterError: the base is not there, or is not the one that the adapter was trained on.
    """
    if not adapters.is_adapter(path):
        return path
    of = adapters.base_of(path)
    near = [Path(model_path(of.model)), *([path / of.relative] if of.relative else [])]
    found = next((base.resolve() for base in near if base.is_dir()), None)
    try:
        found = found or folder(of.model, revision=of.revision, trust_remote_code=trust_remote_code)
    except PolicyError as error:
        raise AdapterError(
            f"{path} is an adapter of {of.model!r}, which is not there ({error}); put that policy back, or"
            f" write where it is as base_model_name_or_path into {path / adapters.CONFIG}"
        ) from error
    if adapters.is_adapter(found):
        raise AdapterError(
            f"{path} is an adapter of {found}, which is an adapter itself; merge that one first: sppo export"
        )
    if of.sha256 is not None and weights_digest(found) != of.sha256:
        raise AdapterError(
            f"{path} is an adapter for another base: the weights or config.json of {found} are not those that it"
            f" was trained on. Write where those are as base_model_name_or_path into {path / adapters.CONFIG}"
        )
    return found


def digest(path: Path) -> str:
    """SHA-256 over the names and contents of the files that make up a policy, an adapter's base included."""
    files = sorted({file for pattern in (*_WEIGHTS, *_OTHERS) for file in path.glob(pattern)})
    own = _digest_of(files)
    if not adapters.is_adapter(path):
        return own
    return hashlib.sha256(f"{own}\0{digest(base_folder(path))}".encode()).hexdigest()


def weights_digest(path: Path) -> str:
    """SHA-256 of a whole policy's weights and configuration: what an adapter of it depends on."""
    files = sorted([*path.glob("*.safetensors"), path / "config.json"])
    states = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _weights_digest(states)


@lru_cache(maxsize=8)
def _weights_digest(states: tuple[tuple[Path, int, int], ...]) -> str:
    # a policy is loaded several times a stage: its gigabytes are read once for this
    return _digest_of([file for file, _, _ in states])


def _digest_of(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        # the hub's cache names a large file by its own SHA-256: nothing to read there
        blob = file.resolve().name
        content = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else file_digest(file)
        total.update(f"{file.name}\0{content}\0".encode())
    return total.hexdigest()


def count_parameters(path: Path) -> int:
    """How many parameters the safetensors files hold, read from their headers alone."""
    return sum(math.prod(shape) for shape in tensor_shapes(path).values())


def count_adaptable(path: Path, target_modules: str | Sequence[str], r: int) -> tuple[int, int]:
    """The parameters of a policy's layers that an adapter is for, and those of the adapter, from the same headers.

    Args:
        path: a folder of whole weights.
        target_modules: names of layers, or `all-linear`: all but embeddings and the output head.
        r: rank of the adapter.
    """
    found = adapter = 0
    for name, shape in tensor_shapes(path).items():
        layer = name.removesuffix(".weight")
        ends = ("embed_tokens", "lm_head", "wte", "wpe")
        named = (
            not layer.endswith(ends)
            if target_modules == "all-linear"
            else any(f".{layer}".endswith(f".{target}") for target in target_modules)
        )
        if len(shape) == 2 and layer != name and named:
            found += math.prod(shape)
            adapter += r * sum(shape)
    return found, adapter


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a folder's safetensors files, by its name, read from their headers alone."""
    shapes: dict[str, list[int]] = {}
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return shapes


def load(
    path: Path,
    *,
    dtype: str,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    quantization: str | None = None,
) -> Any:
    """The model of a folder, in evaluation mode: of an adapter's folder, its base with the adapter in it.

    Args:
        path: as :func:`folder` gives it.
        dtype: `float32` or `bfloat16`; an adapter's weights are float32 whatever its base has.
        attn_implementation: as in transformers.
        trust_remote_code: run Python that comes with the model.
        device: None: the accelerator if there is one, else the CPU.
        quantization: what the weights are rounded to, but those of an adapter; None: nothing, or what the
            adapter's folder says.

    Raises:
        PolicyError: transformers cannot load it, or weights are missing.
        AdapterError: an adapter does not fit its base, or the base is not there.
    """
    if not adapters.is_adapter(path):
        return _load_whole(path, dtype, attn_implementation, trust_remote_code, device, quantization)
    base = base_folder(path, trust_remote_code=trust_remote_code)
    rounded = adapters.quantization_of(path, quantization)
    whole = _load_whole(base, dtype, attn_implementation, trust_remote_code, device, rounded)
    model = adapters.attach(whole, path)
    if adapters.adapts_embeddings(model):
        raise AdapterError(
            f"{path} adapts the token embeddings or the output head, which is not supported while training;"
            " merge it first: sppo export"
        )
    return model.eval()


def load_merged(path: Path, *, dtype: str, trust_remote_code: bool = False) -> Any:
    """The model of a folder as one ordinary model on the CPU; an adapter is merged into its base.

    Where the adapter was trained on rounded weights, it is merged into those, back in `dtype`: the merged model is
    the one that was trained.
    """
    rounded = adapters.quantization_of(path, None) if adapters.is_adapter(path) else None
    base = base_folder(path, trust_remote_code=trust_remote_code)
    model = _load_whole(base, dtype, None, trust_remote_code, "cpu", rounded)
    if rounded is not None:
        model = model.dequantize()
    return adapters.merge(adapters.attach(model, path)) if adapters.is_adapter(path) else model


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
    options = {} if quantization is None else _quantized(quantization, getattr(torch, dtype), device)
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, json.JSONDecodeError) as error:
        raise PolicyError(f"policy.model: {path} does not load: {type(error).__name__}: {error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise PolicyError(f"policy.model: {path}: the weights are damaged: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise PolicyError(
            f"policy.model: {path} lacks weights of its architecture: {', '.join(names[:5])}"
            f"{' and more' if len(names) > 5 else ''}; they would be random"
        )
    if options:
        for module in model.modules():
            # bitsandbytes repacks weights on some CPUs for inference: rounded otherwise, and without gradients
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model.eval()
    return model.to(device).eval()


def _quantized(quantization: str, dtype: Any, device: str) -> dict[str, Any]:
    """QLoRA's base (arXiv:2305.14314): weights in NF4, their scales rounded again, matrix products in dtype."""
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would cut through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def default_device() -> str:
    """`cuda` where there is an accelerator of that kind, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def config_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """Where a policy's config.json lies: in its folder, or in that of an adapter's base."""
    return (
        path if (path / "config.json").is_file() else base_folder(path, trust_remote_code=trust_remote_code)
    )


def tokenizer_folder(path: Path, *, trust_remote_code: bool = False) -> Path:
    """Where a policy's tokenizer lies: in its folder, or in that of an adapter's base."""
    own = (path / "tokenizer_config.json").is_file()
    return path if own else base_folder(path, trust_remote_code=trust_remote_code)


def context_length(path: Path, trust_remote_code: bool = False) -> int:
    """The most tokens that the model takes, prompt and response together."""
    config = _text_config(path, trust_remote_code)
    return int(
        getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 1 << 20
    )


def vocabulary_size(path: Path, trust_remote_code: bool = False) -> int:
    """How many tokens the model knows."""
    return int(_text_config(path, trust_remote_code).vocab_size)


def _text_config(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    path = config_folder(path, trust_remote_code=trust_remote_code)
    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
