"""The figures of a run as plain data, as the run has recorded them; nothing is computed anew.

Whatever is missing, damaged or of another version is left out and named in a note, because a page is needed most for
a run that is unfinished or has failed.
"""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from sppo import __version__
from sppo.progress import counted_text, printable
from sppo.recipe import Recipe, RecipeError
from sppo.rundir import guard, summary
from sppo.rundir.reader import BASE, STAGES, RunReader, Table, label
from sppo.rundir.trends import Trend, trends

TABLES: Mapping[str, Table] = {
    "sample": "responses",
    "annotate": "preferences",
    "select": "training",
    "evaluate": "evaluation",
}
"""The table that each stage writes shard by shard."""
_NUMBERS = (
    "response_tokens",
    "truncated_share",
    "missing_end_of_turn",
    "repetition",
    "kl_to_base",
    "held_out_prompts",
)
_GROUPS = ("by_oracle", "tasks")
"""The measures of an evaluation that hold intervals by name."""


@dataclass(frozen=True)
class Iteration:
    """One iteration; iteration 0 holds what belongs to the base policy.

    Attributes:
        number: t.
        records: what its finished stages have published, by stage.
        shards: for each stage that has begun, how many shards are there and how many there will be.
        steps: what training has logged, line by line.
        seconds: the seconds of each stage.
        oracle_counts: what the oracle counted while it annotated.
        alarms: the guard's alarms.
        warnings: the guard's warnings, and what oracles could not read or compare.
    """

    number: int
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shards: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    oracle_counts: Mapping[str, int] = field(default_factory=dict)
    alarms: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def measures(self) -> Mapping[str, Any]:
        """The measures that its evaluation has published; empty before that."""
        return self.records.get("evaluate", {})

    @property
    def label(self) -> str:
        """The name of its policy."""
        return label(self.number)


@dataclass(frozen=True)
class RunFigures:
    """The figures of a run.

    Attributes:
        path: the run folder.
        recipe: the resolved recipe; None where this version cannot read it.
        recipe_text: the text of the recipe's file.
        versions: the versions of the packages that the run was made with, in one line.
        iterations: iteration 0, and the iterations that have begun.
        previous: for evaluated iterations, the iteration whose policy they were compared with, where that is known.
        notes: what could not be read.
        written: when the folder last changed, in seconds since the epoch.
    """

    path: Path
    recipe: Recipe | None
    recipe_text: str
    versions: str
    iterations: Sequence[Iteration]
    previous: Mapping[int, int]
    notes: Sequence[str]
    written: float

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return printable(self.path.resolve().name)

    @property
    def base(self) -> Iteration:
        """The record of the base policy."""
        return self.iterations[0]

    @property
    def started(self) -> list[Iteration]:
        """The iterations that have begun."""
        return list(self.iterations[1:])

    @property
    def evaluated(self) -> list[Iteration]:
        """The iterations whose policy has been evaluated."""
        return [iteration for iteration in self.started if iteration.measures]

    @property
    def policies(self) -> list[Iteration]:
        """The base, and the iterations whose policy has been evaluated."""
        return [self.base, *self.evaluated]

    @property
    def seconds(self) -> float:
        """The seconds of all stages."""
        return sum(sum(iteration.seconds.values()) for iteration in self.iterations)

    @property
    def is_finished(self) -> bool:
        """Whether every iteration of the recipe has been evaluated."""
        return self.recipe is not None and len(self.evaluated) >= self.recipe.iterations

    @property
    def is_stopped(self) -> bool:
        """Whether the guard keeps the run from going on."""
        stops = self.recipe is not None and self.recipe.guard.on_failure == "stop"
        return stops and any(iteration.alarms for iteration in self.evaluated[-1:])

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be written, the summary included."""
        return (self.is_finished or self.is_stopped) and (self.path / "summary.json").is_file()

    @property
    def status(self) -> str:
        """The progress of the run, in words."""
        total = "? iterations" if self.recipe is None else counted_text(self.recipe.iterations, "iteration")
        done = f"{len(self.evaluated)} of {total} finished"
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.written))
        if self.is_finished:
            return f"Finished: {total}; last written {when}."
        if self.is_stopped:
            return f"Stopped by the guard after iteration {self.evaluated[-1].number}: {done}; last written {when}."
        return f"Not finished: {done}; the run is at {self._position()}; last written {when}."

    @property
    def alarms(self) -> list[str]:
        """The guard's alarms of every iteration, and what only several iterations together show."""
        alarms = [
            f"Iteration {policy.number}: {alarm}" for policy in self.evaluated for alarm in policy.alarms
        ]
        return alarms + [f"Iteration {trend.iteration}: {trend.sentence}" for trend in self.trends]

    @property
    def trends(self) -> list[Trend]:
        """What several iterations together show."""
        measures = [_measured(iteration, iteration.measures) for iteration in self.evaluated]
        # an older version recorded less than is looked at, and another one may have written otherwise
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            return trends(measures, self.base.measures)
        return []

    @property
    def warnings(self) -> list[str]:
        """The warnings about every iteration."""
        pairs = (
            (iteration.number, warning) for iteration in self.iterations for warning in iteration.warnings
        )
        return [f"{said[0].upper()}{said[1:]}" for said in guard.said_once(pairs)]

    def _position(self) -> str:
        for iteration in self.iterations:
            done = max((STAGES.index(stage) for stage in iteration.records), default=-1)
            for stage in STAGES[done + 1 :]:  # not every algorithm has every stage
                if stage in ("prompts", "evaluate") or iteration.number:
                    at = f"iteration {iteration.number}: {stage}"
                    if stage in iteration.shards:
                        at += ", {} of {} shards".format(*iteration.shards[stage])
                    is_training = stage == "train" and iteration.steps
                    return f"{at}, step {iteration.steps[-1].get('step')}" if is_training else at
        return "the next iteration"


