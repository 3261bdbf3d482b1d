"""The guard: it says when an iteration has failed, and what follows.

An iteration fails if its policy loses to its predecessor, if its responses have collapsed, or if too few of its prompts
could be trained on. Warnings, which stop no run, say that an iteration may have learnt next to nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.progress import Terminal, counted_text
from sppo.recipe import Guard
from sppo.rundir import storage
from sppo.rundir.reader import label


class GuardStop(RuntimeError):
    """The guard has stopped the run; everything computed so far is kept."""


def measured(
    evaluated: Mapping[str, Any],
    selected: Mapping[str, Any],
    prompts: Mapping[str, Any],
    annotated: Mapping[str, Any],
    counted: Mapping[str, Any],
) -> dict[str, Any]:
    """The measures that :func:`alarms`, :func:`warnings` and :func:`sppo.rundir.trends.trends` look at.

    Args:
        evaluated: the record of the evaluate stage.
        selected: the record of the select stage; empty, or without what an older version did not record.
        prompts: the record of the iteration's prompts.
        annotated: the record of the annotate stage; empty if there is none.
        counted: what the oracle counted while it annotated.
    """
    measures = dict(evaluated)
    if "trained_prompts" in selected and "prompts" in prompts:
        trained = {name: selected[name] for name in ("trained_prompts", "trained_responses")}
        causes = {"untrained": selected["untrained"]} if "untrained" in selected else {}
        measures["trained"] = {"prompts": prompts["prompts"], **trained, **causes}
    if "sampler_deviation" in selected:
        measures["sampler_deviation"] = selected["sampler_deviation"]
    if "disagreement" in annotated:
        measures["disagreement"] = annotated["disagreement"]
    order = {name: counted[name] for name in ("pairs_in_both_orders", "order_flips") if name in counted}
    if len(order) == 2:
        measures["order"] = order
    return measures


def alarms(measures: Mapping[str, Any], base: Mapping[str, Any], guard: Guard) -> list[str]:
    """The reasons for which an iteration has failed, in words; an empty list if it has not.

    Args:
        measures: from :func:`measured`, of the new policy: `win_rate_vs_previous` with `low` and `high` (if there is an
            oracle), `response_tokens`, `repetition`, `truncated_share` and `kl_to_base` on the held-out prompts; `trained`
            as :func:`untrained` takes it, `sampler_deviation` as :func:`deviation` does, and `tasks` as :func:`fallen`
            does, where they are known.
        base: `response_tokens`, `repetition` and `truncated_share` of the base policy.
        guard: the limits.
    """
    reasons = []
    against_previous = measures.get("win_rate_vs_previous")
    if against_previous is not None and standing(against_previous) == WORSE:
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
    truncated = measures["truncated_share"]
    if truncated - base["truncated_share"] > guard.max_truncated_rise:
        reasons.append(
            f"it does not end: {truncated:.0%} of its responses are truncated at the limit, the base's"
            f" {base['truncated_share']:.0%}; a rise of {guard.max_truncated_rise:.0%} is allowed"
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
    missing = untrained(measures.get("trained", {}), guard.min_trained_share)
    if missing is not None:
        reasons.append(
            f"{missing}; at least {guard.min_trained_share:.0%} is demanded (guard.min_trained_share)"
        )
    if (deviates := deviation(measures.get("sampler_deviation"), guard.max_sampler_deviation)) is not None:
        reasons.append(deviates)
    return [*reasons, *fallen(measures.get("tasks", {}), guard.max_task_fall)]


BETTER, WORSE, UNDECIDED = "better than", "worse than", "not measurably different from"


def standing(win_rate: Mapping[str, float]) -> str:
    """The standing of a policy against another in words, as far as the interval of its win rate can tell."""
    if win_rate["low"] > 0.5:
        return BETTER
    return WORSE if win_rate["high"] < 0.5 else UNDECIDED


def said_once(sentences: Iterable[tuple[int, str]]) -> list[str]:
    """Each sentence once, behind the iterations that it is about, such as `iterations 1 and 3: ...`."""
    numbers: dict[str, list[int]] = {}
    for number, sentence in sentences:
        numbers.setdefault(sentence, []).append(number)
    return [f"{_iterations(about)}: {sentence}" for sentence, about in numbers.items()]


def _iterations(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"iterations {', '.join(first)} and {last}" if first else label(numbers[0])


LOUD_SHARE = 0.9
"""A warning is given if a smaller share of the prompts is trained on."""
FEW_STEPS = 2
"""A warning is given if an iteration takes no more optimiser steps than these."""
SMALL_KL = 0.01
"""A change of the KL to the base below this, in nats per response, is taken for none."""


_CAUSES = {
    "truncated": "all responses to {} were truncated at the length limit",
    "left_out": "the oracle has left out all responses to {}",
    "truncated_or_left_out": "each response to {} was truncated or left out by the oracle",
    "demonstration": "the demonstration of {} is longer than training.max_tokens",
}
"""Why a prompt is not trained on, in words."""
_NOT_TRUNCATED = (
    "Raise sampling.max_new_tokens or training.max_tokens, or set training.truncated_responses: train"
)


def untrained(trained: Mapping[str, Any], share: float) -> str | None:
    """An alarm that fewer than a share of an iteration's prompts are trained on; None if there are enough.

    Args:
        trained: `prompts`, the iteration's prompts; `trained_prompts`, those with a response to train on; and `untrained`,
            the number of the others by cause, if it is known.
        share: the smallest share that is enough.
    """
    prompts, used = trained.get("prompts", 0), trained.get("trained_prompts", 0)
    if used >= share * prompts:
        return None
    causes = trained.get("untrained")
    return f"it is trained on {used} of {prompts} prompts ({used / prompts:.0%}): {why_untrained(causes)}"


def why_untrained(causes: Mapping[str, int] | None) -> str:
    """Say why prompts are not trained on, and the way out; `causes` has a number of prompts for each cause."""
    if causes is None:  # of an earlier version, which did not count them
        return f"all responses to the others were truncated at the length limit or left out by the oracle. {_NOT_TRUNCATED}"
    said = ", and ".join(
        _CAUSES[cause].format(counted_text(number, "prompt")) for cause, number in sorted(causes.items())
    )
    remedies = [_NOT_TRUNCATED] if set(causes) - {"left_out"} else []
    if set(causes) & {"left_out", "truncated_or_left_out"}:
        remedies.append("What the oracle counted in metrics.jsonl says why it leaves pairs out")
    return f"{said}. {'. '.join(remedies)}"


def deviation(measured: Mapping[str, float] | None, limit: float) -> str | None:
    """An alarm that responses were sampled from another distribution than the one that is trained; None if not.

    Args:
        measured: as :func:`sppo.training.opponent.deviation` measures it.
        limit: the largest mean deviation that is allowed, in nats per token.
    """
    if measured is None or measured["mean_per_token"] <= limit:
        return None
    return (
        "its responses were not sampled from the policy that is trained: the sampler's log-probabilities deviate from the"
        f" trainer's by {measured['mean_per_token']:.3f} nats per token in the mean of {measured['responses']} responses;"
        f" {limit:g} is allowed (guard.max_sampler_deviation). The engine computes this model in another way"
        " (sampling.engine), rounds it more coarsely (sampling.dtype), or serves another policy (sampling.endpoint)"
    )


def fallen(tasks: Mapping[str, Mapping[str, Any]], limit: float) -> list[str]:
    """Alarms for the watched tasks whose score has fallen below the base's by more than a limit, beyond its interval.

    Args:
        tasks: for each task `mean`, the policy's score in [0, 1], `items`, and under `change` the mean of the differences
            from the base's score of the same items with its interval, `low` and `high`.
        limit: the fall that is allowed.
    """
    return [
        f"it has lost what it knew: on {name} its score is {score['mean']:.3f}, which is"
        f" {score['change']['mean']:+.3f} [{score['change']['low']:+.3f}, {score['change']['high']:+.3f}] from the base's on"
        f" the same {score['items']} items; a fall of {limit:g} is allowed (guard.max_task_fall)"
        for name, score in tasks.items()
        if score["change"]["high"] < -limit
    ]


def few_steps(steps: int) -> str | None:
    """A warning that an iteration takes hardly any optimiser steps; None if it takes enough."""
    if steps > FEW_STEPS:
        return None
    return (
        f"only {counted_text(steps, 'optimiser step')}; lower training.batch_prompts, raise training.epochs, or give"
        " more prompts"
    )


def warnings(measures: Mapping[str, Any], previous: Mapping[str, Any], steps: int) -> list[str]:
    """Warnings about an iteration that has not failed: it may have learnt next to nothing.

    Args:
        measures: of the new policy, as :func:`alarms` takes them.
        previous: of the policy before it; without `kl_to_base` for the base policy.
        steps: the optimiser steps that were taken.
    """
    reasons = [untrained(measures.get("trained", {}), LOUD_SHARE), few_steps(steps)]
    moved = abs(measures["kl_to_base"] - previous.get("kl_to_base", 0.0))
    rate: Any = measures.get("win_rate_vs_previous")
    undecided = rate is not None and standing(rate) == UNDECIDED
    if moved < SMALL_KL and (rate is None or undecided):
        reasons.append(
            f"its policy has hardly changed: the KL to the base has moved by {moved:.4f} nats per response; raise"
            " training.learning_rate, training.epochs or algorithm.eta"
        )
    elif undecided:
        reasons.append(
            f"{UNDECIDED} the policy before: the interval of the win rate against it contains 1/2; more held-out prompts"
            " narrow the interval"
        )
    return [reason for reason in reasons if reason is not None]


def enforce(guard: Guard, alarms: Sequence[str], iteration: int, run: Path, terminal: Terminal) -> None:
    """Say loudly that an iteration has failed, if it has, and do what the recipe says.

    Args:
        guard: the recipe's section.
        alarms: the reasons for which the iteration has failed, from :func:`alarms`.
        iteration: the number of the iteration.
        run: the run's folder, for the message.
        terminal: where the message is shown.

    Raises:
        GuardStop: the iteration has failed and `guard.on_failure` is stop.
    """
    if not alarms:
        return
    terminal.warn(f"\nWARNING: iteration {iteration} has failed:", "bold red")
    for reason in alarms:
        terminal.warn(f"  - {reason}", "red")
    if guard.on_failure == "stop":
        raise GuardStop(
            f"stopped after iteration {iteration}: {'; '.join(alarms)}. Everything is kept in {storage.shown(run)}."
            " Lower training.learning_rate or algorithm.eta and start again in another folder (--run-dir), or go on"
            " from here with --set guard.on_failure=keep or fall_back"
        )
    kept = "it is kept" if guard.on_failure == "keep" else "the run falls back to the previous policy"
    terminal.warn(f"  guard.on_failure is {guard.on_failure}: {kept}\n", "red")
