"""Trains an oracle on judged pairs, a PairRM or a head on a frozen backbone, and measures it on held-out prompts."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sppo.oracle import OracleError
from sppo.progress import Terminal, counted_text
from sppo.reading import read_mapping
from sppo.recipe.oracle_training import OracleTraining

if TYPE_CHECKING:
    from sppo.oracle.training.pairs import JudgedPair
    from sppo.winrates import Array

RESULT = "train_oracle.json"


def train(settings: OracleTraining, output: Path, terminal: Terminal) -> dict[str, Any]:
    """Train an oracle and measure it; the same call again continues, or reads what is finished.

    Args:
        settings: the pairs, and the encoder and its training, or the head.
        output: the folder of the finished oracle: a PairRM in the layout of `llm-blender/PairRM-hf`, or what the oracles
            `reward_model` and `general_preference` load. Until it is finished, everything lies in a hidden folder beside it.
        terminal: where progress is shown.

    Raises:
        OracleError: the pairs or the encoder cannot be used, or `output` holds something else.

    Returns:
        The content of train_oracle.json: `data`, the measures `held_out` and `length_only`, and `settings`.
    """
    from sppo.oracle.training import pairs as judged
    from sppo.oracle.training.results import beside_length

    if settings.cpu_threads is not None:
        import torch

        torch.set_num_threads(settings.cpu_threads)
    pairs = judged.read(settings.pairs, lambda text: terminal.say(f"note: {text}", "yellow"))
    fingerprint = _fingerprint(settings, pairs)
    if output.exists():
        return _finished(output, fingerprint)
    described = judged.describe(pairs)
    terminal.say(
        f"{counted_text(int(described['pairs']), 'pair')} of {counted_text(int(described['prompts']), 'prompt')} with"
        f" {counted_text(int(described['judgments']), 'judgment')}, {described['ties']:,} of them ties"
    )
    judged.check(described, pairs)
    for warning in judged.warnings(described):
        terminal.say(f"note: {warning}", "yellow")
    train_pairs, held_out = judged.split(pairs, settings.pairs.held_out, settings.seed)
    if all(pair.probability == 0.5 for pair in train_pairs):
        raise OracleError(
            f"pairs.held_out: {settings.pairs.held_out}: the {len(train_pairs):,} pairs that are left for training are all ties;"
            " hold less out, or choose another seed"
        )
    work = _work_folder(output, fingerprint)
    made = _trained(_Job(settings, train_pairs, held_out, work, terminal))
    if made is None:
        return {}  # another process saves
    result = {
        "fingerprint": fingerprint,
        "data": {**described, "training_pairs": len(train_pairs), "held_out_pairs": len(held_out)},
        **beside_length(made.predicted, train_pairs, held_out),
        **made.details,
        "settings": settings.model_dump(mode="json"),
    }
    saved = made.folder
    (saved / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(saved, output)
    shutil.rmtree(work)
    return result


class _Job(NamedTuple):
    """The training of one oracle, as its parts are given it.

    Attributes:
        settings: the settings.
        train_pairs: the pairs to learn from.
        held_out: the pairs to measure on.
        work: the folder of everything unfinished.
        terminal: where progress is shown.
    """

    settings: OracleTraining
    train_pairs: Sequence["JudgedPair"]
    held_out: Sequence["JudgedPair"]
    work: Path
    terminal: Terminal


class _Made(NamedTuple):
    """A trained oracle.

    Attributes:
        folder: where it is saved, until all is finished.
        predicted: its P(a is preferred) of each held-out pair.
        details: what else the result says.
    """

    folder: Path
    predicted: "Array"
    details: dict[str, Any]


def _trained(job: _Job) -> _Made | None:
    """The oracle that the settings describe; None in processes that do not save it."""
    if job.settings.head is None:
        make = _frozen_pairrm if job.settings.encoder.frozen else _pairrm
        return make(job)
    return (_frozen_head if job.settings.head.frozen else _head)(job)


def _pairrm(job: _Job) -> _Made | None:
    from sppo.oracle.training import fit, network
    from sppo.policy import load as policy

    with policy.quiet(), _adapter_errors():
        model, inputs, folder = network.create(job.settings, job.train_pairs, job.work)
        job.terminal.say(f"{folder.config['architectures'][0]}, {_size(model)}")
        with job.terminal.bar("train", fit.steps(job.settings, len(job.train_pairs)), "steps") as advance:
            if not fit.fit(model, inputs, job.train_pairs, job.settings, job.work, advance):
                return None
    network.save(model, folder, job.work / "model")
    return _measured_pairrm(job.work / "model", job.held_out, job.terminal)


def _measured_pairrm(
    folder: Path, held_out: Sequence["JudgedPair"], terminal: Terminal, dtype: Any = "float32"
) -> _Made:
    from sppo.oracle.pairrm import PairRM
    from sppo.oracle.training.results import predict

    oracle = PairRM.from_pretrained(folder, probability="calibrated", dtype=dtype)
    predicted = predict(oracle, held_out, terminal)
    return _Made(folder, predicted, {"truncation": vars(oracle.truncation)})


def _frozen_pairrm(job: _Job) -> _Made:
    from sppo.oracle.training import network, pair_heads
    from sppo.policy import load as policy

    with policy.quiet():
        model, inputs, folder = network.create(job.settings, job.train_pairs, job.work)
    pairs = [*job.train_pairs, *job.held_out]
    features = pair_heads.features(model, inputs, pairs, job.work / "features", job.terminal)
    trained = pair_heads.fit(features[: len(job.train_pairs)], job.train_pairs, job.settings.seed)
    pair_heads.place(trained, model)
    network.save(model, folder, job.work / "model")
    predicted = trained.probability(features[len(job.train_pairs) :])
    few = _measured_pairrm(
        job.work / "model", job.held_out[:_COMPARED], job.terminal, job.settings.encoder.dtype
    )
    _check_saved(few.predicted, predicted[:_COMPARED], few.folder, job.settings.encoder.dtype)
    details = {"head": {"l2": trained.l2, "cross_validation": trained.cross_validation}}
    return _Made(few.folder, predicted, {"truncation": vars(inputs.truncation), **details})


_SAME, _COMPARED = {"float32": 1e-3, "bfloat16": 0.1}, 4
"""How far the saved oracle's P may be from the head's on so many pairs; batches of other lengths round differently."""


def _frozen_head(job: _Job) -> _Made:
    from sppo.oracle.training import backbones, heads
    from sppo.oracle.training.results import predict

    assert job.settings.head is not None
    backbone = backbones.load(job.settings.head, job.settings.seed)
    texts = heads.Texts([*job.train_pairs, *job.held_out])
    features = texts.features(backbone, job.work / "features", job.terminal)
    trained = heads.fit(job.settings.head, texts, features, job.train_pairs, job.settings.seed)
    saved = job.work / "model"
    shutil.rmtree(saved, ignore_errors=True)
    backbone.save(trained.weight, saved)
    predicted = trained.probability(*texts.of(job.held_out))
    few = predict(backbone.reload(saved), job.held_out[:_COMPARED], job.terminal)
    _check_saved(few, predicted[:_COMPARED], saved, job.settings.head.dtype)
    details = {"l2": trained.l2, "cross_validation": trained.cross_validation}
    return _Made(saved, predicted, {"head": details})


def _check_saved(saved: "Array", trained: "Array", folder: Path, dtype: str) -> None:
    off = np.abs(saved - trained).max()
    if not off <= _SAME[dtype]:
        raise OracleError(
            f"{folder}: the saved oracle's probabilities are {off:.2g} from those of its training; do not use it, and report"
            " this with the backbone's name"
        )


def _head(job: _Job) -> _Made | None:
    from sppo.oracle.training import backbones, exchanges, fit
    from sppo.oracle.training.results import predict
    from sppo.policy import load as policy

    assert job.settings.head is not None
    backbone = backbones.load(job.settings.head, job.settings.seed)
    with policy.quiet(), _adapter_errors():
        network = exchanges.ExchangeNetwork(backbone, job.settings.training.adapter, job.settings.seed)
        job.terminal.say(f"{type(backbone.model).__name__}, {_size(network)}")
        inputs = exchanges.ExchangeInputs(backbone)
        with job.terminal.bar("train", fit.steps(job.settings, len(job.train_pairs)), "steps") as advance:
            if not fit.fit(network, inputs, job.train_pairs, job.settings, job.work, advance):
                return None
        saved = job.work / "model"
        shutil.rmtree(saved, ignore_errors=True)
        backbone.save(network.finish(), saved)
    return _Made(saved, predict(backbone.reload(saved), job.held_out, job.terminal), {})


@contextlib.contextmanager
def _adapter_errors() -> Iterator[None]:
    from sppo.policy.adapter import AdapterError

    try:
        yield
    except AdapterError as error:
        raise OracleError(f"training.adapter: {error}") from error


def _size(model: Any) -> str:
    """How many weights a network has, and how many of them are trained."""
    count = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    part = "" if trained == count else f", of which {trained / 1e6:.2f}M are trained"
    return f"{count / 1e6:.2f}M parameters{part}"


_NEWER = (
    ("encoder", "frozen", False),
    ("encoder", "dtype", "float32"),
    ("head", "frozen", True),
    ("head", "dtype", "float32"),
    ("training", "adapter", None),
)
"""Settings that an earlier version's trainings do not have, which had these values."""


