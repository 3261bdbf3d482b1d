"""The one reader of run folders, which knows their iterations and the place of every file.

Whatever looks at a run (the report, the arena, comparisons, benchmarks, games, oracles that learn from it) asks
:class:`RunReader`. Only this module, :mod:`sppo.rundir.folder` and the stages know how files and folders are named.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from sppo import recipe as recipes
from sppo.recipe.run_policies import in_run, policy_of_run, run_policies
from sppo.rundir.folder import RunError, RunFolder, read_stage_record
from sppo.rundir.records import read_record
from sppo.rundir.shards import DamagedShard, read_shard, shard_metadata
from sppo.rundir.tables import PromptRow, read_rows
from sppo.winrates import Array

BASE = 0
"""The iteration that the base policy and the held-out prompts belong to."""
STAGES = ("prompts", "sample", "annotate", "select", "train", "evaluate")
RENAMED = {"cut_share": "truncated_share"}
"""Keys of records as an older version wrote them, with their present names."""
_RECORDS = {
    "prompts": "prompts",
    "responses": "sample",
    "preferences": "annotate",
    "training": "select",
    "comparisons": "evaluation",
    "evaluation": "respond",
}
"""The name of the record of each table."""
Table = Literal["prompts", "responses", "preferences", "training", "comparisons", "evaluation"]


@dataclass(frozen=True)
class PromptResponses:
    """One prompt with the texts of a policy's responses.

    Attributes:
        prompt_id: the prompt's identifier.
        messages: the conversation up to the user's last message.
        texts: one text for each response, in the order k = 0, 1, ..., K - 1.
    """

    prompt_id: str
    messages: list[Any]
    texts: list[str]


class Preferences(NamedTuple):
    """The preference matrices of an iteration.

    Attributes:
        prompt_ids: one identifier for each matrix.
        matrices: the oracle's answers, [prompts, K, K].
    """

    prompt_ids: list[str]
    matrices: Float[Array, "prompts K K"]


class Policy(NamedTuple):
    """A policy of a run.

    Attributes:
        iteration: the iteration that trained it; 0 for the base policy.
        folder: the policy's folder; a name on the hub is possible for the base policy.
    """

    iteration: int
    folder: Path

    @property
    def name(self) -> str:
        """`base`, or the name of the iteration's folder."""
        return "base" if self.iteration == BASE else self.folder.parent.name

    @property
    def label(self) -> str:
        """The policy's name for people: `base`, or `iteration 3`."""
        return label(self.iteration)