def read(path: Path) -> RunFigures:
    """Reads a run folder, however far the run has got.

    Raises:
        RunError: the folder is no run folder.
    """
    notes: list[str] = []
    reader = RunReader(path)
    text = reader.recipe_file.read_text(encoding="utf-8", errors="replace")
    try:
        recipe = reader.recipe
    except RecipeError as error:
        recipe = None
        notes.append(f"This version ({__version__}) cannot read the run's recipe: {error}")
    first_line = text.partition("\n")[0]
    versions = first_line.removeprefix("# ") if first_line.startswith("# sppo ") else "not recorded"
    made_by = versions.partition(",")[0].removeprefix("sppo ")
    if made_by != __version__:
        notes.append(
            f"The run was made by sppo {made_by}, the page by {__version__}: figures may be missing."
        )
    if reader.is_older:
        notes.append("The run was made by an older version of sppo: figures may be missing.")
    iterations = [_iteration(reader, number) for number in (BASE, *reader.iterations)]
    base = _valid_measures(iterations[0].measures)
    iterations = [_with_alarms(iteration, base, recipe) for iteration in iterations]
    for iteration in iterations:
        records = {stage: reader.record_file(iteration.number, stage) for stage in STAGES}
        notes += [
            f"This file is left out, because it is damaged or another version wrote it: {record}"
            for stage, record in records.items()
            if stage not in iteration.records and record.is_file()
        ]
    for iteration in iterations:
        missing = _missing_measures(iteration, recipe)
        if missing:
            notes.append(f"Iteration {iteration.number}: its evaluation lacks {', '.join(missing)}.")
    previous = _previous(iterations, recipe)
    iterations = [
        replace(iteration, warnings=[*_warnings(iteration, iterations, previous), *_left_out(iteration)])
        for iteration in iterations
    ]
    notes = [printable(note) for note in notes]
    return RunFigures(
        path, recipe, printable(text), printable(versions), iterations, previous, notes, reader.written
    )


def is_number(value: Any) -> bool:
    """Whether a value that was read is a finite number."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def is_interval(value: Any) -> bool:
    """Whether a value that was read has a finite `mean`, `low` and `high`."""
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in ("mean", "low", "high"))


def _iteration(run: RunReader, number: int) -> Iteration:
    records = {stage: record for stage in STAGES if (record := run.record(number, stage)) is not None}
    held_out = run.record(BASE, "prompts") or {}
    prompts = (records.get("prompts") if number else None) or held_out
    shards = {}
    for stage, table in TABLES.items():
        written = len(run.shards(number, table))
        if written and stage not in records:
            source = held_out if stage == "evaluate" else prompts
            shards[stage] = (written, len(source.get("shards", [])))
    steps = [{name: value for name, value in line.items() if is_number(value)} for line in run.steps(number)]
    try:
        seconds, counts = summary.seconds(run.folder, number), summary.oracle_counts(run.folder, number)
    # another version may have written the lines
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError):
        seconds, counts = {}, {}
    return Iteration(number, records, shards, steps, seconds, counts)


def _valid_measures(measures: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without the entries that should be numbers or intervals and are not."""

    def is_valid(name: str, value: Any) -> bool:
        if name in _GROUPS:
            return isinstance(value, Mapping)
        if name.startswith("win_rate_") or name in ("kl_interval", "oracle_gap"):
            return is_interval(value)
        return name not in _NUMBERS or is_number(value)

    valid = {name: value for name, value in measures.items() if is_valid(name, value)}
    groups = {
        name: {key: value for key, value in valid[name].items() if is_interval(value)}
        for name in _GROUPS
        if name in valid
    }
    return valid | groups


