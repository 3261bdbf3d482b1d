"""The time that worker processes spend waiting: between shards, and at the end for the slowest of them.

    python measurements/workers.py [--workers 2] [--shards 24] [--prompts 8]

Its figures stand in docs/experiments.md under "Workers side by side". Workers of one torch thread each do the sampling of
the quickstart (the embedded policy, K = 5). A worker's seconds count from its first shard on; the time in which Python
starts and the model is loaded is printed separately.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sppo.executors.local import Local
from sppo.progress import Terminal
from sppo.prompts import interpret, read_source
from sppo.recipe import PromptSource, parse
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import table
from sppo.rundir.tables import PROMPTS
from sppo.stages.jobs import ShardJob
from sppo.stages.models import Models
from sppo.stages.sample import DrawResponses


@dataclass(frozen=True)
class Timed:
    """A work that writes down when each shard was begun and ended, and by whom."""

    inner: DrawResponses
    folder: Path

    def __call__(self, models, sources, advance):
        models.sampler(None)  # loading is not sampling
        begin = time.time()
        rows = self.inner(models, sources, advance)
        record = {"worker": os.getpid(), "begin": begin, "end": time.time()}
        (self.folder / f"{sources[0].stem}.json").write_text(json.dumps(record))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=8, help="in a shard")
    options = parser.parse_args()
    recipe = parse(
        {
            "cpu_threads": 1,
            "policy": {"model": "tinyworld"},
            "prompts": {"train": "tinyworld/train"},
            "sampling": {"max_new_tokens": 96},
            "oracle": {"type": "panel"},
            "workers": {"sample": options.workers},
        }
    )
    models = Models(recipe)
    source = PromptSource.model_validate({"source": "tinyworld/train"})
    prompts = [interpret(value, source).messages for _, value in read_source(source)]
    prompts = prompts[: options.shards * options.prompts]
    rows = [
        {
            "prompt_id": str(number),
            "messages": messages,
            "prompt_token_ids": models.chat.render(messages).token_ids,
        }
        for number, messages in enumerate(prompts)
    ]
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name))
        source_stage = run.stage("prompts", 1, {}, [], folder="prompts")
        planned = source_stage.plan_shards([[]] * options.shards)
        for number, shard in enumerate(planned):
            start = number * options.prompts
            shard.write(table(rows[start : start + options.prompts], PROMPTS))
        stage = run.stage("sample", 1, {}, [], folder="responses")
        work = Timed(DrawResponses(None, 5, ("sample", 1)), Path(name))
        job = ShardJob(
            "sample",
            "responses",
            "sample",
            work,
            stage.plan_shards([[shard.path] for shard in planned]),
            [5 * options.prompts] * options.shards,
        )
        begin = time.time()
        with Local(recipe) as executor:
            executor.run([job], models, Terminal(), lambda job: None)
        records = [json.loads(path.read_text()) for path in Path(name).glob("part-*.json")]
    report(records, begin)


def report(records: list[dict], begin: float) -> None:
    """What each worker did, and the share of time lost."""
    by_worker = defaultdict(list)
    for record in records:
        by_worker[record["worker"]].append(record)
    last = max(record["end"] for record in records)
    span = busy = tail = 0.0
    for number, (_, own) in enumerate(sorted(by_worker.items())):
        first, end = min(r["begin"] for r in own), max(r["end"] for r in own)
        seconds = sum(r["end"] - r["begin"] for r in own)
        span, busy, tail = span + last - first, busy + seconds, tail + last - end
        print(
            f"worker {number}: {len(own)} shards, {seconds:.1f} s at work, begun after {first - begin:.1f} s"
        )
    print(f"at the end, waiting for the slower: {tail / span:.1%}")
    print(f"between shards: {(span - busy - tail) / span:.1%}")
    print(f"lost in all: {(span - busy) / span:.1%} of {span:.1f} worker-seconds")


if __name__ == "__main__":
    main()
