"""The files of a model's folder: the one rule for which of them are loaded, and what they may hold.

It holds for policies, adapters, reward models, general preference models and PairRMs alike. Weights are safetensors that
lie in the folder itself. Nothing in a folder names a file elsewhere, or code, unless `trust_remote_code` is set.
"""

import contextlib
import hashlib
import re
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from sppo.progress import shortened
from sppo.reading import read_mapping
from sppo.rundir.shards import file_digest

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
"""The files beside the weights that a model's behaviour depends on."""


class ModelFilesError(ValueError):
    """A model's folder that must not be loaded, or cannot be; the message names the file."""


def check(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a folder with files that must not be loaded. Only small files are read.

    Raises:
        ModelFilesError: a file is a pipe, a device or a broken link; an index or the configuration names weights that are
            not safetensors in this folder; or the configuration asks for code that is not part of transformers.
    """
    for file in sorted([*folder.iterdir(), *folder.glob(READ[2])]):
        if not file.is_file() and not file.is_dir():
            raise ModelFilesError(f"{file} is not a file (a pipe, a device or a broken link); remove it")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        unused = index.name != INDEX or (folder / WEIGHTS).is_file()
        for name in weight_map(index).values():
            if not unused and not (folder / name).is_file():
                raise ModelFilesError(f"{index} names {name}, which is not there; restore it")
    if (folder / "config.json").is_file():
        _check_configuration(folder / "config.json", trust_remote_code)


def _check_configuration(path: Path, trust_remote_code: bool) -> None:
    waiting: list[tuple[str, Any]] = [("", read_configuration(path))]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            # The attention of each part of a multimodal model can be given as a mapping.
            waiting += [(f"{key}.{name}" if "implementation" in key else name, value[name]) for name in value]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif key == "transformers_weights" and value is not None:
            _check_name(value, path, key)
        elif "implementation" in key and "/" in str(value) and not trust_remote_code:
            raise ModelFilesError(
                f"{path}: {key}: {value!r} is code on the hub, which would be downloaded and run; remove this key, or, if"
                " you trust it, set trust_remote_code: true"
            )


def weight_map(index: Path) -> dict[str, str]:
    """The file of each weight, as an index names it.

    Raises:
        ModelFilesError: the index is damaged, or names anything but safetensors beside it.
    """
    placed = read_configuration(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelFilesError(f"{index}: weight_map: missing; it says which file holds which weight")
    for name, file in placed.items():
        _check_name(file, index, name)
    return placed


def _check_name(file: Any, where: Path, key: str) -> None:
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
        raise ModelFilesError(
            f"{where}: {key}: {file!r} is not the name of a file beside it that ends in .safetensors; only such files are loaded"
        )


def read_configuration(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a model's folder.

    Raises:
        ModelFilesError: the file is missing or damaged.
    """
    try:
        return read_mapping(path)
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path} cannot be read: {shortened(str(error))}") from error


@contextlib.contextmanager
def load_errors(beginning: str, kind: type[ValueError]) -> Iterator[None]:
    """Turn whatever is raised while files of a model are loaded into one kind of error; errors of that kind pass.

    transformers, tokenizers, peft and safetensors raise errors of any class about a damaged file, and their Rust code raises
    panics, which are not even exceptions.

    Args:
        beginning: the beginning of the message.
        kind: the class of the error.
    """
    try:
        yield
    except kind:
        raise
    except ModelFilesError as error:
        raise kind(f"{beginning}: {error}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = str(error)
        trust = "; if you trust it, set trust_remote_code: true" if "trust_remote_code" in text else ""
        raise kind(f"{beginning}: {type(error).__name__}: {shortened(text)}{trust}") from error


def load_tokenizer(place: str | Path, **options: Any) -> Any:
    """Load a tokenizer, and use it once: transformers looks at the types of some settings only when they are needed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    tokenizer.decode(tokenizer("Hello!")["input_ids"])
    return tokenizer


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files of a folder that are loaded."""
    patterns = ("*.safetensors", *READ)
    return digest_of(sorted({file for pattern in patterns for file in folder.glob(pattern)}))


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights and configuration of a whole policy, on which its adapters depend."""
    return digest_of(sorted([*folder.glob("*.safetensors"), folder / "config.json"]))


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{_content(file)}\0".encode())
    return total.hexdigest()


def _content(file: Path) -> str:
    """The SHA-256 of a file; a large file in the hub's cache is named by it and need not be read."""
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        from huggingface_hub.constants import HF_HUB_CACHE

        if Path(HF_HUB_CACHE).resolve() in blob.parents:
            return blob.name
    return file_digest(file)


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a folder's safetensors files, by its name, read from their headers alone.

    Raises:
        ModelFilesError: a header is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    return dict(_shapes(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)))


@lru_cache(maxsize=8)
def _shapes(states: tuple[tuple[Path, int, int], ...]) -> dict[str, list[int]]:
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path, _, _ in states:
        with load_errors(f"{path} is damaged", ModelFilesError), safe_open(path, framework="np") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def stored_weights(folder: Path, names: Container[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The tensors of these names in a folder's safetensors files, one at a time; None: all tensors.

    Raises:
        ModelFilesError: a file is damaged.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with load_errors(f"{path} is damaged", ModelFilesError), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if names is None or name in names:
                    yield name, file.get_tensor(name)


def refuse_non_finite(weights: Iterable[tuple[str, Any]]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: names and tensors; tensors without floating-point data are skipped.

    Raises:
        ModelFilesError: a weight is not finite.
    """
    import torch

    plain = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for name, weight in weights:
        if weight.dtype not in plain or weight.numel() == 0 or weight.is_meta:
            continue
        # NaN propagates to both extrema, so two numbers reveal every value that is not finite.
        if not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ModelFilesError(
                f"its weight {name} has values that are NaN or infinite; use a model whose weights are whole, or"
                " lower training.learning_rate if training has produced them"
            )
