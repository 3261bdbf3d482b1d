"""The guard: it says when an iteration has failed, and what follows from it.

An iteration fails where its policy loses to its predecessor, or where its responses have collapsed.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sppo.progress import Terminal
from sppo.recipe import Guard
from sppo.rundir import storage


class GuardStop(RuntimeError):
    """The guard has stopped the run; everything computed so far is kept."""


def alarms(measures: Mapping[str, Any], base: Mapping[str, Any], guard: Guard) -> list[str]:
    """What is wrong with an iteration's policy, in words; empty where it may stand.

    Args:
        measures: `win_rate_vs_previous` with `low` and `high` (where there is an oracle), `response_tokens`, `repetition`, `truncated_share` and
            `kl_to_base` of the new policy on the held-out prompts.
        base: `response_tokens`, `repetition` and `truncated_share` of the base policy.
        guard: the limits.
    """
    reasons = []
    against_previous = measures.get("win_rate_vs_previous")
    if against_previous is not None and against_previous["high"] < 0.5:
        reasons.append(
            f"it loses to its predecessor: win rate {against_previous['mean']:.3f}"
            f" [{against_previous['low']:.3f}, {against_previous['high']:.3f}]"
        )
    ratio = measures["response_tokens"] / max(base["response_tokens"], 1e-9)
    if not guard.min_length_ratio <= ratio <= guard.max_length_ratio:
        reasons.append(
            f"its responses have {measures['response_tokens']:.1f} tokens on average, {ratio:.2f} times the base's"
            f" {base['response_tokens']:.1f}; {guard.min_length_ratio:g} to {guard.max_length_ratio:g} times is allowed"
        )
    rise = measures["repetition"] - base["repetition"]
    if rise > guard.max_repetition:
        reasons.append(
            f"it repeats itself: {measures['repetition']:.2f} of its 4-grams are repeats, the base's"
            f" {base['repetition']:.2f}; a rise of {guard.max_repetition:g} is allowed"
        )
    cut = measures["truncated_share"]
    if cut - base["truncated_share"] > guard.max_truncated_rise:
        reasons.append(
            f"it does not end: {cut:.0%} of its responses are truncated at the limit, the base's {base['truncated_share']:.0%};"
            f" a rise of {guard.max_truncated_rise:.0%} is allowed"
        )
    kl = measures["kl_to_base"]
    limits = [guard.max_kl_per_token * measures["response_tokens"]]
    limits += [] if guard.max_kl is None else [guard.max_kl]
    if not math.isfinite(kl):
        reasons.append(f"its KL to the base is {kl}")
    elif kl > min(limits):
        reasons.append(
            f"its KL to the base is {kl:.1f} nats a response; {min(limits):.1f} are allowed"
            f" (max_kl_per_token {guard.max_kl_per_token:g}, max_kl {guard.max_kl})"
        )
    return reasons


def enforce(guard: Guard, alarms: Sequence[str], iteration: int, run: Path, terminal: Terminal) -> None:
    """Say loudly that an iteration has failed, if it has, and do what the recipe says.

    Args:
        guard: the recipe's section.
        alarms: what is wrong with the iteration's policy, as :func:`alarms` says it.
        iteration: its number.
        run: the run's folder, for the message.
        terminal: where it is said.

    Raises:
        GuardStop: the iteration has failed and `guard.on_failure` is stop.
    """
    if not alarms:
        return
    terminal.say(f"\nWARNING: iteration {iteration} has failed:", "bold red")
    for reason in alarms:
        terminal.say(f"  - {reason}", "red")
    if guard.on_failure == "stop":
        raise GuardStop(
            f"stopped after iteration {iteration}: {'; '.join(alarms)}. Everything is kept in {storage.shown(run)}."
            " Lower training.learning_rate or algorithm.eta and start again in another folder (--run-dir), or go on"
            " from here with --set guard.on_failure=keep or fall_back"
        )
    kept = "it is kept" if guard.on_failure == "keep" else "the run falls back to the previous policy"
    terminal.say(f"  guard.on_failure is {guard.on_failure}: {kept}\n", "red")


GROWTH = 1.5
"""Responses that are this many times as long as the base's deserve a look, long before the guard's limit."""


def trends(measures: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> list[str]:
    """What several iterations show together, in words; a trend stops no run.

    Over-optimisation: the oracle that self-play learns from likes a policy better than the one before, and an oracle
    that it does not learn from likes it less, each beyond the other's interval.

    Args:
        measures: of each iteration's policy, in order, as :func:`alarms` takes them; `by_oracle` where there is a
            held-out oracle.
        base: of the base policy.
    """
    reasons = []
    for before, after in pairwise(measures):
        if any("by_oracle" not in of for of in (before, after)):
            continue
        if any("win_rate_vs_base" not in of for one in (before, after) for of in (one, one["by_oracle"])):
            continue
        trained = [of["by_oracle"]["win_rate_vs_base"] for of in (before, after)]
        held_out = [of["win_rate_vs_base"] for of in (before, after)]
        if trained[1]["low"] > trained[0]["mean"] and held_out[1]["high"] < held_out[0]["mean"]:
            reasons.append(
                "over-optimisation: the oracle's win rate against the base rose from"
                f" {trained[0]['mean']:.3f} to {trained[1]['mean']:.3f} while the held-out oracle's fell from"
                f" {held_out[0]['mean']:.3f} to {held_out[1]['mean']:.3f}"
            )
    lengths = [of["response_tokens"] for of in (base, *measures) if "response_tokens" in of]
    if len(lengths) > 1 and lengths[-1] > GROWTH * lengths[0] > 0:
        reasons.append(
            f"length growth: responses have {lengths[-1]:.1f} tokens on average, {lengths[-1] / lengths[0]:.2f} times"
            f" the base's {lengths[0]:.1f}; see whether they got better or only longer"
        )
    return reasons