def _with_alarms(iteration: Iteration, base: Mapping[str, Any], recipe: Recipe | None) -> Iteration:
    if not iteration.measures:
        return iteration
    reasons: list[str] = []
    measures = _valid_measures(iteration.measures)
    if iteration.number and recipe is not None:
        # an older version recorded less than the guard looks at
        with contextlib.suppress(KeyError, TypeError):
            reasons = guard.alarms(_measured(iteration, measures), base, recipe.guard)
    return replace(iteration, records={**iteration.records, "evaluate": measures}, alarms=reasons)


def _measured(iteration: Iteration, measures: Mapping[str, Any]) -> dict[str, Any]:
    selected, prompts, annotated = (
        iteration.records.get(stage, {}) for stage in ("select", "prompts", "annotate")
    )
    return guard.measured(measures, selected, prompts, annotated, iteration.oracle_counts)


def _warnings(
    iteration: Iteration, iterations: Sequence[Iteration], previous: Mapping[int, int]
) -> list[str]:
    """The guard's warnings about an iteration; none where it is not known which policy it started from."""
    if iteration.number not in previous:
        return []
    before = iterations[previous[iteration.number]].measures
    # an older version recorded less than the guard looks at
    with contextlib.suppress(KeyError, TypeError):
        steps = iteration.records["train"]["steps"]
        return guard.warnings(_measured(iteration, iteration.measures), before, steps)
    return []


def _left_out(iteration: Iteration) -> list[str]:
    """Sentences about the responses that oracles read as empty, and about what they did not compare."""
    sampled, evaluated = (iteration.records.get(stage, {}) for stage in ("sample", "evaluate"))
    asked = iteration.oracle_counts
    thoughts = "end within a thought, and oracles read them as empty"
    no_text = (
        "are spare rows of the policy's embedding, which its tokenizer has no text for and oracles do not see"
    )
    counts = (
        (sampled, "tokens_without_text", f"of the tokens that were sampled for training {no_text}"),
        (evaluated, "tokens_without_text", f"of the tokens of the responses to held-out prompts {no_text}"),
        (sampled, "unfinished_thoughts", f"of the responses that were sampled for training {thoughts}"),
        (evaluated, "unfinished_thoughts", f"of the responses to held-out prompts {thoughts}"),
        (
            asked,
            "pairs_left_out",
            "of the pairs of responses were not compared, because the oracle left them out",
        ),
        (
            evaluated,
            "prompts_left_out",
            "of the held-out prompts have no win rate, because the oracle left them out",
        ),
    )
    return [
        f"{record[name]:,.0f} {words}"
        for record, name, words in counts
        if is_number(record.get(name)) and record[name] > 0
    ]


def _missing_measures(iteration: Iteration, recipe: Recipe | None) -> list[str]:
    needed = ["response_tokens", "repetition"] + (["kl_to_base"] if iteration.number else [])
    if iteration.number and (recipe is None or recipe.oracle is not None):
        needed += ["win_rate_vs_base", "win_rate_vs_previous"]
    return [name for name in needed if name not in iteration.measures] if iteration.measures else []


def _previous(iterations: Sequence[Iteration], recipe: Recipe | None) -> dict[int, int]:
    """For each evaluated iteration the one whose policy it started from, as `sppo.stages.iterations` plans it.

    A failed policy that the run falls back from has no successor. After an iteration whose evaluation is missing,
    it is not known which policy the next one started from.
    """
    falls_back = recipe is not None and recipe.guard.on_failure == "fall_back"
    before_gap = takewhile(
        lambda pair: pair[0] == pair[1].number and pair[1].measures, enumerate(iterations[1:], 1)
    )
    evaluated = [iteration for _, iteration in before_gap]
    accepted = accumulate(
        evaluated, lambda last, new: last if falls_back and new.alarms else new.number, initial=BASE
    )
    return {iteration.number: last for iteration, last in zip(evaluated, accepted, strict=False)}