class RunReader:
    """Reads one run folder and never writes to it.

    Methods that return records return None for a record that is missing or damaged, since an unfinished run can be
    read too. Methods that return rows raise :class:`sppo.rundir.shards.DamagedShard` for a damaged shard.

    Args:
        path: the run folder.

    Raises:
        RunError: the folder has no recipe.yaml.
    """

    def __init__(self, path: Path) -> None:
        if not is_run(path):
            raise RunError(f"{path} is not a run folder, because it has no recipe.yaml")
        self.path = path
        self.folder = RunFolder(path)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.resolve().name

    @property
    def recipe_file(self) -> Path:
        """The file of the resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def recipe(self) -> "recipes.Recipe":
        """The resolved recipe.

        Raises:
            RecipeError: this version cannot read the recipe.
        """
        return recipes.load(self.recipe_file)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None if the file is missing or damaged."""
        return read_summary(self.path)

    @property
    def iterations(self) -> list[int]:
        """The iterations t = 1, 2, ... that have been started, in order."""
        numbers = (_number(folder.name) for folder in self.path.glob("iter-*"))
        return sorted(number for number in numbers if number is not None and number != BASE)

    @property
    def evaluated(self) -> list[int]:
        """The iterations whose policy has been evaluated, in order; 0 stands for the base policy."""
        return [
            number for number in (BASE, *self.iterations) if self.record_file(number, "evaluate").is_file()
        ]

    @property
    def is_older(self) -> bool:
        """Whether the records of the evaluations have the names that an older version gave them."""
        records = (read_stage_record(self.record_file(number, "evaluate")) for number in self.evaluated)
        return any(record is not None and not RENAMED.keys().isdisjoint(record) for record in records)

    @property
    def files(self) -> list[Path]:
        """The recipe, the summary, and every iteration's records and metrics: all files but tables and policies."""
        named = [self.recipe_file, self.path / "summary.json"]
        return [*(file for file in named if file.is_file()), *self.path.glob("iter-*/*.json*")]

    @property
    def written(self) -> float:
        """The time at which the folder last changed, in seconds since the epoch.

        Raises:
            RunError: the folder is empty.
        """
        times = []
        for file in (*self.files, *self.path.glob("iter-*/*/")):
            # A running process may have replaced or removed the file meanwhile.
            with contextlib.suppress(OSError):
                times.append(file.stat().st_mtime)
        if not times:
            raise RunError(f"{self.path}: the run folder is empty")
        return max(times)

    def record_file(self, iteration: int, stage: str) -> Path:
        """The file of the record that says that a stage is done."""
        name = "evaluation" if stage == "evaluate" else stage
        return self.folder.iteration(iteration) / f"{name}.json"

    def record(self, iteration: int, stage: str) -> dict[str, Any] | None:
        """A stage's record with the present names of its keys; None if the record is missing or damaged."""
        record = read_stage_record(self.record_file(iteration, stage))
        return None if record is None else {RENAMED.get(key, key): value for key, value in record.items()}

    def metrics(self, iteration: int) -> list[dict[str, Any]]:
        """The lines of an iteration's metrics.jsonl; damaged lines are left out."""
        return self.folder.read_metrics(iteration)

    def steps(self, iteration: int) -> list[dict[str, Any]]:
        """The lines of an iteration's metrics that describe a step of the optimiser."""
        return [
            line
            for line in self.metrics(iteration)
            if line.get("stage") == "train" and isinstance(line.get("step"), int)
        ]

    def shards(self, iteration: int, table: Table) -> list[Path]:
        """The shards of one table of an iteration, in order; an empty list where there are none."""
        return sorted((self.folder.iteration(iteration) / table).glob("part-*.parquet"))

    def whole_shards(self, iteration: int, table: Table) -> list[Path]:
        """Like :meth:`shards`, after comparing them with the stage's record, if there is one.

        Raises:
            DamagedShard: a shard is missing, or it has been taken from another stage or another run.
        """
        shards, folder = self.shards(iteration, table), self.folder.iteration(iteration)
        record = read_stage_record(folder / f"{_RECORDS[table]}.json")
        if record is not None:
            _compare_with_record(shards, folder / table, record)
        return shards

    def policy(self, iteration: int) -> Path:
        """The folder of the policy that an iteration trains, whether or not it exists yet."""
        return self.folder.iteration(iteration) / "policy"

    def policies(self) -> list[Policy]:
        """The base policy and the policy of each finished iteration whose folder is there.

        Raises:
            RunError: no iteration is finished.
        """
        summary = self.summary
        if summary is None:
            raise RunError(f"{self.path}: no iteration of this run is finished")
        trained = [Policy(row["iteration"], self.policy(row["iteration"])) for row in summary["iterations"]]
        base = Policy(BASE, Path(summary["base"]["policy"]))
        return [base, *(policy for policy in trained if policy.folder.is_dir())]

    def named_policy(self, iteration: int) -> Policy:
        """The policy that an iteration has trained; 0: the base policy.

        Raises:
            RunError: the run has no such policy yet.
        """
        policies = {policy.iteration: policy for policy in self.policies()}
        if iteration not in policies:
            labels = ", ".join(policy.label for policy in policies.values())
            raise RunError(f"{self.path}: iteration {iteration} has no policy; there are {labels}")
        return policies[iteration]

    def table(self, iteration: int, table: Table) -> list[Path]:
        """The shards of one table of an iteration, in order.

        Raises:
            RunError: there are none yet.
        """
        shards = self.whole_shards(iteration, table)
        if not shards:
            raise RunError(f"{self.path}: {label(iteration)} has no {table} yet")
        return shards

    def last_policy(self) -> Policy:
        """The policy that the run has accepted last, which is the run's result.

        Raises:
            RunError: no iteration is finished.
        """
        folder = last_policy(self.path)
        if folder is None:
            raise RunError(f"{self.path}: no iteration of this run is finished")
        place = run_and_iteration(folder)
        return Policy(BASE if place is None else place[1], folder)

    def owns(self, recorded: Path | str) -> bool:
        """Whether a recorded path names a policy of this run, even if the run has been moved since."""
        path, home = Path(recorded), self.path.resolve()
        if path.resolve().is_relative_to(home):
            return True
        return any(
            name == home.name and _number(below) is not None and (home / below).is_dir()
            for name, below in pairwise(path.parts)
        )

    def prompts(self, iteration: int) -> list[PromptRow]:
        """The prompts of an iteration."""
        shards = self.whole_shards(iteration, "prompts")
        return [row for shard in shards for row in read_rows(shard, PromptRow)]

    def held_out_prompts(self) -> list[PromptRow]:
        """The prompts that the run holds out for its evaluations.

        Raises:
            RunError: the run has not read its prompts yet.
        """
        prompts = self.prompts(BASE)
        if not prompts:
            raise RunError(
                f"{self.path} has no held-out prompts yet; run it first, or name a source with --prompts"
            )
        return prompts

    def prompt_lengths(self, iteration: int) -> list[int]:
        """The number of tokens of each prompt of an iteration, without making lists of them."""
        tables = [
            read_shard(shard, ["prompt_token_ids"]) for shard in self.whole_shards(iteration, "prompts")
        ]
        return [n for table in tables for n in pc.list_value_length(table["prompt_token_ids"]).to_pylist()]

    def responses(self, iteration: int) -> Iterator[PromptResponses]:
        """The training prompts of an iteration with the responses that pi_t gave."""
        return _responses(self.whole_shards(iteration, "responses"))

    def held_out(self, iteration: int) -> Iterator[PromptResponses]:
        """The held-out prompts with the responses of the policy that an iteration has trained; 0: the base policy."""
        return _responses(self.whole_shards(iteration, "evaluation"))

    def compared(self, iteration: int) -> Iterator[tuple[PromptResponses, Float[Array, "K K"]]]:
        """The training prompts of an iteration with their responses and the oracle's preferences among them."""
        for shard in self.whole_shards(iteration, "preferences"):
            matrices = dict(zip(*_preferences(shard), strict=True))
            for row in _responses([self.folder.iteration(iteration) / "responses" / shard.name]):
                if row.prompt_id in matrices:
                    yield row, np.array(matrices[row.prompt_id], dtype=np.float64)

    def preferences(self, iteration: int | None = None) -> dict[int, Preferences]:
        """The whole preference matrices of the run, by iteration.

        Args:
            iteration: read this iteration only; None: read all of them.

        Raises:
            RunError: nothing has been annotated, or the oracle has compared some of the pairs only.
        """
        by_iteration = {}
        for number in self.iterations:
            shards = self.whole_shards(number, "preferences")
            if shards and iteration in (None, number):
                parts = [_preferences(shard) for shard in shards]
                prompt_ids = [name for names, _ in parts for name in names]
                matrices = [matrix for _, shard_matrices in parts for matrix in shard_matrices]
                by_iteration[number] = Preferences(prompt_ids, np.array(matrices, dtype=np.float64))
        if any(np.isnan(preferences.matrices).any() for preferences in by_iteration.values()):
            raise RunError(
                f"{self.path}: its oracle has not compared all pairs (oracle.comparisons, or what oracle.unread leaves out),"
                " but the game needs whole matrices; annotate with an oracle that compares all of them"
            )
        if not by_iteration:
            raise RunError(f"{self.path}: {_lack_of_preferences(self.recipe, iteration)}")
        return by_iteration


