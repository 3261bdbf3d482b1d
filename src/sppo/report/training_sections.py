"""The sections about training: log-ratios and log-probabilities step by step, and what the stages cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sppo.report import charts
from sppo.report.charts import Chart, Line, Table
from sppo.report.run_figures import Iteration, RunFigures
from sppo.report.sections import Section, number, signed

Step = tuple[int, Mapping[str, Any]]
EDGE = 0.1
"""The share of an iteration's steps, at either end, that captions average over, because single steps are noisy."""

UNMOVED = 0.05
"""A mean log-ratio below this, in nats, is within what the noise of a few responses makes."""


class _Curves(NamedTuple):
    """A chart of metrics of training.

    Attributes:
        id: the end of the chart's id.
        title: the chart's title.
        names: the label of each metric.
        unit: the label of the vertical axis.
        meaning: how to read the chart.
    """

    id: str
    title: str
    names: Mapping[str, str]
    unit: str
    meaning: str


_LOG_RATIOS = {
    "log_ratio_winners": "winners",
    "target_winners": "target of winners",
    "log_ratio_losers": "losers",
    "target_losers": "target of losers",
}
_LOG_PROBS = {"log_prob_winners": "winners' mean", "log_prob_losers": "losers' mean"}
_CHARTS = (
    _Curves(
        "log-ratios",
        "Log-ratios and their targets",
        _LOG_RATIOS,
        "nats",
        "The wider the gap to the target, the further training would still move the policy.",
    ),
    _Curves(
        "log-probs",
        "Log-probability of winners and losers",
        _LOG_PROBS,
        "nats",
        "Where both fall, the policy moves probability to responses that were not sampled.",
    ),
    _Curves(
        "training-kl",
        "KL to the opponent in training",
        {"kl": "the KL"},
        "nats per response",
        "It is 0 at the start of each iteration and grows with the distance from the opponent.",
    ),
    _Curves(
        "loss",
        "Loss",
        {"loss": "the loss"},
        "",
        "Each iteration has its own targets, so only steps of the same iteration can be compared.",
    ),
)


def training(run: RunFigures, prefix: str) -> Section | None:
    """Log-ratios and log-probabilities of winners and losers through training, with their targets."""
    steps: list[Step] = []
    ends = []  # the steps count on from iteration to iteration
    for iteration in run.started:
        start = steps[-1][0] if steps else 0
        steps += [(start + int(line["step"]), line) for line in iteration.steps]
        ends += [steps[-1][0]] if iteration.steps else []
    if not steps:
        return None
    last = next(iteration.steps for iteration in reversed(run.started) if iteration.steps)
    drawn = [_curves(curves, steps, last, [end + 0.5 for end in ends[:-1]], prefix) for curves in _CHARTS]
    lead = (
        "A log-ratio says how much more probable the policy in training makes a response than its opponent does; it is"
        " 0 at the first step of each iteration, and the loss draws it towards its target. Winners and losers are the"
        " best and the worst of a prompt's responses. Vertical lines separate iterations."
    )
    return Section(f"{prefix}-training", "Training", lead, [chart for chart in drawn if chart is not None])


def _curves(
    chart: _Curves,
    steps: Sequence[Step],
    last: Sequence[Mapping[str, Any]],
    breaks: Sequence[float],
    prefix: str,
) -> Chart | None:
    lines = []
    for name, label in chart.names.items():
        points = [(x, float(line[name])) for x, line in steps if name in line]
        if points:
            lines.append(Line(label, *charts.thinned(*zip(*points, strict=True))))
    if not lines:
        return None
    thin = " Steps are averaged in bins." if len(steps) > charts.MAX_CURVE_POINTS else ""
    caption = f"{_last_iteration(chart, last)} {chart.meaning} Steps logged: {len(steps)}.{thin}"
    return charts.lines(
        f"{prefix}-{chart.id}",
        chart.title,
        caption,
        lines,
        x="step",
        y=chart.unit,
        breaks=breaks,
        is_curve=True,
    )


