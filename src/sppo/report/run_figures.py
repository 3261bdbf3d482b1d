"""What a run folder says of itself, as plain data: nothing is computed that the run has not recorded.

Whatever is missing, damaged or of another version is left out and named in the notes, since a page about an
unfinished or failed run is wanted most.
"""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from sppo import __version__
from sppo.progress import printable
from sppo.recipe import Recipe, RecipeError
from sppo.rundir import summary
from sppo.rundir.guard import alarms, trends
from sppo.rundir.reader import BASE, STAGES, RunReader, Table, label

SHARDS_IN: Mapping[str, Table] = {
    "sample": "responses",
    "annotate": "preferences",
    "select": "training",
    "evaluate": "evaluation",
}


@dataclass(frozen=True)
class Iteration:
    """One iteration; 0 is what belongs to the base policy.

    Attributes:
        number: t.
        records: what its finished stages published, by stage.
        shards: how many shards of a stage are there, and how many there will be; of stages that are begun.
        steps: what training has logged, line by line.
        seconds: by stage.
        counted: what the oracle counted while it annotated.
        alarms: what the guard says.
    """

    number: int
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shards: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    alarms: Sequence[str] = ()

    @property
    def measured(self) -> Mapping[str, Any]:
        """What its evaluation published; empty before that."""
        return self.records.get("evaluate", {})

    @property
    def label(self) -> str:
        """Of its policy."""
        return label(self.number)


@dataclass(frozen=True)
class RunFigures:
    """A run.

    Attributes:
        path: its folder.
        recipe: as resolved; None where this version cannot read it.
        recipe_text: the file.
        versions: what it was made with, in a line.
        iterations: 0 and those that are begun.
        previous: for evaluated iterations, that of the policy that it was compared with, where it is known.
        examples: of before and after.
        notes: what could not be read.
        written: when the folder last changed, seconds since the epoch.
    """

    path: Path
    recipe: Recipe | None
    recipe_text: str
    versions: str
    iterations: Sequence[Iteration]
    previous: Mapping[int, int]
    examples: Sequence[Mapping[str, str]]
    notes: Sequence[str]
    written: float

    @property
    def name(self) -> str:
        """The folder's own."""
        return printable(self.path.resolve().name)

    @property
    def base(self) -> Iteration:
        """What belongs to the base policy."""
        return self.iterations[0]

    @property
    def played(self) -> list[Iteration]:
        """The iterations that are begun."""
        return list(self.iterations[1:])

    @property
    def evaluated(self) -> list[Iteration]:
        """The iterations whose policy has been evaluated."""
        return [one for one in self.played if one.measured]

    @property
    def is_finished(self) -> bool:
        """Whether every iteration of the recipe has been evaluated."""
        return self.recipe is not None and len(self.evaluated) >= self.recipe.iterations

    @property
    def is_stopped(self) -> bool:
        """Whether the guard keeps it from going on."""
        stops = self.recipe is not None and self.recipe.guard.on_failure == "stop"
        return stops and any(one.alarms for one in self.evaluated[-1:])

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to come, its summary included."""
        return (self.is_finished or self.is_stopped) and (self.path / "summary.json").is_file()

    @property
    def status(self) -> str:
        """Where it stands, in words."""
        total = "?" if self.recipe is None else str(self.recipe.iterations)
        done = f"{len(self.evaluated)} of {total} iterations are finished"
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.written))
        if self.is_finished:
            return f"Finished: all of its {total} iterations; last written {when}."
        if self.is_stopped:
            return f"Stopped by the guard after iteration {self.evaluated[-1].number}: {done}; last written {when}."
        return f"Not finished: {done}; it is at {self._at()}; last written {when}."

    @property
    def warnings(self) -> list[str]:
        """The guard's alarms of every iteration, and what only several iterations show."""
        found = [f"Iteration {one.number}: {alarm}" for one in self.evaluated for alarm in one.alarms]
        return found + trends([one.measured for one in self.evaluated], self.base.measured)

    def _at(self) -> str:
        for one in self.iterations:
            done = max((STAGES.index(stage) for stage in one.records), default=-1)
            for stage in STAGES[done + 1 :]:  # not every algorithm has every stage
                if stage in ("prompts", "evaluate") or one.number:
                    there = one.shards.get(stage)
                    steps = f", step {one.steps[-1].get('step')}" if stage == "train" and one.steps else ""
                    shards = "" if there is None else f", {there[0]} of {there[1]} shards"
                    return f"iteration {one.number}: {stage}{shards}{steps}"
        return "the next iteration"


