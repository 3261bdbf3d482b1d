"""The measures of a trained oracle beside those of the lengths alone, and their tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sppo.oracle import Oracle
from sppo.oracle.training.measures import LengthBaseline, cycles_within_prompts, measures
from sppo.oracle.training.pairs import JudgedPair, unfolded
from sppo.progress import Terminal
from sppo.winrates import Array

_EVALUATED_AT_ONCE = 64
_TITLES = {"pairrm": "PairRM", "reward_model": "reward model", "general_preference": "GPM"}


def predict(oracle: Oracle, pairs: Sequence[JudgedPair], terminal: Terminal) -> Array:
    """An oracle's P(a is preferred) for each pair, [pairs]."""
    found = []
    with terminal.bar("evaluate", len(pairs), "pairs") as advance:
        for start in range(0, len(pairs), _EVALUATED_AT_ONCE):
            part = pairs[start : start + _EVALUATED_AT_ONCE]
            texts = [[pair.response_a, pair.response_b] for pair in part]
            found.append(oracle.compare([pair.prompt for pair in part], texts)[:, 0, 1])
            advance(len(part))
    return np.concatenate(found)


def beside_length(
    predicted: Array, train_pairs: Sequence[JudgedPair], held_out: Sequence[JudgedPair]
) -> dict[str, Any]:
    """The measures of predictions of held-out pairs by each judgment of them, beside those of the lengths alone."""
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


def _lengths(pairs: Sequence[JudgedPair]) -> Any:
    return np.array([[len(pair.response_a), len(pair.response_b)] for pair in pairs], dtype=np.float64)


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
