"""PairRM checkpoints: both layouts, with weights in one file or several, and the conversion of pickled weights.

The original layout (`llm-blender/PairRM`) has the configuration of a ranker, which names a backbone; the other
(`llm-blender/PairRM-hf`) is a transformers folder whose architecture is a `...PairRM`. Weights are safetensors.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from sppo.oracle import OracleError
from sppo.oracle.model_folder import refuse_non_finite
from sppo.oracle.pairrm_encoder import deberta
from sppo.oracle.pairrm_input import CANDIDATE, CANDIDATE_1, CANDIDATE_2, SOURCE, Limits, Reads
from sppo.oracle.transcript import positions
from sppo.policy import model_files
from sppo.policy.model_files import INDEX, WEIGHTS, load_errors, weight_map
from sppo.reading import read_mapping

PICKLED_WEIGHTS, PICKLED_SHARDS = "pytorch_model.bin", "pytorch_model*.bin"
READS = "pairrm_reads"
"""The field of a transformers folder that says whose hidden states are read, where they are not those of the prefixes."""
ARCHITECTURE = "PairRM"
"""The end of the architecture's name in a transformers folder, as in DebertaV2PairRM."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a PairRM folder, whichever of the two layouts it has.

    Attributes:
        folder: the folder that holds the weights.
        backbone: the encoder's transformers configuration.
        resized: whether the size of the vocabulary is that of the weights, not that of the backbone's configuration.
        tokenizer_json: the tokenizer's file.
        limits: the numbers of tokens beyond which texts are truncated.
        n_tasks: the number of outputs of the head, whose mean is the logit.
        declared_ids: the token ids of the prefixes, as the configuration states them.
        markers: the tokens that begin and end each part.
        reads: the positions whose hidden states are read.
        assumed_limits: the names of the limits that the configuration does not state.
    """

    folder: Path
    backbone: Mapping[str, Any]
    resized: bool
    tokenizer_json: Path
    limits: Limits
    n_tasks: int
    declared_ids: Mapping[str, int]
    markers: tuple[str, str] = ("[CLS]", "[SEP]")
    reads: Reads = "prefixes"
    assumed_limits: tuple[str, ...] = ()


def convert_bin(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Convert pickled weights, pytorch_model.bin or its shards, to model.safetensors.

    The pickles are loaded with ``weights_only``, so no code in them runs.

    Args:
        folder: the folder that holds them.
        output: the folder to write to; None writes beside them.

    Raises:
        OracleError: there is no such file, there are safetensors already, or a file holds more than tensors.

    Returns:
        The new file.
    """
    target = Path(output or folder, WEIGHTS)
    if target.exists():
        raise OracleError(f"{target}: exists already, so there is nothing to convert")
    sources = sorted(Path(folder).glob(PICKLED_SHARDS))
    if not sources:
        raise OracleError(f"{Path(folder, PICKLED_WEIGHTS)}: there is no such file")
    found: dict[str, Tensor] = {}
    for source in sources:
        try:
            weights = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each raise their own
            raise OracleError(
                f"{source}: is damaged or holds something other than weights; nothing in it was run"
            ) from error
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise OracleError(
                f"{source}: holds something other than named tensors, so it is not a state dict"
            )
        found |= weights
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{WEIGHTS}.{os.getpid()}.partial")
    save_file({name: value.clone().contiguous() for name, value in found.items()}, partial, {"format": "pt"})
    partial.replace(target)
    return target


