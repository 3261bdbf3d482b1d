"""The prompts stage: the prompts x are read, checked, tokenised and dealt out over the iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.recipe import PromptSource
from sppo.rundir.folder import StageFolder
from sppo.stages.run import HELD_OUT, Run, source_identity
from sppo.stages.stage import Stage


class Prompts(Stage):
    """The prompts of an iteration; those of iteration 0 are held out."""

    name = "prompts"
    folder_name = "prompts"

    def settings(self) -> Mapping[str, Any]:
        """The sources, how they are dealt out and checked, and the tokenizer."""
        prompts, iterations = self.run.recipe.prompts, self.run.recipe.iterations
        sources = [prompts.train] if isinstance(prompts.train, PromptSource) else prompts.train
        dealt: list[Any] = [prompts.per_iteration, len(sources)]
        if prompts.per_iteration is None and len(sources) == 1:
            dealt.append(prompts.parts or iterations)
        held_out = prompts.held_out
        return {
            "train": [source_identity(source) for source in sources],
            "held_out": held_out if isinstance(held_out, int) else source_identity(held_out),
            "dealt": dealt if self.iteration != HELD_OUT else None,
            "limits": self.run.length_limits,
            "max_tokens": prompts.max_tokens,
            "invalid": prompts.invalid,
            "system": prompts.system,
            "seed": self.run.recipe.seed,
            "shard_prompts": self.run.recipe.shard_prompts,
            "tokenizer": self.run.tokenizer_identity,
        }

    def reads(self) -> Sequence[str]:
        """No input, since prompts come from outside the run."""
        return ()

    def make(self) -> StageFolder:
        """Read all prompts and publish those of this iteration, unless they are published already."""
        if self.is_done():
            return self.files
        split = self.run.split_prompts
        rows = [split.held_out, *split.iterations][self.iteration]
        size = self.run.recipe.shard_prompts
        starts = range(0, rows.num_rows, size)
        shards = self.files.run_shards([() for _ in starts], lambda number: rows.slice(starts[number], size))
        counted = [
            {**shard, "prompts": min(size, rows.num_rows - start)}
            for shard, start in zip(shards, starts, strict=True)
        ]
        self.files.publish(
            counted,
            prompts=rows.num_rows,
            read=split.counts.read,
            doubled_bos=split.counts.doubled_bos,
            skipped=dict(split.counts.skipped),
            first_skipped=split.counts.first_skipped,
        )
        return self.files

    def shards(self) -> list[Path]:
        """The files of the finished stage, in order."""
        return self.files.shards()

    def counts(self) -> list[int]:
        """The number of prompts in each shard, which is the same in every stage of the iteration."""
        return [shard["prompts"] for shard in self.record()["shards"]]


def all_prompts(run: Run) -> list[Prompts]:
    """The prompts stages of the run: the held-out prompts, then those of each iteration."""
    return [Prompts(run, number) for number in range(run.recipe.iterations + 1)]