def _fingerprint(settings: OracleTraining, pairs: Sequence["JudgedPair"]) -> str:
    """The digest of the settings and of the pairs as they were read."""
    kept = settings.model_dump(mode="json", exclude={"cpu_threads": True, "report_to": True})
    for name in ("source", "config", "votes_a", "votes_b", "votes_tie", "texts", "without_text"):
        del kept["pairs"][name]  # the pairs themselves count, not where they lie
    for name in ("checkpoint_steps", "logging_steps", "device_pairs"):
        del kept["training"][name]
    for section, name, default in _NEWER:
        if kept[section] is not None and kept[section][name] == default:
            del kept[section][name]
    if settings.head is None:
        del kept["head"]  # an earlier version's settings had no such key
    else:
        from sppo.policy import load as policy

        folder = Path(settings.head.model)
        kept["backbone"] = policy.digest(folder) if folder.is_dir() else None
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for pair in pairs:
        known = [
            value for value in vars(pair).values() if value is not None
        ]  # votes, where they were counted
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()


def _finished(output: Path, fingerprint: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_mapping(output / RESULT)
    except (OSError, ValueError):
        raise OracleError(f"{output}: exists and is no oracle of this command; choose another") from None
    if found.get("fingerprint") != fingerprint:
        raise OracleError(f"{output}: holds an oracle trained from other pairs or settings; choose another")
    return found


def _work_folder(output: Path, fingerprint: str) -> Path:
    work = output.with_name(f".{output.name}.training")
    mark = work / "fingerprint"
    if work.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint):
        raise OracleError(
            f"{work}: holds a training begun with other pairs or settings; remove it, or choose another output"
        )
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint, encoding="utf-8")
    return work
