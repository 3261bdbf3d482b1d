"""What the page says of one run: its figures, each with the table behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sppo import game
from sppo.progress import printable
from sppo.report import charts
from sppo.report.charts import Chart, Line, Table
from sppo.report.matrix import HeadToHead
from sppo.report.run_figures import Iteration, RunFigures
from sppo.report.samples import Compared, Responses
from sppo.rundir.reader import STAGES

GAMES = 500
"""Prompts, at most, whose games are solved for the measures of intransitivity."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: unique on the page.
        title: its head.
        lead: a paragraph.
        charts: with their tables.
        tables: with a caption each.
        matrices: of win rates, with a caption each.
        text: in the form that it has, such as a recipe.
        folded: whether the tables are long and seldom wanted.
    """

    id: str
    title: str
    lead: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, Table]] = ()
    matrices: Sequence[tuple[str, HeadToHead]] = ()
    text: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Sampled:
    """What was read of a run's tables.

    Attributes:
        compared: by iteration.
        held_out: by iteration, 0 for the base.
    """

    compared: Mapping[int, Compared] = field(default_factory=dict)
    held_out: Mapping[int, Responses] = field(default_factory=dict)


def win_rates(run: RunFigures, prefix: str) -> Section | None:
    """Win rates by iteration, and those by the oracle where a held-out judge measures."""
    names = {"win_rate_vs_base": "against the base", "win_rate_vs_previous": "against the previous"}
    found = {name: _intervals(run.evaluated, name, label) for name, label in names.items()}
    if not any(line.x for line in found.values()):
        return None
    judge = None if run.recipe is None else run.recipe.evaluation.oracle
    by = "the run's oracle" if judge is None else f"the held-out judge ({judge.type})"
    rows = [
        [
            str(one.number),
            *(_interval(one.measured.get(name)) for name in names),
            _number(one.measured.get("held_out_prompts"), 0),
        ]
        for one in run.evaluated
    ]
    figures = [
        charts.lines(
            f"{prefix}-win-rates",
            "Win rate by iteration",
            f"Win rates by {by} on held-out prompts, with intervals; one half is a draw. "
            + _in_words(found.values()),
            list(found.values()),
            Table(["iteration", *names.values(), "held-out prompts"], rows),
            x="iteration",
            y="win rate",
            level=0.5,
        )
    ]
    if any("by_oracle" in one.measured for one in run.evaluated):
        figures.append(_second_oracle(run, prefix))
    lead = f"How probably a policy's response is preferred, by {by}, on prompts that are never trained on."
    return Section(f"{prefix}-wins", "Win rates", lead, figures)


def head_to_head(run: RunFigures, prefix: str, found: Sequence[tuple[str, HeadToHead]]) -> Section | None:
    """Every policy against every other."""
    if not found:
        return None
    lead = (
        "How probably the response of the policy in the row is preferred to that of the policy in the column."
    )
    return Section(f"{prefix}-matrix", "Head to head", lead, matrices=found)


def training(run: RunFigures, prefix: str) -> Section | None:
    """Log-ratios and log-probabilities of winners and losers through training, against their targets."""
    steps, breaks = [], []
    offset = 0
    for one in run.played:
        steps += [(offset + int(line["step"]), line) for line in one.steps]
        if one.steps:
            offset += max(int(line["step"]) for line in one.steps)
            breaks.append(offset + 0.5)
    if not steps:
        return None
    last = {one.number: one.steps[-1] for one in run.played if one.steps}

    def curve(name: str, label: str) -> Line | None:
        points = [(x, float(line[name])) for x, line in steps if isinstance(line.get(name), int | float)]
        return Line(label, *charts.thinned(*zip(*points, strict=True))) if points else None

    def figure(what: str, title: str, of: Mapping[str, str], unit: str) -> Chart | None:
        drawn = [line for name, label in of.items() if (line := curve(name, label)) is not None]
        rows = [[str(number), *(_number(line.get(name)) for name in of)] for number, line in last.items()]
        if not drawn:
            return None
        thin = " Steps are averaged in bins." if len(steps) > charts.STEPS_SHOWN else ""
        words = f"{title} over {len(steps)} logged steps; vertical lines end an iteration.{thin} " + _ends(
            drawn
        )
        table = Table(["iteration (last step)", *of.values()], rows)
        return charts.lines(
            f"{prefix}-{what}", title, words, drawn, table, x="step", y=unit, breaks=breaks[:-1], marks=False
        )

    log_ratios = {
        "log_ratio_winners": "winners",
        "target_winners": "their target",
        "log_ratio_losers": "losers",
        "target_losers": "target of losers",
    }
    drawn = [
        figure("log-ratios", "Log-ratio against its target", log_ratios, "nats"),
        figure(
            "log-probs",
            "Log-probability of winners and losers",
            {"log_prob_winners": "winners", "log_prob_losers": "losers"},
            "nats",
        ),
        figure("training-kl", "KL to the opponent while training", {"kl": "KL, estimate"}, "nats a response"),
        figure("loss", "Loss", {"loss": "loss"}, "the algorithm's"),
    ]
    lead = (
        "The log-ratio is log pi_theta(y|x) - log pi_t(y|x): 0 at an iteration's first step, and drawn to"
        " eta (P^ - 1/2). Winners and losers are the best and the worst of a prompt's responses."
    )
    return Section(f"{prefix}-training", "Training", lead, [chart for chart in drawn if chart is not None])


def lengths(run: RunFigures, prefix: str, sampled: Sampled) -> Section | None:
    """Lengths of responses by iteration, KL to the base, and what else shows a collapse."""
    figures = []
    groups = [(number, of) for number, of in sampled.held_out.items()]
    if groups:
        labels = ["base" if number == 0 else str(number) for number, _ in groups]
        values = [[count for counts in of.tokens for count in counts] for _, of in groups]
        read = sum(len(of.prompts) for _, of in groups)
        rows = [
            [label, str(len(of)), *(f"{np.percentile(of, part):.0f}" for part in (5, 25, 50, 75, 95))]
            for label, of in zip(labels, values, strict=True)
        ]
        middle = ", ".join(f"{label}: {np.median(of):.0f}" for label, of in zip(labels, values, strict=True))
        figures.append(
            charts.boxes(
                f"{prefix}-lengths",
                "Tokens per response",
                f"Quartiles, and whiskers from the 5th to the 95th percentile, of {sum(map(len, values))} responses to"
                f" held-out prompts ({read} answers of policies to prompts were read). Medians: {middle}.",
                list(zip(labels, values, strict=True)),
                Table(["policy", "responses read", "5%", "25%", "median", "75%", "95%"], rows),
                y="tokens",
            )
        )
    kl = [one for one in run.evaluated if isinstance(one.measured.get("kl_to_base"), int | float)]
    if kl:
        line = Line("KL", [one.number for one in kl], [one.measured["kl_to_base"] for one in kl])
        figures.append(
            charts.lines(
                f"{prefix}-kl",
                "KL to the base",
                "KL of each policy to the base on held-out prompts, nats a response. " + _in_words([line]),
                [line],
                Table(
                    ["iteration", "nats a response"],
                    [[str(one.number), _number(one.measured["kl_to_base"])] for one in kl],
                ),
                x="iteration",
                y="nats a response",
            )
        )
    shape = [one for one in (run.base, *run.evaluated) if one.measured]
    if not figures and not shape:
        return None
    names = ("response_tokens", "truncated_share", "missing_end_of_turn", "repetition", "kl_to_base")
    heads = ["policy", "tokens", "cut at the limit", "ended otherwise", "4-grams repeated", "KL to the base"]
    rows = [
        [
            one.label,
            _number(one.measured.get("response_tokens"), 1),
            _share(one.measured.get("truncated_share")),
            _number(one.measured.get("missing_end_of_turn"), 0),
            _share(one.measured.get("repetition")),
            _number(one.measured.get("kl_to_base")) if one.number else "-",
        ]
        for one in shape
    ]
    assert len(heads) == len(names) + 1
    return Section(
        f"{prefix}-shape",
        "Lengths and distance",
        "What responses to held-out prompts are like; means over all of them in the table.",
        figures,
        [("All held-out responses", Table(heads, rows))],
    )


def oracle(run: RunFigures, prefix: str, compared: Mapping[int, Compared]) -> Section | None:
    """Whether the oracle's parts agree, and how far its preferences run in circles."""
    if not compared:
        return None
    numbers = list(compared)
    cycles = [
        (one.number, one.records["annotate"]["cyclic_triples"])
        for one in run.played
        if one.records.get("annotate", {}).get("cyclic_triples") is not None
    ]
    figures = []
    agreement = {number: of.agreement() for number, of in compared.items()}
    members = list(dict.fromkeys(name for of in agreement.values() for name in of))
    read = ", ".join(f"{len(of.matrix)} of {of.responses.total}" for of in compared.values())
    if members:
        drawn = [
            Line(printable(name), at, [agreement[number][name] for number in at])
            for name in members
            if (at := [number for number in numbers if name in agreement[number]])
        ]
        rows = [[str(n), *(_share(agreement[n].get(name)) for name in members)] for n in numbers]
        figures.append(
            charts.lines(
                f"{prefix}-agreement",
                "Agreement of the oracle's parts with the whole",
                f"Share of pairs on which a part prefers what the whole prefers. Prompts read: {read}. "
                + _in_words(drawn),
                drawn,
                Table(["iteration", *map(printable, members)], rows),
                x="iteration",
                y="share of pairs",
            )
        )
    if cycles:
        line = Line("cycles", [n for n, _ in cycles], [value for _, value in cycles])
        figures.append(
            charts.lines(
                f"{prefix}-cycles",
                "Preferences that run in circles",
                "Share of triples of responses in which each beats one and loses to one, over all prompts. "
                + _in_words([line]),
                [line],
                Table(["iteration", "cyclic triples"], [[str(n), _share(value)] for n, value in cycles]),
                x="iteration",
                y="share of triples",
            )
        )
    rows = [
        [label, *(value for _, value in of_each)]
        for label, of_each in zip(
            _MEASURES.values(),
            zip(*(_measures(number, of) for number, of in compared.items()), strict=True),
            strict=True,
        )
    ]
    table = Table(["measure", *(f"iteration {n}" for n in numbers)], rows)
    caption = f"The oracle on the run's own responses; prompts read, by iteration: {read}"
    counted = {one.number: one.counted for one in run.played if one.counted}
    kinds = list(dict.fromkeys(kind for of in counted.values() for kind in of))
    tables = [(caption, table)]
    if kinds:
        rows = [[str(n), *(_number(of.get(kind), 0) for kind in kinds)] for n, of in counted.items()]
        heads = ["iteration", *(printable(kind).replace("_", " ") for kind in kinds)]
        tables.append(("What the oracle counted while it annotated", Table(heads, rows)))
    lead = "Whether those whom the oracle is made of agree, and what a scalar reward would lose on its preferences."
    return Section(f"{prefix}-oracle", "The oracle", lead, figures, tables)