def find(
    model: str, revision: str | None = None, files: Sequence[str] = ("*.json", "model*.safetensors")
) -> Path:
    """The folder of a model: the named folder itself, or the hub model's files in the cache.

    Raises:
        OracleError: the name is neither a folder nor a model that the hub provides.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model) or folder.exists():
        raise OracleError(f"{model}: there is no such folder, and it is not the name of a model on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub's, httpx's and the system's errors have no common class
        at = f" at revision {revision}" if revision else ""
        raise OracleError(
            f"{model}{at}: there is no such folder, and the Hugging Face hub does not provide it: {error}"
        ) from error


def read(folder: Path) -> Checkpoint:
    """Read the checkpoint in a folder of either layout, without its weights.

    Raises:
        OracleError: the folder is not a PairRM, or a file of it is missing or wrong.
    """
    with load_errors(f"{folder} cannot be read", OracleError):
        model_files.check(folder)
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    if "ranker_type" in config:
        return _original_layout(folder, config)
    if isinstance(architectures, list) and [str(name)[-len(ARCHITECTURE) :] for name in architectures] == [
        ARCHITECTURE
    ]:
        return _hf_layout(folder, config)
    raise OracleError(
        f"{folder}/config.json: architectures: {architectures} is not a PairRM. A PairRM has the ranker"
        " configuration of llm-blender/PairRM or the architecture DebertaV2PairRM of llm-blender/PairRM-hf"
    )


def limited(checkpoint: Checkpoint, given: Mapping[str, int | None]) -> Checkpoint:
    """A checkpoint with the limits that are given; a note is logged for those that neither say.

    Args:
        checkpoint: the checkpoint.
        given: `source_maxlength` and `candidate_maxlength`; None keeps the checkpoint's.
    """
    own = {"source_maxlength": checkpoint.limits.source, "candidate_maxlength": checkpoint.limits.candidate}
    assumed = [f"{name} {own[name]}" for name in checkpoint.assumed_limits if given[name] is None]
    if assumed:
        _log.warning(
            "note: %s/config.json states no limits; those of the published PairRM are assumed: %s. Set them in the recipe"
            " if the model was trained with others (oracle.source_maxlength, oracle.candidate_maxlength)",
            checkpoint.folder,
            ", ".join(assumed),
        )
    values = {name: own[name] if value is None else value for name, value in given.items()}
    return replace(checkpoint, limits=Limits(values["source_maxlength"], values["candidate_maxlength"]))


def _original_layout(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    where = f"{folder}/config.json"
    for field, expected in {"ranker_type": "pairranker", "reduce_type": "linear"}.items():
        if config.get(field, expected) != expected:
            raise OracleError(f"{where}: {field}: {config[field]!r}; a PairRM has {expected!r}")
    name = config.get("model_name")
    if not isinstance(name, str) or not name:
        raise OracleError(f"{where}: model_name: {name!r}; the name of the backbone is needed")
    near = (folder / name, folder.resolve().parent / name)
    backbone = next((path for path in near if path.is_dir()), None) or find(name, None, ["*.json"])
    with load_errors(f"{folder}: the backbone {name} cannot be read", OracleError):
        model_files.check(backbone)
    described = _read_json(backbone / "config.json")
    if not _is_deberta(described):
        raise OracleError(
            f"{folder}: the backbone is a {described.get('model_type')!r}; the original layout is read with"
            " a 'deberta-v2' only"
        )
    own = folder / "tokenizer.json"
    return Checkpoint(
        folder=folder,
        backbone=described,
        resized=True,
        tokenizer_json=_existing(own if own.exists() else backbone / "tokenizer.json"),
        limits=_limits(config, where),
        assumed_limits=tuple(
            name for name in ("source_maxlength", "candidate_maxlength") if name not in config
        ),
        n_tasks=_n_tasks(config, where),
        declared_ids={},
    )


def _hf_layout(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    where = f"{folder}/config.json"
    fields = {
        SOURCE: "source_prefix_id",
        CANDIDATE_1: "cand1_prefix_id",
        CANDIDATE_2: "cand2_prefix_id",
        CANDIDATE: "cand_prefix_id",
    }
    return Checkpoint(
        folder=folder,
        backbone=config,
        resized=False,
        tokenizer_json=_existing(folder / "tokenizer.json"),
        limits=_limits(config, where),
        assumed_limits=tuple(
            name for name in ("source_maxlength", "candidate_maxlength") if name not in config
        ),
        n_tasks=_n_tasks(config, where),
        declared_ids={prefix: config[name] for prefix, name in fields.items() if name in config},
        markers=markers(folder),
        reads=_reads(config, where),
    )


def markers(folder: Path) -> tuple[str, str]:
    """The tokens that begin and end a part, as the tokenizer's configuration names them: CLS and SEP, or else BOS and EOS."""
    path = folder / "tokenizer_config.json"
    config = _read_json(path) if path.is_file() else {}

    def named(key: str, default: str) -> str:
        value = config.get(key) or default
        return str(value.get("content", default)) if isinstance(value, dict) else str(value)

    end = named("sep_token", named("eos_token", "[SEP]"))
    return named("cls_token", named("bos_token", end if config.get("eos_token") else "[CLS]")), end


