"""The figures of a run: the row that is shown after each iteration, summary.json, and three examples at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from sppo import randomness
from sppo.progress import printable
from sppo.rundir import storage
from sppo.rundir.reader import read_summary
from sppo.rundir.records import read_record, write_record
from sppo.rundir.summary import STAGES, oracle_counts, seconds, settings_text
from sppo.rundir.tables import ResponsesRow, read_rows
from sppo.stages.evaluate import Evaluate, evaluate_base, evaluating_oracles
from sppo.stages.iterations import Iteration
from sppo.stages.prompts import all_prompts
from sppo.stages.run import HELD_OUT, Run

_COLUMNS = (
    ("iteration", 9),
    ("vs base", 20),
    ("vs previous", 20),
    ("tokens", 6),
    ("KL", 5),
    ("truncated", 9),
    ("trained on", 12),
    (f"seconds ({'+'.join(STAGES)})", 0),
)
_BY_ORACLE = ("vs base by oracle", 20)
_MEASURES = (
    "win_rate_vs_base",
    "win_rate_vs_previous",
    "response_tokens",
    "kl_to_base",
    "truncated_share",
    "missing_end_of_turn",
    "repetition",
    "by_oracle",
)
_EXAMPLES = 3
_EXAMPLE_LENGTH = 600


class Summary:
    """The iterations that a run has played, shown on the terminal and kept in summary.json."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.played: list[Iteration] = []
        self.base = evaluate_base(run)

    @property
    def count(self) -> int:
        """The number of iterations that have been added."""
        return len(self.played)

    def show_header(self) -> None:
        """Explain the table, and show its head and the base policy's row."""
        recipe, terminal = self.run.recipe, self.run.terminal
        held_out, *trained = [prompts.record()["prompts"] for prompts in all_prompts(self.run)]
        k = f"K = {recipe.sampling.k}; " if recipe.algorithm.samples else ""
        terminal.say(
            f"{recipe.policy.model}: {recipe.iterations} iterations over {' + '.join(map(str, trained))} prompts,"
            f" {k}{settings_text(recipe.algorithm)}.\n{self._measured(held_out)};\ntokens per response, KL to the"
            " base in nats per response, share of responses truncated at the limit,\nprompts that were trained on.\n"
        )
        if (
            recipe.evaluation.oracle is not None
            and recipe.oracle is not None
            and recipe.algorithm.preferences
        ):
            terminal.say(
                f"Self-play learns from the {recipe.oracle.type} oracle, whose own win rates stand beside those of the"
                " held-out oracle.\n"
            )
        columns = self._columns()
        terminal.say(_line([title for title, _ in columns], columns), "bold")
        empty = [""] * (len(columns) - 6)
        record = self.base.record()
        terminal.say(
            _line(["base", *empty, *_response_cells(record, kl=None), "", self._seconds(HELD_OUT)], columns)
        )

    def _measured(self, held_out: int) -> str:
        recipe = self.run.recipe
        if not evaluating_oracles(recipe):
            return f"There is no oracle, hence no win rates. Measured on the responses to {held_out} held-out prompts"
        oracle = recipe.needed_held_out_oracle("win rates")
        held_out_oracle = "held-out " if recipe.evaluation.oracle is not None else ""
        return (
            f"Win rates by the {held_out_oracle}{oracle.type} oracle on {held_out} held-out prompts, with {recipe.evaluation.confidence:.0%} intervals by"
            " bootstrap over prompts"
        )

    def add(self, iteration: Iteration, *, show: bool = True) -> None:
        """Show the row of an iteration, and write summary.json unless it holds later iterations already."""
        self.played.append(iteration)
        if not show:
            return
        run, record = self.run, iteration.measures
        trained = record["trained"]
        by_oracle = [_interval_cell(record["by_oracle"]["win_rate_vs_base"])] if "by_oracle" in record else []
        cells = [
            str(iteration.number),
            _interval_cell(record.get("win_rate_vs_base")),
            _interval_cell(record.get("win_rate_vs_previous")),
            *by_oracle,
            *_response_cells(record, kl=record["kl_to_base"]),
            f"{trained['trained_prompts']} of {trained['prompts']}",
            self._seconds(iteration.number),
        ]
        run.terminal.say(_line(cells, self._columns()))
        self._note_truncated_texts(iteration.number)
        if record["missing_end_of_turn"]:
            run.terminal.say(
                f"note: {record['missing_end_of_turn']} held-out responses ended without the template's end of turn",
                "yellow",
            )
        for warning in iteration.warnings:
            run.terminal.say(f"WARNING: iteration {iteration.number}: {warning}", "bold yellow")
        known = (read_summary(run.folder.path) or {}).get("iterations", [])
        if len(self.played) > len(known):
            self.write()

    def _note_truncated_texts(self, number: int) -> None:
        counted = oracle_counts(self.run.folder, number)
        for kind in ("prompts", "responses", "texts"):
            if counted.get(f"{kind}_truncated"):
                self.run.terminal.say(
                    f"note: {counted[f'{kind}_truncated']} of {counted[kind]} {kind} were longer than the oracle's limit"
                    " and truncated there",
                    "yellow",
                )

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
        measures = ("response_tokens", "truncated_share", "missing_end_of_turn", "repetition")
        content = {
            "iterations": rows,
            "policy": str(policy),
            "base": {
                "policy": str(run.base.folder),
                **{name: base[name] for name in measures},
                "seconds": seconds(run.folder, HELD_OUT),
            },
            "prompts": {name: prompts[name] for name in ("read", "skipped", "doubled_bos")},
            "examples": _examples(self.base, accepted, seed=run.recipe.seed),
        }
        path = run.folder.path / "summary.json"
        if read_record(path) != content:
            write_record(path, content)
        return content

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
            names = ("responses_drawn", "response_tokens", "truncated_share", "missing_end_of_turn")
            row["sampled"] = {name: sampled[name] for name in names}
        if iteration.annotate is not None:
            row["cyclic_triples"] = iteration.annotate.record()["cyclic_triples"]
        return {
            **row,
            "sampler_deviation": iteration.select.record()["sampler_deviation"],
            "oracle": oracle_counts(self.run.folder, iteration.number),
            "trained": record["trained"],
            "alarms": iteration.alarms,
            "warnings": iteration.warnings,
        }

    def finish(self) -> dict[str, Any]:
        """Show three examples of before and after, and where the policy lies."""
        terminal, content = self.run.terminal, self.write()
        for example in content["examples"]:
            terminal.say(f"\nprompt  {_shown(example['prompt'])}", "bold")
            terminal.say(f"before  {_shown(example['before'])}")
            terminal.say(f"after   {_shown(example['after'])}", "green")
        shown = storage.shown(self.run.folder.path)
        terminal.say(f"\nThe policy is in {content['policy']}; talk to it with: sppo chat {shown}")
        return content

    def _columns(self) -> tuple[tuple[str, int], ...]:
        beside = (_BY_ORACLE,) if len(evaluating_oracles(self.run.recipe)) > 1 else ()
        return (*_COLUMNS[:3], *beside, *_COLUMNS[3:])

    def _seconds(self, iteration: int) -> str:
        return " + ".join(f"{value:.0f}" for value in seconds(self.run.folder, iteration).values())


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


def _line(cells: list[str], columns: Sequence[tuple[str, int]]) -> str:
    return "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, columns, strict=True)).rstrip()


def _interval_cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _response_cells(record: Mapping[str, Any], kl: float | None) -> list[str]:
    return [
        f"{record['response_tokens']:.1f}",
        "" if kl is None else f"{kl:.2f}",
        f"{record['truncated_share']:.1%}",
    ]


def _shown(text: str) -> str:
    shown = printable(text if len(text) <= _EXAMPLE_LENGTH else text[: _EXAMPLE_LENGTH - 3] + "...")
    return shown.strip().replace("\n", "\n        ")