def _last_iteration(chart: _Curves, last: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the first and the last steps of the last iteration."""
    count = max(1, round(EDGE * len(last)))
    ends = {}
    for name in chart.names:
        values = [step[name] for step in last if name in step]
        if values:
            ends[name] = (float(np.mean(values[:count])), float(np.mean(values[-count:])))
    if chart.names is _LOG_RATIOS and len(ends) == len(_LOG_RATIOS):
        (_, winners), (_, winner_target), (_, losers), (_, loser_target) = ends.values()
        return (
            f"At the end of training, winners stand at {signed(winners)} nats, where the target is"
            f" {signed(winner_target)}, and losers at {signed(losers)}, where it is {signed(loser_target)}:"
            f" {_way(winners, losers)}"
        )
    moves = [f"{chart.names[name]} goes from {first:.2f} to {end:.2f}" for name, (first, end) in ends.items()]
    return f"In the last iteration, {' and '.join(moves)} {chart.unit}".rstrip() + "." if moves else ""


def _way(winners: float, losers: float) -> str:
    """Where winners and losers have gone, in words."""
    if max(abs(winners), abs(losers)) < UNMOVED:
        return "neither has moved to speak of, so this iteration has taught the policy next to nothing."
    if winners < 0 and losers < 0:
        return "both have become less probable, and the policy writes something else instead."
    if winners > 0 and losers > 0:
        return "both have become more probable, losers too."
    if winners < 0 < losers:
        return "both have moved the wrong way."
    if winners >= -losers:
        return "winners are raised at least as far as losers are pushed down."
    return "losers are pushed down further than winners are raised."


def cost(run: RunFigures, prefix: str) -> Section | None:
    """The seconds, tokens and memory of each stage."""
    timed = [iteration for iteration in run.iterations if any(iteration.seconds.values())]
    if not timed:
        return None
    by_stage = {stage: [iteration.seconds.get(stage, 0) for iteration in timed] for stage in timed[0].seconds}
    total = sum(map(sum, by_stage.values()))
    longest = max(by_stage, key=lambda stage: sum(by_stage[stage]))
    caption = (
        f"The run took {duration(total)} in all, resumed work included. The longest stage is {longest}, with"
        f" {sum(by_stage[longest]) / total:.0%} of the time."
    )
    names = [iteration.label for iteration in timed]
    seconds = charts.bars(
        f"{prefix}-seconds",
        "Seconds by stage",
        caption,
        names,
        list(by_stage.items()),
        row="policy",
        x="seconds",
    )
    heads = (
        "iteration",
        "responses",
        "tokens sampled",
        "tokens sampled per second",
        "responses trained on",
        "tokens trained per second",
        "peak memory in GB",
    )
    table = Table(heads, [_throughput(iteration) for iteration in run.started])
    lead = "Memory is that of the largest training process: allocated on a GPU, or resident on a CPU."
    return Section(f"{prefix}-cost", "What it cost", lead, [seconds], [("Tokens and memory", table)])


def _throughput(iteration: Iteration) -> list[str]:
    sampled = iteration.records.get("sample", {})
    responses, mean_tokens = sampled.get("responses_drawn"), sampled.get("response_tokens")
    tokens = None if responses is None or mean_tokens is None else responses * mean_tokens
    seconds = iteration.seconds.get("sample", 0)
    rates, memory = (
        [step[name] for step in iteration.steps if name in step]
        for name in ("response_tokens_per_second", "peak_memory_gb")
    )
    return [
        str(iteration.number),
        number(responses, 0),
        number(tokens, 0),
        number(tokens / seconds if tokens and seconds else None, 0),
        number(iteration.records.get("select", {}).get("trained_responses"), 0),
        number(float(np.mean(rates)) if rates else None, 0),
        number(max(memory, default=None), 2),
    ]


def duration(seconds: float) -> str:
    """A time in the two largest of its units, such as `2 h 5 min` or `41 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
