"""Trains a PairRM on judged pairs, and measures it on held-out prompts."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppo.oracle import Oracle, OracleError
from sppo.progress import Terminal, counted_text
from sppo.reading import read_mapping
from sppo.recipe.oracle_training import OracleTraining

if TYPE_CHECKING:
    from sppo.oracle.training.pairs import JudgedPair

RESULT = "train_oracle.json"
_EVALUATED_AT_ONCE = 64


def train(settings: OracleTraining, output: Path, terminal: Terminal) -> dict[str, Any]:
    """Train a PairRM and measure it; the same call again continues, or reads what is finished.

    Args:
        settings: the pairs, the encoder and the training.
        output: the folder of the finished PairRM, in the layout of `llm-blender/PairRM-hf`. Until it is finished,
            everything lies in a hidden folder beside it.
        terminal: where progress is shown.

    Raises:
        OracleError: the pairs or the encoder cannot be used, or `output` holds something else.

    Returns:
        The content of train_oracle.json: `data`, the measures `held_out` and `length_only`, and `settings`.
    """
    from sppo.oracle.training import pairs as judged

    if settings.cpu_threads is not None:
        import torch

        torch.set_num_threads(settings.cpu_threads)
    pairs = judged.read(settings.pairs)
    fingerprint = _fingerprint(settings, pairs)
    if output.exists():
        return _finished(output, fingerprint)
    described = judged.describe(pairs)
    terminal.say(
        f"{counted_text(int(described['pairs']), 'pair')} of {counted_text(int(described['prompts']), 'prompt')},"
        f" {described['ties']:,} of them ties"
    )
    for warning in judged.warnings(described):
        terminal.say(f"note: {warning}", "yellow")
    train_pairs, held_out = judged.split(pairs, settings.pairs.held_out, settings.seed)
    work = _work_folder(output, fingerprint)
    saved = _fit(settings, train_pairs, work, terminal)
    if saved is None:
        return {}  # another process saves
    measured = _measure(saved, train_pairs, held_out, terminal)
    result = {
        "fingerprint": fingerprint,
        "data": {**described, "training_pairs": len(train_pairs), "held_out_pairs": len(held_out)},
        **measured,
        "settings": settings.model_dump(mode="json"),
    }
    (saved / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(saved, output)
    shutil.rmtree(work)
    return result


def _fit(
    settings: OracleTraining, pairs: Sequence["JudgedPair"], work: Path, terminal: Terminal
) -> Path | None:
    from sppo.oracle.training import fit, network
    from sppo.policy import load as policy

    with policy.quiet():
        model, inputs, folder = network.create(settings, pairs, work)
        count = sum(weight.numel() for weight in model.parameters())
        terminal.say(f"{folder.config['architectures'][0]}, {count / 1e6:.2f}M parameters")
        with terminal.bar("train", fit.steps(settings, len(pairs)), "steps") as advance:
            if not fit.fit(model, inputs, pairs, settings, work, advance):
                return None
    network.save(model, folder, work / "model")
    return work / "model"


def _measure(
    folder: Path, train_pairs: Sequence["JudgedPair"], held_out: Sequence["JudgedPair"], terminal: Terminal
) -> dict[str, Any]:
    from sppo.oracle.pairrm import PairRM
    from sppo.oracle.training.measures import LengthBaseline, measures

    oracle = PairRM.from_pretrained(folder, probability="calibrated")
    target = np.array([pair.probability for pair in held_out])
    groups = [pair.group for pair in held_out] if any(pair.group for pair in held_out) else []
    predicted = predict(oracle, held_out, terminal)
    baseline = LengthBaseline(_lengths(train_pairs), np.array([pair.probability for pair in train_pairs]))
    return {
        "held_out": measures(predicted, target, groups),
        "length_only": {
            **measures(baseline.predict(_lengths(held_out)), target, groups),
            "weights": baseline.weights.tolist(),
        },
        "truncation": vars(oracle.truncation),
    }


def predict(oracle: Oracle, pairs: Sequence["JudgedPair"], terminal: Terminal) -> Any:
    """An oracle's P(a is preferred) for each pair, [pairs]."""
    found = []
    with terminal.bar("evaluate", len(pairs), "pairs") as advance:
        for start in range(0, len(pairs), _EVALUATED_AT_ONCE):
            part = pairs[start : start + _EVALUATED_AT_ONCE]
            texts = [[pair.response_a, pair.response_b] for pair in part]
            found.append(oracle.compare([pair.prompt for pair in part], texts)[:, 0, 1])
            advance(len(part))
    return np.concatenate(found)


def show(result: Mapping[str, Any], terminal: Terminal) -> None:
    """Show the measures of the trained PairRM beside those of the length-only baseline."""
    columns = {"PairRM": result["held_out"], "length only": result["length_only"]}
    pairs = result["held_out"]["pairs"]
    terminal.show(f"\n{f'on {pairs:,} pairs of held-out prompts':44}" + "".join(f"{n:>14}" for n in columns))
    rows = {
        "accuracy": "accuracy",
        "AUC, each pair from both sides": "auc",
        "AUC as given": "auc_as_given",
        "log loss, nats": "log_loss",
        "calibration error": "calibration_error",
    }
    for title, name in rows.items():
        terminal.show(f"{title:44}" + "".join(f"{of[name]:14.4f}" for of in columns.values()))
    if "within_groups" in result["held_out"]:
        within = {title: of["within_groups"] for title, of in columns.items()}
        count = within["PairRM"]["groups"]
        for title, name in {
            "accuracy": "accuracy",
            "balanced accuracy": "balanced_accuracy",
            "AUC": "auc",
        }.items():
            terminal.show(
                f"{f'{title}, mean within {count} groups':44}"
                + "".join(f"{of[name]:14.4f}" for of in within.values())
            )
    terminal.show("\nprobability   pairs   predicted   preferred")
    for row in result["held_out"]["calibration"]:
        terminal.show(
            f"{row['from']:.1f} to {row['to']:.1f}  {row['pairs']:6,}      {row['predicted']:.3f}       {row['target']:.3f}"
        )


def _lengths(pairs: Sequence["JudgedPair"]) -> Any:
    return np.array([[len(pair.response_a), len(pair.response_b)] for pair in pairs], dtype=np.float64)


def _fingerprint(settings: OracleTraining, pairs: Sequence["JudgedPair"]) -> str:
    """The digest of the settings and of the pairs as they were read."""
    kept = settings.model_dump(mode="json", exclude={"cpu_threads": True, "report_to": True})
    for name in ("source", "config"):
        del kept["pairs"][name]  # the pairs themselves count, not where they lie
    for name in ("checkpoint_steps", "logging_steps"):
        del kept["training"][name]
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for pair in pairs:
        digest.update(json.dumps(list(vars(pair).values())).encode())
    return digest.hexdigest()


def _finished(output: Path, fingerprint: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_mapping(output / RESULT)
    except (OSError, ValueError):
        raise OracleError(f"{output}: exists and is no PairRM of this command; choose another") from None
    if found.get("fingerprint") != fingerprint:
        raise OracleError(f"{output}: holds a PairRM trained from other pairs or settings; choose another")
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