def cost(run: RunFigures, prefix: str) -> Section | None:
    """Seconds, tokens and memory of each stage."""
    spent = [one for one in run.iterations if any(one.seconds.values())]
    if not spent:
        return None
    stages = list(spent[0].seconds)
    seconds = charts.bars(
        f"{prefix}-seconds",
        "Seconds by stage",
        "Seconds of each stage of each iteration, resumed work included. In all: "
        + ", ".join(f"{stage} {sum(one.seconds.get(stage, 0) for one in spent):.0f}" for stage in stages),
        [one.label for one in spent],
        [(stage, [one.seconds.get(stage, 0) for one in spent]) for stage in stages],
        Table(
            ["iteration", *stages],
            [[one.label, *(f"{one.seconds.get(s, 0):.1f}" for s in stages)] for one in spent],
        ),
        x="seconds",
    )
    rows = []
    for one in run.played:
        sampled = one.records.get("sample", {})
        drawn, mean = sampled.get("responses_drawn"), sampled.get("response_tokens")
        tokens = None if drawn is None or mean is None else drawn * mean
        took = one.seconds.get("sample", 0)
        rates = [
            line["response_tokens_per_second"] for line in one.steps if "response_tokens_per_second" in line
        ]
        memory = [line["peak_memory_gb"] for line in one.steps if "peak_memory_gb" in line]
        selected = one.records.get("select", {})
        rows.append(
            [
                str(one.number),
                _number(drawn, 0),
                _number(tokens, 0),
                _number(tokens / took if tokens and took else None, 0),
                _number(selected.get("trained_responses"), 0),
                _number(float(np.mean(rates)) if rates else None, 0),
                _number(max(memory) if memory else None, 2),
            ]
        )
    heads = [
        "iteration",
        "responses",
        "tokens sampled",
        "sampled a second",
        "trained on",
        "trained a second",
        "peak GB",
    ]
    return Section(
        f"{prefix}-cost",
        "What it cost",
        "Memory is the largest of a training process: allocated on a GPU, or resident on a CPU.",
        [seconds],
        [("Tokens and memory", Table(heads, rows))],
    )