def _lack_of_preferences(recipe: "recipes.Recipe", iteration: int | None) -> str:
    if not recipe.algorithm.preferences:
        return (
            f"there are no preferences to look at, since its algorithm, {recipe.algorithm.type}, asks no oracle in training;"
            " `sppo game policies` compares its policies"
        )
    which = "" if iteration is None else f" in iteration {iteration}"
    return f"nothing has been annotated{which}; run `sppo annotate` first"


def _compare_with_record(shards: Sequence[Path], folder: Path, record: Mapping[str, Any]) -> None:
    names = {shard.name for shard in shards}
    lost = next((shard["name"] for shard in record["shards"] if shard["name"] not in names), None)
    if lost is not None:
        raise DamagedShard(f"{folder / lost}: this shard is missing")
    for shard in shards:
        if shard_metadata(shard).get("fingerprint", record["fingerprint"]) != record["fingerprint"]:
            raise DamagedShard(f"{shard}: this shard belongs to another stage, as the stage's record says")


def with_run_policies(run: RunReader, oracle: "recipes.OracleSection") -> "recipes.OracleSection":
    """An oracle with the run's policies that it computes with; `current` is the one that the run goes on from."""
    if not run_policies(oracle):
        return oracle
    recipe, last = run.recipe, last_policy(run.path)
    current = recipe.policy if last is None else policy_of_run(recipe.policy, last)
    return in_run(oracle, {"base": recipe.policy, "current": current}, recipe.sampling)


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    return (path / "recipe.yaml").is_file()