def _read_json(path: Path) -> dict[str, Any]:
    with load_errors(f"{path}: cannot be read as a configuration", OracleError):
        return read_mapping(_existing(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise OracleError(
            f"{path}: there is no such file; a PairRM needs config.json, tokenizer.json and {WEIGHTS}"
        )
    return path


def _limits(config: Mapping[str, Any], where: str) -> Limits:
    default = Limits()
    try:
        return Limits(
            config.get("source_maxlength", default.source),
            config.get("candidate_maxlength", default.candidate),
        )
    except ValueError as error:
        raise OracleError(f"{where}: {error}") from error


def _reads(config: Mapping[str, Any], where: str) -> Reads:
    reads = config.get(READS, "prefixes")
    if reads not in get_args(Reads):
        raise OracleError(f"{where}: {READS}: {reads!r}; known are {', '.join(get_args(Reads))}")
    found: Reads = reads
    return found


def _n_tasks(config: Mapping[str, Any], where: str) -> int:
    n_tasks = config.get("n_tasks", 1)
    if not isinstance(n_tasks, int) or n_tasks < 1:
        raise OracleError(f"{where}: n_tasks: {n_tasks!r}; a number of at least 1 is needed")
    return n_tasks


def build(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, torch.nn.Sequential]:
    """The encoder and the head with their weights, in evaluation mode, on the CPU.

    Raises:
        OracleError: a weight is missing, superfluous or of the wrong shape, or transformers does not know the
            backbone's model_type.
    """
    weights = dict(_weights(checkpoint.folder))
    fields = dict(checkpoint.backbone)
    embedding = weights.get("pretrained_model.embeddings.word_embeddings.weight")
    if checkpoint.resized and embedding is not None:
        fields["vocab_size"] = embedding.shape[0]
    encoder = _backbone(checkpoint.folder, fields)
    config = encoder.config
    check_positions(config, checkpoint.limits, f"{checkpoint.folder}")
    with torch.device("meta"):
        head = new_head(config.hidden_size, checkpoint.n_tasks)
    whole = (
        torch.nn.ModuleDict({"pretrained_model": encoder, "head_layer": head}).eval().requires_grad_(False)
    )
    _check_weights(checkpoint.folder, whole.state_dict(), weights)
    refuse_non_finite(str(checkpoint.folder), weights.items())
    kind = {name: torch.float32 if name.startswith("head_layer.") else dtype for name in weights}
    whole.load_state_dict({name: value.to(kind[name]) for name, value in weights.items()}, assign=True)
    if _is_deberta(fields):  # a buffer that is not among the weights
        encoder.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return encoder, head


def check_positions(config: Any, limits: Limits, where: str) -> None:
    """Refuse limits by which a pair may be longer than the backbone has positions for.

    Raises:
        OracleError: it may be.
    """
    if getattr(config, "position_biased_input", config.model_type != "deberta-v2") and limits.pair > (
        held := positions(config)
    ):
        raise OracleError(
            f"{where}: the backbone has {held} absolute positions, but a pair may have {limits.pair} tokens; lower"
            " source_maxlength, candidate_maxlength"
        )


def new_head(hidden: int, n_tasks: int, dropout: float = 0.0) -> torch.nn.Sequential:
    """A new head, f(u) = W2 tanh(W1 u + b1) + b2. The positions of its modules are part of the weights' names."""
    return torch.nn.Sequential(
        torch.nn.Dropout(dropout),
        torch.nn.Linear(2 * hidden, hidden),
        torch.nn.Tanh(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(hidden, n_tasks),
    )


def _is_deberta(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("model_type") == "deberta-v2")


# Fields of a configuration that describe the file and not the network.
_ABOUT_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "auto_map", "model_type")


def _backbone(folder: Path, fields: Mapping[str, Any]) -> Any:
    """The encoder without its weights."""
    kind = fields.get("model_type")
    own = {name: value for name, value in fields.items() if name not in _ABOUT_THE_FILE}
    if not _is_deberta(fields):
        from transformers import AutoConfig, AutoModel

        if kind not in CONFIG_MAPPING_NAMES:
            raise OracleError(f"{folder}: the backbone is a {kind!r}, which transformers does not know")
        with load_errors(f"{folder}: not a configuration of {kind}", OracleError):
            # not on the meta device: buffers that are computed here are not among the weights
            return AutoModel.from_config(AutoConfig.for_model(kind, **own))
    with load_errors(f"{folder}: not a configuration of DeBERTa-v2", OracleError), torch.device("meta"):
        return deberta.DebertaV2Model(deberta.DebertaV2Config(**own))


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = _weight_files(folder)
    for path, names in files.items():
        with load_errors(f"{path}: cannot be read as safetensors", OracleError):
            weights = load_file(path)
        if names is not None and names != weights.keys():
            wrong = sorted(names ^ weights.keys())
            raise OracleError(f"{path}: does not hold what {INDEX} says: {', '.join(wrong[:4])}")
        for name, value in weights.items():
            if not name.endswith(
                ".embeddings.position_ids"
            ):  # counts from 0, and only old checkpoints hold it
                yield name, value


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights, with the names of the weights that each must hold; None if it may hold any."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if (folder / INDEX).is_file():
        files: dict[Path, set[str]] = {}
        with load_errors(f"{folder} cannot be read", OracleError):
            for name, file in weight_map(folder / INDEX).items():
                files.setdefault(_existing(folder / file), set()).add(name)
        return dict(files)
    if any(folder.glob(PICKLED_SHARDS)):
        raise OracleError(
            f"{folder}: has {PICKLED_WEIGHTS} but no {WEIGHTS}; a pickled file can run code and is not read."
            f" Convert it once, reading weights only: sppo oracle convert {folder}"
        )
    return {_existing(folder / WEIGHTS): None}


def _check_weights(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{name} has the shape {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "not of a PairRM": [name for name in found if name not in expected],
        "of a wrong shape": shapes,
    }
    lines = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
        for what, names in problems.items()
        if names
    ]
    if lines:
        described = "not the weights that config.json describes"
        raise OracleError(f"{folder}: {described}; {'; '.join(lines)}")