def read(path: Path) -> RunFigures:
    """Read a run folder, however far it got.

    Raises:
        RunError: it is no run folder.
    """
    notes: list[str] = []
    reader = RunReader(path)
    text = reader.recipe_file.read_text(encoding="utf-8", errors="replace")
    try:
        recipe = reader.recipe
    except RecipeError as error:
        recipe = None
        notes.append(f"This version ({__version__}) cannot read the run's recipe: {error}")
    first = text.partition("\n")[0]
    versions = first.removeprefix("# ") if first.startswith("# sppo ") else "not recorded"
    made_by = versions.partition(",")[0].removeprefix("sppo ")
    if made_by != __version__:
        notes.append(
            f"The run was made by sppo {made_by}, the page by {__version__}: figures may be missing."
        )
    if reader.is_older:
        notes.append("The run was made by an older version of sppo: figures may be missing.")
    iterations = [_iteration(reader, number) for number in (BASE, *reader.iterations)]
    base = _legible(iterations[0].measured)
    judged = [_judged(one, base, recipe) for one in iterations]
    notes += [
        f"It is left out, as damaged or of another version: {path}" for path in _damaged(reader, judged)
    ]
    notes += [f"Iteration {one.number}: {lack}" for one in judged for lack in _lacks(one, recipe)]
    found = reader.summary
    if found is None and any(one.measured for one in judged[1:]):
        notes.append("There is no whole summary.json: the examples of before and after are missing.")
    return RunFigures(
        path,
        recipe,
        printable(text),
        printable(versions),
        judged,
        _previous(judged, recipe),
        _examples(found),
        [printable(note) for note in notes],
        reader.written,
    )


def names(run: RunFigures) -> list[str]:
    """Of the base and of each evaluated policy."""
    return [one.label for one in (run.base, *run.evaluated)]


def is_number(value: Any) -> bool:
    """Whether a value that was read is one, and finite."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def is_interval(value: Any) -> bool:
    """Whether it has a finite `mean`, `low` and `high`."""
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in ("mean", "low", "high"))


def _damaged(run: RunReader, iterations: Sequence[Iteration]) -> list[Path]:
    """Records that are there and could not be read as such."""
    return [
        path
        for one in iterations
        for stage in STAGES
        if stage not in one.records and (path := run.record_file(one.number, stage)).is_file()
    ]


def _iteration(run: RunReader, number: int) -> Iteration:
    records = {stage: record for stage in STAGES if (record := run.record(number, stage)) is not None}
    held_out = run.record(BASE, "prompts")
    of_prompts = records.get("prompts" if number else "") or held_out
    shards = {}
    for stage, name in SHARDS_IN.items():
        there = len(run.shards(number, name))
        if there and stage not in records:
            source = of_prompts if stage != "evaluate" else held_out
            shards[stage] = (there, len((source or {}).get("shards", [])))
    steps = [{name: value for name, value in line.items() if is_number(value)} for line in run.steps(number)]
    try:
        seconds, counted = summary.seconds(run.folder, number), summary.oracle_counts(run.folder, number)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ArithmeticError,
    ):  # lines that this version would not have written
        seconds, counted = {}, {}
    return Iteration(number, records, shards, steps, seconds, counted)


def _legible(measured: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without the figures that are none."""
    found = dict(measured)
    for name, value in measured.items():
        rate, part = name.startswith("win_rate"), name == "by_oracle"
        if part and isinstance(value, Mapping):
            found[name] = {key: of for key, of in value.items() if is_interval(of)}
        elif part or (rate and not is_interval(value)) or (name in _NUMBERS and not is_number(value)):
            del found[name]
    return found


_NUMBERS = (
    "response_tokens",
    "truncated_share",
    "missing_end_of_turn",
    "repetition",
    "kl_to_base",
    "held_out_prompts",
)


def _judged(one: Iteration, base: Mapping[str, Any], recipe: Recipe | None) -> Iteration:
    if not one.measured:
        return one
    found: list[str] = []
    measured = _legible(one.measured)
    if one.number and recipe is not None:
        with contextlib.suppress(KeyError, TypeError):  # of a version that recorded less
            found = alarms(measured, base, recipe.guard)
    return Iteration(**{**vars(one), "records": {**one.records, "evaluate": measured}, "alarms": found})


def _lacks(one: Iteration, recipe: Recipe | None) -> list[str]:
    needed = ["response_tokens", "repetition"] + (["kl_to_base"] if one.number else [])
    if one.number and (recipe is None or recipe.oracle is not None):
        needed += ["win_rate_vs_base", "win_rate_vs_previous"]
    missing = [name for name in needed if name not in one.measured]
    return [f"its evaluation lacks {', '.join(missing)}."] if one.measured and missing else []


def _previous(iterations: Sequence[Iteration], recipe: Recipe | None) -> dict[int, int]:
    """As `selfplay.turns` goes on: a failed policy that the run falls back from is nobody's predecessor.

    After an iteration whose evaluation is missing it is not known.
    """
    falls_back = recipe is not None and recipe.guard.on_failure == "fall_back"
    before_a_gap = takewhile(
        lambda pair: pair[0] == pair[1].number and pair[1].measured, enumerate(iterations[1:], 1)
    )
    evaluated = [one for _, one in before_a_gap]
    after = accumulate(
        evaluated, lambda before, one: before if falls_back and one.alarms else one.number, initial=0
    )
    return {one.number: before for one, before in zip(evaluated, after, strict=False)}


def _examples(found: Mapping[str, Any] | None) -> list[dict[str, str]]:
    rows = (found or {}).get("examples", [])
    return [
        {name: printable(str(row.get(name, ""))) for name in ("prompt", "before", "after")}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping)
    ]