def label(iteration: int) -> str:
    """The name of an iteration's policy for people: `base`, or `iteration 3`."""
    return "base" if iteration == BASE else f"iteration {iteration}"


def last_policy(path: Path) -> Path | None:
    """The folder of the policy that a run has accepted last; None if no summary.json names one."""
    summary = read_summary(path)
    if summary is None or not isinstance(summary.get("policy"), str):
        return None
    recorded = Path(summary["policy"])
    moved = path / recorded.parent.name / recorded.name  # the run folder may have been moved since
    return moved if moved.is_dir() else recorded


def run_and_iteration(policy: Path) -> tuple[Path, int] | None:
    """The run folder and the iteration that a policy's folder, or an iteration's, belongs to by its path; None for others."""
    home = policy.parent if policy.name == "policy" else policy
    number = _number(home.name)
    return None if number is None else (home.parent, number)


def read_summary(path: Path) -> dict[str, Any] | None:
    """The content of a run's summary.json; None if the file is missing or damaged."""
    summary = read_record(path / "summary.json")
    return summary if summary is not None and isinstance(summary.get("iterations"), list) else None


def _number(name: str) -> int | None:
    digits = name.removeprefix("iter-")
    return int(digits) if digits != name and digits.isdecimal() else None


def _responses(shards: Sequence[Path]) -> Iterator[PromptResponses]:
    for shard in shards:
        table = read_shard(shard, columns=["prompt_id", "messages", "responses"])
        responses = table["responses"].combine_chunks()
        # only the texts become Python objects: token ids and log-probabilities are most of a shard
        texts = pc.struct_field(responses.flatten(), "text").to_pylist()
        end = 0
        for row, count in zip(
            table.select(["prompt_id", "messages"]).to_pylist(),
            pc.list_value_length(responses).to_pylist(),
            strict=True,
        ):
            start, end = end, end + count
            yield PromptResponses(row["prompt_id"], row["messages"], texts[start:end])


def _preferences(shard: Path) -> tuple[list[str], list[list[list[float]]]]:
    table: pa.Table = read_shard(shard, columns=["prompt_id", "matrix"])
    columns: Mapping[str, list[Any]] = table.to_pydict()
    return columns["prompt_id"], columns["matrix"]
