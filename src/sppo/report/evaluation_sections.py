"""The sections about what the evaluations measured: win rates, lengths, and the distance to the base policy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sppo.progress import printable
from sppo.report import charts
from sppo.report.charts import Chart, Line, Table
from sppo.report.run_figures import Iteration, RunFigures
from sppo.report.samples import Responses
from sppo.report.sections import (
    Section,
    interval,
    measured_line,
    measuring_oracle,
    number,
    share,
    signed,
)
from sppo.rundir import guard

_NOT_READ = {
    "unfinished_thoughts": "unfinished thoughts",
    "prompts_left_out": "prompts left out by the oracle",
    "tokens_without_text": "tokens without text",
}
"""What an evaluation counts that the oracle could not read or compare, in words."""


def win_rates(run: RunFigures, prefix: str) -> Section | None:
    """Win rates by iteration; where a held-out oracle gives them, the training oracle's beside them."""
    against_base = measured_line(run.evaluated, "win_rate_vs_base", "against the base policy")
    against_previous = measured_line(run.evaluated, "win_rate_vs_previous", "against the previous policy")
    lines = [line for line in (against_base, against_previous) if line is not None]
    if not lines:
        return None
    by = measuring_oracle(run)
    caption = f"Win rates by {by} on held-out prompts; at one half, neither policy is preferred."
    if against_previous is not None:
        caption += f" {_progress(run.evaluated[-1].measures.get('win_rate_vs_previous'))}"
    axes: dict[str, Any] = {"x": "iteration", "y": "win rate", "level": 0.5}
    figures = [charts.lines(f"{prefix}-win-rates", "Win rate by iteration", caption, lines, **axes)]
    trained_on = measured_line(run.evaluated, "win_rate_vs_base", "the oracle trained on", "by_oracle")
    if trained_on is not None and against_base is not None:
        held_out = Line(
            "the held-out oracle", *(vars(against_base)[key] for key in ("x", "y", "low", "high"))
        )
        title, caption = "The oracle trained on and the held-out oracle", _oracle_gap(trained_on, held_out)
        both = [held_out, trained_on]
        figures.append(charts.lines(f"{prefix}-second-oracle", title, caption, both, **axes))
    lead = f"A win rate says how probably a policy's response is preferred, by {by}, on prompts that are never trained on."
    return Section(f"{prefix}-wins", "Win rates", lead, figures)


def lengths(run: RunFigures, prefix: str, held_out: Mapping[int, Responses]) -> Section | None:
    """The lengths of responses by iteration, the KL to the base, and what else shows a collapse."""
    figures = [_length_chart(prefix, held_out)] if held_out else []
    kl = measured_line(run.evaluated, "kl_interval", "KL to the base") or measured_line(
        run.evaluated, "kl_to_base", "KL to the base"
    )
    if kl is not None:
        per_token = run.evaluated[-1].measures.get("response_tokens") or np.nan
        caption = (
            f"The KL divergence grows with the distance from the base policy. At iteration {kl.x[-1]:g} it is"
            f" {kl.last:.2f} nats per response, about {kl.last / per_token:.3f} nats per token."
        )
        if kl.last < 0:
            caption += (
                " The true divergence is never negative: here it is too small for so few responses to tell."
            )
        figures.append(
            charts.lines(
                f"{prefix}-kl", "KL to the base", caption, [kl], x="iteration", y="nats per response"
            )
        )
    measured = [policy for policy in run.policies if policy.measures]
    if not figures and not measured:
        return None
    columns: dict[str, Callable[[Iteration], str]] = {
        "policy": lambda policy: policy.label,
        "tokens": lambda policy: number(policy.measures.get("response_tokens"), 1),
        "truncated": lambda policy: share(policy.measures.get("truncated_share")),
        "other missing ends": lambda policy: number(policy.measures.get("missing_end_of_turn"), 0),
        "repeated 4-grams": lambda policy: share(policy.measures.get("repetition")),
        "KL to the base": lambda policy: _kl(policy) if policy.number else "-",
        **{
            words: lambda policy, name=name: number(policy.measures.get(name, 0), 0)  # type: ignore[misc]
            for name, words in _NOT_READ.items()
            if any(name in policy.measures for policy in measured)
        },
    }
    lead = "How long the responses to held-out prompts are, and how far each policy has moved from the base policy."
    tables = [("Means over all held-out responses", Table.of(measured, columns))]
    return Section(f"{prefix}-shape", "Lengths and distance", lead, figures, tables)


