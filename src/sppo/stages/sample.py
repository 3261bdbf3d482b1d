"""The sample stage: y_1..K ~ pi_t(. | x) for the prompts of the iteration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks.head_to_head.score import repetition
from sppo.progress import Advance
from sppo.rundir.tables import PromptRow, ResponseRecord, ResponsesRow, read_rows, to_table
from sppo.sampling import PromptBatch, Response, SamplingError
from sppo.sampling.stop_strings import StopStrings
from sppo.stages.jobs import Work
from sppo.stages.models import Models
from sppo.stages.prompts import Prompts
from sppo.stages.run import PolicyState, Run
from sppo.stages.stage import ShardedStage


@dataclass(frozen=True)
class DrawResponses(Work):
    """Draws K responses to every prompt of a shard.

    Attributes:
        policy: the folder of the policy's weights; None: the base.
        k: responses per prompt.
        key: the stage and the iteration, which key the random numbers together with the seed and the prompt.
    """

    policy: Path | None
    k: int
    key: tuple[str, int]

    def __call__(self, models: Models, sources: Sequence[Path], advance: Advance) -> pa.Table:
        """The prompts of the shard with their responses."""
        ((_, table),) = self.stream(models, [sources], advance)
        return table

    def stream(
        self, models: Models, shards: Iterable[Sequence[Path]], advance: Advance
    ) -> Iterator[tuple[int, pa.Table]]:
        """The prompts of each shard with their responses."""
        taken: list[list[PromptRow]] = []

        def batches() -> Iterator[PromptBatch]:
            for sources in shards:
                rows = read_rows(sources[0], PromptRow)
                taken.append(rows)
                keys = [(*self.key, models.recipe.seed, row.prompt_id) for row in rows]
                yield PromptBatch([row.prompt_token_ids for row in rows], keys)

        for number, drawn in models.sampler(self.policy).stream(batches(), self.k, advance):
            yield number, self._table(models, taken[number], drawn)
            taken[number] = []

    def _table(
        self, models: Models, rows: Sequence[PromptRow], drawn: Sequence[Sequence[Response]]
    ) -> pa.Table:
        for row, responses in zip(rows, drawn, strict=True):
            for number, response in enumerate(responses):
                if response.fault is not None:
                    raise SamplingError(
                        f"prompt {row.prompt_id!r}: the engine {models.recipe.sampling.engine} gives response {number}"
                        f" {response.fault}"
                    )
        stop_strings = StopStrings(tuple(models.recipe.sampling.stop), models.chat.decode)
        answered = [
            ResponsesRow(
                row.prompt_id,
                row.messages,
                row.prompt_token_ids,
                row.demonstration,
                [
                    ResponseRecord(
                        response.token_ids,
                        models.chat.answer(stop_strings.trim(models.chat.decode(response.token_ids))) or "",
                        response.finish_reason,
                        response.log_prob,
                        response.token_log_probs,
                    )
                    for response in responses
                ],
            )
            for row, responses in zip(rows, drawn, strict=True)
        ]
        return to_table(answered, ResponsesRow)


class Sample(ShardedStage):
    """The responses of pi_t that the next policy learns from.

    Args:
        run: the run.
        iteration: t.
        prompts: the iteration's prompts.
        policy: pi_t.
    """

    name = "sample"
    folder_name = "responses"
    kind = "sample"
    unit = "responses"

    def __init__(self, run: Run, iteration: int, prompts: Prompts, policy: PolicyState) -> None:
        super().__init__(run, iteration)
        self.prompts = prompts
        self.policy = policy

    @property
    def k(self) -> int:
        """Responses per prompt."""
        return self.run.recipe.sampling.k

    def settings(self) -> Mapping[str, Any]:
        """The settings that responses are drawn with."""
        return self.run.sampling_settings

    def reads(self) -> Sequence[str]:
        """The prompts and pi_t."""
        return (self.prompts.fingerprint, self.policy.fingerprint)

    def sources(self) -> list[list[Path]]:
        """The shard of prompts that each shard is drawn for."""
        return [[path] for path in self.prompts.shards()]

    def units(self) -> list[int]:
        """The number of responses in each shard."""
        return [count * self.k for count in self.prompts.counts()]

    def work(self) -> DrawResponses:
        """Draw the responses to one shard of prompts."""
        return DrawResponses(self.run.weights(self.policy), self.k, (self.name, self.iteration))

    def summary(self, shards: Sequence[Path]) -> Mapping[str, Any]:
        """Lengths, endings and repetition of the responses."""
        return response_statistics(shards, self.run)


def response_statistics(shards: Sequence[Path], run: Run) -> dict[str, Any]:
    """Count the responses in some shards, and average their lengths, endings and repetition.

    Args:
        shards: files of responses.
        run: the run, whose terminal is told of thoughts without an end.

    Returns:
        `responses_drawn`: the number of responses; `response_tokens`: their mean length; `truncated_share`: the share
        that reached the length limit; `missing_end_of_turn`: the number that ended with another token; `repetition`:
        the mean share of their 4-grams that are repeats. With `policy.thought` also `unfinished_thoughts`: the number
        that end within a thought, so that oracles read an empty text. If tokens were drawn that the tokenizer does not
        have, also `tokens_without_text`: their number.
    """
    chat = run.models.chat

    def responses() -> Iterator[ResponseRecord]:
        for path in shards:
            for row in read_rows(path, ResponsesRow):
                yield from row.responses

    count = tokens = truncated = other_end = unfinished = without_text = 0
    repeated = 0.0
    for response in responses():
        ids = response.token_ids
        count += 1
        tokens += len(ids)
        truncated += response.finish_reason == "length"
        other_end += response.finish_reason == "stop" and ids[-1] != chat.end_of_turn
        unfinished += chat.answer(chat.decode(ids)) is None
        without_text += sum(token not in chat.vocabulary for token in ids)
        repeated += repetition(ids)
    if unfinished:
        run.terminal.say(
            f"warning: {unfinished} of {count} responses end within a thought, and oracles read them as empty; raise"
            " sampling.max_new_tokens, or see whether policy.thought names the texts that the policy writes",
            "yellow",
        )
    if without_text:
        run.terminal.say(
            f"warning: {without_text} of {tokens} tokens are rows of the policy's embedding that its tokenizer has no text"
            " for: oracles do not see them, and they are trained on. Remove the rows (model.resize_token_embeddings), or"
            " use the tokenizer that the policy was trained with",
            "yellow",
        )
    return {
        **({"tokens_without_text": without_text} if without_text else {}),
        **({} if chat.thought is None else {"unfinished_thoughts": unfinished}),
        "responses_drawn": count,
        "response_tokens": tokens / count,
        "truncated_share": truncated / count,
        "missing_end_of_turn": other_end,
        "repetition": repeated / count,
    }
