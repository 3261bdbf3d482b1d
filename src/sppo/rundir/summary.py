"""Figures of a run that are read back from its metrics, and settings in words."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sppo.progress import counted_text
from sppo.recipe import Section
from sppo.rundir.folder import RunFolder, read_stage_record

STAGES = ("sample", "annotate", "select", "train", "evaluate")


def seconds(run: RunFolder, iteration: int) -> dict[str, float]:
    """The seconds spent in each stage of an iteration: resumed work counts, work that a kill interrupted does not."""
    spent = dict.fromkeys(STAGES, 0.0)
    for record in run.read_metrics(iteration):
        if record.get("stage") in spent and "seconds" in record:
            spent[record["stage"]] += record["seconds"]
    return {name: round(value, 2) for name, value in spent.items()}


def oracle_counts(run: RunFolder, iteration: int) -> dict[str, int]:
    """The oracle's counts while it annotated an iteration, such as truncated texts; empty if those of a shard are lost."""
    by_shard, missing = _counts_by_shard(run, iteration)
    total: Counter[str] = Counter()
    for counts in () if missing else by_shard.values():
        total.update(counts)
    return dict(total)


def shards_without_counts(run: RunFolder, iteration: int) -> list[str]:
    """The shards that the oracle has annotated and whose counts are lost, while those of other shards are there."""
    return _counts_by_shard(run, iteration)[1]


def _counts_by_shard(run: RunFolder, iteration: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """The oracle's counts for each shard, and the annotated shards that have none although others do."""
    by_shard = {
        record["shard"]: record["oracle"]
        for record in run.read_metrics(iteration)
        if record.get("stage") == "annotate" and "oracle" in record
    }
    record = read_stage_record(run.iteration(iteration) / "annotate.json") or {"shards": []}
    names = [shard["name"] for shard in record["shards"]] if by_shard else []
    return by_shard, [name for name in names if name not in by_shard]


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Sentences about what an iteration left out, truncated or did not finish.

    Args:
        row: the iteration's entry in summary.json. Of its keys, these are counted here: `sampled.unfinished_thoughts` and
            `unfinished_thoughts` (the responses that are learnt from, and the held-out ones), `missing_end_of_turn`,
            `prompts_left_out` (held-out prompts without a win rate), and the oracle's `pairs_left_out`,
            `one_order_pairs` and `*_truncated`.
    """
    counted, sampled = row.get("oracle") or {}, row.get("sampled") or {}
    empty = "within a thought, so that oracles read an empty text"
    silent = "because the oracle gives no verdict"
    numbers = (
        (sampled.get("unfinished_thoughts"), "response", f"that it learns from ended {empty}"),
        (row.get("unfinished_thoughts"), "held-out response", f"ended {empty}"),
        (row.get("missing_end_of_turn"), "held-out response", "ended without the template's end of turn"),
        (counted.get("pairs_left_out"), "pair", f"of the responses that it learns from left out, {silent}"),
        (
            counted.get("one_order_pairs"),
            "pair",
            "of the responses that it learns from judged in one order only",
        ),
        (row.get("prompts_left_out"), "held-out prompt", f"without a win rate, {silent}"),
    )
    texts = [f"{counted_text(number, noun)} {text}" for number, noun, text in numbers if number]
    for kind in ("prompt", "response", "text"):
        if truncated := counted.get(f"{kind}s_truncated"):
            texts.append(
                f"{truncated:,} of {counted_text(counted[f'{kind}s'], kind)} exceeded the oracle's limit and were"
                " truncated there"
            )
    return texts


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def settings_text(section: Section) -> str:
    """A section of the recipe that has a type, in one line."""
    values = section.model_dump(exclude={"type"}, exclude_none=True)
    shown = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    ]
    kind: str = section.model_dump()["type"]
    return f"{kind} ({', '.join(shown)})" if shown else kind
