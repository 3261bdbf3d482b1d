"""Trains an oracle on judged pairs, a PairRM or a head on a frozen backbone, and measures it on held-out prompts."""

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
from sppo.recipe.oracle_training import Head, OracleTraining

if TYPE_CHECKING:
    from sppo.oracle.training.pairs import JudgedPair

RESULT = "train_oracle.json"
_EVALUATED_AT_ONCE = 64


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
    if settings.head is not None:
        saved, measured = _train_head(settings.head, settings.seed, train_pairs, held_out, work, terminal)
    else:
        network = _fit(settings, train_pairs, work, terminal)
        if network is None:
            return {}  # another process saves
        saved, measured = network, _measure(network, train_pairs, held_out, terminal)
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

    oracle = PairRM.from_pretrained(folder, probability="calibrated")
    predicted = predict(oracle, held_out, terminal)
    return _beside_length(predicted, train_pairs, held_out) | {"truncation": vars(oracle.truncation)}


def _beside_length(
    predicted: Any, train_pairs: Sequence["JudgedPair"], held_out: Sequence["JudgedPair"]
) -> dict[str, Any]:
    """The measures of predictions of held-out pairs by each judgment of them, beside those of the lengths alone."""
    from sppo.oracle.training.measures import LengthBaseline, cycles_within_prompts, measures
    from sppo.oracle.training.pairs import unfolded

    number, target = unfolded(held_out)
    groups = [held_out[n].group for n in number] if any(pair.group for pair in held_out) else []
    baseline = LengthBaseline(
        _lengths(train_pairs),
        np.array([pair.probability for pair in train_pairs]),
        np.array([pair.judgments for pair in train_pairs], dtype=np.float64),
    )
    return {
        "held_out": measures(predicted[number], target, groups),
        "length_only": {
            **measures(baseline.predict(_lengths(held_out))[number], target, groups),
            "weights": baseline.weights.tolist(),
        },
        "cycles": cycles_within_prompts(held_out, predicted),
    }


_SAME = 1e-3
"""How far the saved oracle's P may be from the head's; batches of other lengths round differently."""


def _train_head(
    head: Head,
    seed: int,
    train_pairs: Sequence["JudgedPair"],
    held_out: Sequence["JudgedPair"],
    work: Path,
    terminal: Terminal,
) -> tuple[Path, dict[str, Any]]:
    from sppo.oracle.training import heads

    backbone = heads.load(head)
    texts = heads.Texts([*train_pairs, *held_out])
    features = texts.features(backbone, work / "features", terminal)
    trained = heads.fit(head, texts, features, train_pairs, seed)
    saved = work / "model"
    shutil.rmtree(saved, ignore_errors=True)
    backbone.save(trained.weight, saved)
    first, second = texts.of(held_out)
    predicted = trained.probability(first, second)
    few = held_out[:4]
    off = np.abs(predict(backbone.reload(saved), few, terminal) - predicted[: len(few)]).max()
    if not off <= _SAME:
        raise OracleError(
            f"{saved}: the saved oracle's probabilities are {off:.2g} from those of its training; do not use it, and report"
            f" this with the backbone {head.model}"
        )
    return saved, {
        **_beside_length(predicted, train_pairs, held_out),
        "head": {"l2": trained.l2, "cross_validation": trained.cross_validation},
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


_TITLES = {"pairrm": "PairRM", "reward_model": "reward model", "general_preference": "GPM"}


def oracle_type(result: Mapping[str, Any]) -> str:
    """The type of the oracle that a training has made, as recipes name it."""
    head = result["settings"].get("head")
    return "pairrm" if head is None else str(head["type"])


def show(result: Mapping[str, Any], terminal: Terminal) -> None:
    """Show the measures of the trained oracle beside those of the length-only baseline."""
    name = _TITLES[oracle_type(result)]
    columns = {name: result["held_out"], "length only": result["length_only"]}
    pairs = result["held_out"]["pairs"]
    terminal.show(
        f"\n{f'on {pairs:,} judgments of held-out prompts':44}" + "".join(f"{title:>14}" for title in columns)
    )
    rows = {
        "accuracy": "accuracy",
        "AUC, each pair from both sides": "auc",
        "AUC as given": "auc_as_given",
        "log loss, nats": "log_loss",
        "calibration error": "calibration_error",
    }
    for title, measure in rows.items():
        terminal.show(f"{title:44}" + "".join(f"{of[measure]:14.4f}" for of in columns.values()))
    if "within_groups" in result["held_out"]:
        within = {title: of["within_groups"] for title, of in columns.items()}
        count = within[name]["groups"]
        for title, measure in {
            "accuracy": "accuracy",
            "balanced accuracy": "balanced_accuracy",
            "AUC": "auc",
        }.items():
            terminal.show(
                f"{f'{title}, mean within {count} groups':44}"
                + "".join(f"{of[measure]:14.4f}" for of in within.values())
            )
    if result.get("cycles", {}).get("triples"):
        cycles = result["cycles"]
        terminal.show(
            f"triples of responses to a held-out prompt that go round: {cycles['cyclic']:,} of {cycles['triples']:,},"
            f" and {cycles['judged_cyclic']:,} by the judgments"
        )
    terminal.show("\nprobability   judgments   predicted   preferred")
    for row in result["held_out"]["calibration"]:
        terminal.show(
            f"{row['from']:.1f} to {row['to']:.1f}  {row['pairs']:10,}      {row['predicted']:.3f}       {row['target']:.3f}"
        )


def _lengths(pairs: Sequence["JudgedPair"]) -> Any:
    return np.array([[len(pair.response_a), len(pair.response_b)] for pair in pairs], dtype=np.float64)


def _fingerprint(settings: OracleTraining, pairs: Sequence["JudgedPair"]) -> str:
    """The digest of the settings and of the pairs as they were read."""
    kept = settings.model_dump(mode="json", exclude={"cpu_threads": True, "report_to": True})
    for name in ("source", "config", "votes_a", "votes_b", "votes_tie", "texts", "without_text"):
        del kept["pairs"][name]  # the pairs themselves count, not where they lie
    for name in ("checkpoint_steps", "logging_steps"):
        del kept["training"][name]
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