def tasks(run: RunFigures, prefix: str) -> Section | None:
    """The scores on the watched tasks by iteration, and how far they are from the base's."""
    names = dict.fromkeys(name for policy in run.policies for name in policy.measures.get("tasks", {}))
    lines = {name: measured_line(run.policies, name, printable(name), "tasks") for name in names}
    drawn = [line for line in lines.values() if line is not None]
    if not drawn:
        return None
    lowest = min(drawn, key=lambda line: line.last - line.y[0])
    caption = (
        f"Iteration 0 is the base policy. {lowest.name} has come off worst: its score goes from {lowest.y[0]:.3f} to"
        f" {lowest.last:.3f}."
    )
    chart = charts.lines(
        f"{prefix}-task-scores", "Scores on watched tasks", caption, drawn, x="iteration", y="score"
    )
    rows = [
        [policy.label, printable(name), number(score.get("items"), 0), interval(score), change]
        for policy in run.policies
        for name, score in policy.measures.get("tasks", {}).items()
        for change in ["-" if policy.number == 0 else interval(score.get("change"))]
    ]
    heads = ["policy", "task", "items", "score", "change from the base on the same items"]
    lead = "Tasks whose scores show whether the policy has lost what it knew while it learnt what the oracle prefers."
    return Section(f"{prefix}-tasks", "Watched tasks", lead, [chart], [("Scores", Table(heads, rows))])


def _kl(policy: Iteration) -> str:
    measures = policy.measures
    return (
        interval(measures["kl_interval"]) if "kl_interval" in measures else number(measures.get("kl_to_base"))
    )


def _progress(against_previous: Any) -> str:
    """A sentence about the last iteration's win rate against its predecessor."""
    if not isinstance(against_previous, Mapping):
        return ""
    return f"The last iteration is {guard.standing(against_previous)} its predecessor."


def _oracle_gap(trained_on: Line, held_out: Line) -> str:
    gap = trained_on.last - held_out.last
    meaning = (
        f"At iteration {trained_on.x[-1]:g} the oracle trained on gives {trained_on.last:.3f} and the held-out oracle"
        f" {held_out.last:.3f}, a difference of {signed(gap, 3)}."
    )
    return f"{meaning} Where the first rises while the second falls, the policy exploits the oracle it is trained on."


def _length_chart(prefix: str, held_out: Mapping[int, Responses]) -> Chart:
    groups = [
        ("base" if policy == 0 else str(policy), [count for counts in responses.tokens for count in counts])
        for policy, responses in held_out.items()
    ]
    first, last = (float(np.median(values)) for _, values in (groups[0], groups[-1]))
    moves = f"goes from {first:.0f} to {last:.0f} tokens"
    if round(first) == round(last):
        moves = f"is {last:.0f} tokens" if len(groups) == 1 else f"stays at {last:.0f} tokens"
    elif first:
        moves += f" ({signed(100 * (last - first) / first, 0)}%)"
    prompts = sum(len(responses.prompts) for responses in held_out.values())
    total = sum(responses.total for responses in held_out.values())
    longest = [truncated for row in list(held_out.values())[-1].truncated for truncated in row]
    if np.mean(longest) > 0.5:
        moves += ", which the length limit sets: most of the last policy's responses are truncated"
    caption = (
        f"Boxes span the middle half of the responses, whiskers the 5th to the 95th percentile. The median"
        f" {moves}. {prompts:,} of {total:,} prompts with their responses were read."
    )
    return charts.boxes(f"{prefix}-lengths", "Tokens per response", caption, groups, x="policy", y="tokens")