def recipe(run: RunFigures, prefix: str) -> Section:
    """The recipe as resolved, and the versions."""
    return Section(
        f"{prefix}-recipe", "Recipe and versions", f"Made with {run.versions}.", text=run.recipe_text
    )


def fingerprints(run: RunFigures, prefix: str) -> Section | None:
    """What every stage was computed from."""
    rows = [
        [str(one.number), stage, printable(str(one.records[stage].get("fingerprint", "not recorded")))]
        for one in run.iterations
        for stage in STAGES
        if stage in one.records
    ]
    if not rows:
        return None
    return Section(
        f"{prefix}-fingerprints",
        "Fingerprints",
        "Each covers a stage's settings and the fingerprints of what it reads.",
        tables=[("Finished stages", Table(["iteration", "stage", "fingerprint"], rows))],
        folded=True,
    )


def examples(run: RunFigures, prefix: str) -> Section | None:
    """Before and after, as the run's summary has them."""
    if not run.examples:
        return None
    rows = [[row["prompt"], row["before"], row["after"]] for row in run.examples]
    table = Table(["prompt", "before", "after"], [[_short(cell) for cell in row] for row in rows])
    return Section(f"{prefix}-examples", "Before and after", "", tables=[("First responses", table)])


def benchmarks(prefix: str, found: Sequence[tuple[str, Table]]) -> Section | None:
    """Benchmarks that policies of the run were measured on, with the published rows below."""
    if not found:
        return None
    lead = "The run's policies first, then the published rows; each says where it stands."
    return Section(f"{prefix}-benchmarks", "Benchmarks", lead, tables=found)


