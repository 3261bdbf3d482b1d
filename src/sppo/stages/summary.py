"""The figures of a run: the row that is shown after each iteration, summary.json, and three examples at the end."""

import textwrap
from typing import Any

from sppo import randomness
from sppo.progress import counted_text, printable
from sppo.rundir import storage
from sppo.rundir.guard import said_once
from sppo.rundir.reader import read_summary
from sppo.rundir.records import digest_of_lines, read_record, write_record
from sppo.rundir.summary import oracle_counts, remarks, seconds, settings_text, shards_without_counts
from sppo.rundir.tables import ResponsesRow, read_rows
from sppo.rundir.trends import Trend, trends
from sppo.stages.evaluate import Evaluate, evaluate_base, evaluating_oracles
from sppo.stages.iterations import Iteration
from sppo.stages.iterations_table import IterationsTable
from sppo.stages.prompts import all_prompts
from sppo.stages.run import HELD_OUT, Run

_MEASURES = (
    "win_rate_vs_base",
    "win_rate_vs_previous",
    "response_tokens",
    "kl_to_base",
    "kl_interval",
    "truncated_share",
    "missing_end_of_turn",
    "unfinished_thoughts",
    "tokens_without_text",
    "prompts_left_out",
    "repetition",
    "by_oracle",
    "tasks",
)
_SAMPLED = (
    "responses_drawn",
    "response_tokens",
    "truncated_share",
    "missing_end_of_turn",
    "unfinished_thoughts",
    "tokens_without_text",
)
_EXAMPLES = 3
_EXAMPLE_LENGTH = 600