_MEASURES = {
    "margin": "mean |P - 1/2| of a pair",
    "ties": "pairs with |P - 1/2| below 0.05",
    "spread": "mean difference of a prompt's best and worst win rate",
    "disagreement": "pairs on which the parts disagree",
    "games": "prompts whose game was solved",
    "cyclic_triples": "cyclic triples",
    "cyclic_share": "squared log-odds that no reward explains",
    "condorcet": "prompts with a response that beats all others",
    "scalar_exploitability": "exploitability of the best response by mean win rate",
    "winner_support": "responses in the von Neumann winner",
}


def _measures(number: int, of: Compared) -> list[tuple[str, str]]:
    margins = of.margins()
    spread = np.ptp(of.win_rates, axis=1)
    apart = of.disagreement
    solved = of.matrix[:GAMES] if of.is_whole and of.matrix.shape[-1] > 1 else None
    means = {} if solved is None else game.intransitivity(solved, clip=0.01).means()
    values = {
        "margin": _number(float(margins.mean()) if len(margins) else None, 3),
        "ties": _share(float((margins < 0.05).mean()) if len(margins) else None),
        "spread": _number(float(np.nanmean(spread)) if not np.isnan(spread).all() else None, 3),
        "disagreement": _share(None if np.isnan(apart).all() else float(np.nanmean(apart))),
        "games": "none: pairs were left out" if solved is None else str(len(solved)),
    }
    for name in list(_MEASURES)[len(values) :]:
        shown = _share if name in ("cyclic_triples", "cyclic_share", "condorcet") else _number
        values[name] = shown(means.get(name))
    return list(values.items())


def _second_oracle(run: RunFigures, prefix: str) -> Chart:
    beside = [one for one in run.evaluated if "by_oracle" in one.measured]
    drawn = [
        _intervals(beside, "win_rate_vs_base", "by the held-out judge"),
        _intervals(beside, "win_rate_vs_base", "by the oracle trained on", part="by_oracle"),
    ]
    rows = [
        [
            str(one.number),
            _interval(one.measured.get("win_rate_vs_base")),
            _interval(one.measured["by_oracle"].get("win_rate_vs_base")),
        ]
        for one in beside
    ]
    return charts.lines(
        f"{prefix}-second-oracle",
        "Two oracles, against the base",
        "Where the oracle's rises and the held-out judge's falls, the oracle is over-optimised. "
        + _in_words(drawn),
        drawn,
        Table(["iteration", "held-out judge", "oracle trained on"], rows),
        x="iteration",
        y="win rate",
        level=0.5,
    )


def _intervals(of: Sequence[Iteration], name: str, label: str, part: str | None = None) -> Line:
    found = [
        (one.number, measured[name])
        for one in of
        if isinstance((measured := one.measured.get(part, {}) if part else one.measured).get(name), Mapping)
    ]
    return Line(
        label,
        [number for number, _ in found],
        *([float(values.get(key, np.nan)) for _, values in found] for key in ("mean", "low", "high")),
    )


def _in_words(drawn: Any) -> str:
    return " ".join(
        f"{line.name}: " + ", ".join(f"{y:.3g} at {x:g}" for x, y in zip(line.x, line.y, strict=True)) + "."
        for line in drawn
    )


def _ends(drawn: Sequence[Line]) -> str:
    return " ".join(f"{line.name}: from {line.y[0]:.3g} to {line.y[-1]:.3g}." for line in drawn)


def _interval(found: Any) -> str:
    if not isinstance(found, Mapping) or "mean" not in found:
        return "not recorded"
    return f"{found['mean']:.3f} [{found.get('low', np.nan):.3f}, {found.get('high', np.nan):.3f}]"


def _number(value: Any, digits: int = 3) -> str:
    if not isinstance(value, int | float):
        return "not recorded"
    return f"{value:,.{digits}f}"


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "not recorded"


def _short(text: str, length: int = 600) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"