class Summary:
    """The iterations that a run has played, shown on the terminal and kept in summary.json."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.played: list[Iteration] = []
        self.base = evaluate_base(run)
        self._table = IterationsTable(by_oracle=len(evaluating_oracles(run.recipe)) > 1)
        # A finished run shows the whole table once; a run in progress shows each row as soon as it is known.
        self._shows_progress = len(self._known()) < run.recipe.iterations

    @property
    def count(self) -> int:
        """The number of iterations that have been added."""
        return len(self.played)

    def show_head(self) -> None:
        """Show the head of the table, and the base policy's row."""
        if self._shows_progress:
            self.run.terminal.say(self._table.head(), "bold")
            self.run.terminal.say(self._base_row())

    def add(self, iteration: Iteration, *, show: bool = True) -> None:
        """Show the row of an iteration, and write summary.json unless it holds later iterations already."""
        self.played.append(iteration)
        if not show:
            return
        if self._shows_progress:
            self.run.terminal.say(self._row(iteration))
            for remark in (*self._lost_counts(iteration), *remarks(self.row(iteration))):
                self.run.terminal.note(remark)
            for warning in (*self.row(iteration)["trends"], *iteration.warnings):
                self.run.terminal.warn(f"WARNING: iteration {iteration.number}: {warning}")
        if len(self.played) > len(self._known()):
            self.write()

    def show_row(self, iteration: Iteration) -> None:
        """Show the row of an iteration by itself, as the result of its evaluation."""
        self.run.terminal.show(self._table.head(), "bold")
        self.run.terminal.show(self._row(iteration))

    def _lost_counts(self, iteration: Iteration) -> list[str]:
        """A sentence about the shards whose line with the oracle's counts was lost before the stage was finished, if there are any."""
        folder = self.run.folder
        lost = shards_without_counts(folder, iteration.number)
        if not lost:
            return []
        return [
            f"what the oracle counted for {', '.join(lost)} is missing in {folder.metrics(iteration.number)}, so its counts for"
            " this iteration are left out of summary.json"
        ]

    def _known(self) -> list[Any]:
        return list((read_summary(self.run.folder.path) or {}).get("iterations", []))

    def _row(self, iteration: Iteration) -> str:
        spent = sum(seconds(self.run.folder, iteration.number).values())
        return self._table.row(iteration.number, iteration.measures, spent)

    def _base_row(self) -> str:
        return self._table.base(self.base.record(), sum(seconds(self.run.folder, HELD_OUT).values()))

    def _introduction(self) -> str:
        """A paragraph about the run and the columns of the table."""
        recipe = self.run.recipe
        held_out, *trained = [prompts.record()["prompts"] for prompts in all_prompts(self.run)]
        k = f"K = {recipe.sampling.k}; " if recipe.algorithm.samples else ""
        counts = " + ".join(map(str, trained))
        noun = "prompt" if trained == [1] else "prompts"
        said = [
            f"{recipe.policy.model}: {counted_text(recipe.iterations, 'iteration')} over {counts} {noun},"
            f" {k}{settings_text(recipe.algorithm)}."
        ]
        held_out_prompts = counted_text(held_out, "held-out prompt")
        if not evaluating_oracles(recipe):
            said.append(f"There is no oracle, hence no win rates. Measured on {held_out_prompts}:")
        else:
            oracle = recipe.needed_held_out_oracle("win rates")
            kind = "held-out " if recipe.evaluation.oracle is not None else ""
            said.append(
                f"Win rates by the {kind}{oracle.type} oracle on {held_out_prompts}, with"
                f" {recipe.evaluation.confidence:.0%} intervals by bootstrap over prompts below them;"
            )
        if self._table.by_oracle and recipe.oracle is not None:
            said.append(
                f"by oracle: the win rate against the base by the {recipe.oracle.type} oracle that self-play learns from;"
            )
        said.append(
            "tokens per response, KL to the base in nats per response, share of responses truncated at the limit, and"
            " the seconds that the iteration took."
        )
        return textwrap.fill(" ".join(said), 80, break_on_hyphens=False)

    def write(self) -> dict[str, Any]:
        """Write summary.json for the iterations so far, and each row into the metrics.jsonl of its iteration."""
        run = self.run
        rows: list[dict[str, Any]] = []
        policy, accepted = run.base.folder, self.base
        for iteration in self.played:
            rows.append(self.row(iteration))
            if not iteration.alarms or run.recipe.guard.on_failure == "keep":
                policy, accepted = iteration.train.files.folder, iteration.evaluate
            line = {"stage": "summary", **rows[-1]}
            if line not in run.folder.read_metrics(iteration.number):
                run.folder.forget_metrics(iteration.number, "summary")
                run.folder.log(iteration.number, line)
        base, prompts = self.base.record(), all_prompts(run)[0].record()
        measures = (*_SAMPLED[1:], "repetition", "tasks")
        content = {
            "iterations": rows,
            "policy": str(policy),
            "base": {
                "policy": str(run.base.folder),
                **{name: base[name] for name in measures if name in base},
                "seconds": seconds(run.folder, HELD_OUT),
            },
            "prompts": {name: prompts[name] for name in ("read", "skipped", "doubled_bos")},
            "examples": _examples(self.base, accepted, seed=run.recipe.seed),
        }
        content["metrics"] = {
            str(number): digest_of_lines(run.folder.read_metrics(number))
            for number in (HELD_OUT, *(iteration.number for iteration in self.played))
        }
        path = run.folder.path / "summary.json"
        if read_record(path) != content:
            write_record(path, content)
        return content

    def _trends(self) -> list[Trend]:
        """What the iterations so far show together."""
        return trends([iteration.measures for iteration in self.played], self.base.record())

    def row(self, iteration: Iteration) -> dict[str, Any]:
        """The entry of an iteration in summary.json."""
        record = iteration.measures
        row: dict[str, Any] = {
            "iteration": iteration.number,
            **{name: record[name] for name in _MEASURES if name in record},
            "seconds": seconds(self.run.folder, iteration.number),
        }
        if iteration.sample is not None:
            sampled = iteration.sample.record()
            row["sampled"] = {name: sampled[name] for name in _SAMPLED if name in sampled}
        if iteration.annotate is not None:
            row["cyclic_triples"] = iteration.annotate.record()["cyclic_triples"]
        return {
            **row,
            "sampler_deviation": iteration.select.record()["sampler_deviation"],
            "oracle": oracle_counts(self.run.folder, iteration.number),
            "trained": record["trained"],
            "alarms": iteration.alarms,
            "trends": [trend.sentence for trend in self._trends() if trend.iteration == iteration.number],
            "warnings": iteration.warnings,
        }

    def finish(self) -> dict[str, Any]:
        """Show the whole table with its warnings, three examples of before and after, and where the policy lies."""
        terminal, content = self.run.terminal, self.write()
        terminal.show(f"{self._introduction()}\n")
        terminal.show(self._table.head(), "bold")
        terminal.show(self._base_row())
        for iteration in self.played:
            terminal.show(self._row(iteration))
        rows = content["iterations"]
        for remark in said_once((row["iteration"], remark) for row in rows for remark in remarks(row)):
            terminal.show(f"note: {remark}", "yellow")
        reasons = (
            (row["iteration"], reason)
            for row in rows
            for reason in (*row["alarms"], *row["trends"], *row["warnings"])
        )
        for reason in said_once(reasons):
            terminal.show(f"WARNING: {reason}", "bold yellow")
        for example in content["examples"]:
            terminal.show(f"\nprompt  {_shown(example['prompt'])}", "bold")
            terminal.show(f"before  {_shown(example['before'])}")
            terminal.show(f"after   {_shown(example['after'])}", "green")
        shown = storage.shown(self.run.folder.path)
        terminal.show(f"\nThe policy is in {content['policy']}; talk to it with: sppo chat {shown}")
        terminal.show_json(content)
        return content


def _examples(base: Evaluate, after: Evaluate, *, seed: int) -> list[dict[str, str]]:
    """The first responses of the base and of the accepted policy to a few held-out prompts, chosen by the seed."""
    chosen: list[list[ResponsesRow]] = []
    for evaluation in (base, after):
        rows = [row for path in evaluation.responses.files.shards() for row in read_rows(path, ResponsesRow)]
        rows.sort(key=lambda row: randomness.digest("example", seed, row.prompt_id))
        chosen.append(rows[:_EXAMPLES])
    return [
        {
            "prompt_id": before.prompt_id,
            "prompt": before.messages[-1]["content"],
            "before": before.texts[0],
            "after": later.texts[0],
        }
        for before, later in zip(*chosen, strict=True)
    ]


def _shown(text: str) -> str:
    shown = printable(text if len(text) <= _EXAMPLE_LENGTH else text[: _EXAMPLE_LENGTH - 3] + "...")
    return shown.strip().replace("\n", "\n        ")
