"""Sampling with a transformers model in this process.

A prompt goes through the model once for its K responses. A response that has ended makes room for the next one, so
that the batch stays full until no prompt is waiting. Every response has random numbers of its own, so that what is
drawn depends on other responses only through rounding in the matrix products.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo import randomness
from sppo.sampling import FirstToken, Key, PromptBatch, Response, Sampler, SamplingError
from sppo.sampling.drawing import choose
from sppo.sampling.key_values import KeyValues
from sppo.sampling.probe import fastest_right_way, rope_limit
from sppo.sampling.stop_strings import StopStrings
from sppo.sampling.transformers import TransformersSampling

# New prompts are admitted when this share of the rows is free: each admission is a pass of the model by itself, and makes
# a cohort of its own, which attention takes one by one.
_ADMIT_AT = 1 / 8


@dataclass(frozen=True)
class _Waiting:
    """Responses to a prompt that have not begun yet: the numbers from `first` up to, but not including, `stop`."""

    batch: int
    prompt: int
    token_ids: Sequence[int]
    key: Key
    first: int
    stop: int


class TransformersSampler(Sampler):
    """Samples responses from a causal language model of transformers.

    Args:
        model: on its device, in evaluation mode.
        settings: temperature, truncation and lengths.
        stop_ids: tokens that end a response; they belong to it.
        decode: token ids to text, for `settings.stop`.

    Attributes:
        crosses_batches: whether the next batch of prompts begins while responses to the batch before are running. On a
            CPU it does not: what runs side by side moves the last bits of a product, and which batches do would depend
            on where a run was interrupted, but on a CPU an interrupted run ends with the same bytes.
    """

    def __init__(
        self,
        model: Any,
        settings: TransformersSampling,
        stop_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        assert decode is not None or not settings.stop
        self.model = model
        self.settings = settings
        self.stop_ids = torch.tensor(sorted(stop_ids), device=model.device)
        self.stop_strings = StopStrings(tuple(settings.stop), decode or (lambda ids: ""))
        self._key_values = fastest_right_way(model)
        self._rope_limit = rope_limit(model.config)
        self.crosses_batches = model.device.type != "cpu"

    def close(self) -> None:
        """Let go of the model."""
        del self.model

    def stream(
        self,
        batches: Iterable[PromptBatch],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> Iterator[tuple[int, list[list[Response]]]]:
        """See :meth:`sppo.sampling.Sampler.stream`."""
        coming = enumerate(batches)
        unfinished: dict[int, _Batch] = {}
        waiting: deque[_Waiting] = deque()
        rows, running = (
            self._key_values(self.model),
            _Running(self.settings.max_new_tokens, self.model.device),
        )
        logits: Tensor | None = None
        while True:
            while not waiting and (not rows.rows or self._takes_another_batch(rows)):
                number, batch = next(coming, (-1, None))
                if batch is None:
                    break
                self._check_lengths(batch.prompts)
                unfinished[number] = _Batch(len(batch.prompts), k)
                waiting += _longest_first(number, batch, k)
                if not batch.prompts:
                    yield number, []
            if not waiting and not rows.rows:
                return
            begun = self._next(waiting, rows)
            if begun:
                # The prompts' pass gives the logits of their responses' first tokens; these join the running rows'.
                new = rows.admit(
                    [part.token_ids for part in begun],
                    [part.stop - part.first for part in begun],
                    max(len(part.token_ids) for part in begun) + self.settings.max_new_tokens,
                )
                logits = new if logits is None else torch.cat([logits, new])
                running.begin(begun)
            assert logits is not None
            chosen, log_prob = choose(logits, running.uniform(), self.settings)
            ended = running.write(chosen, log_prob, self.stop_ids, self.stop_strings)
            if bool(ended.any()):
                on_response(int(ended.sum()))
                for part, number, response in running.responses(ended):
                    batch_drawn = unfinished[part.batch]
                    batch_drawn.add(part.prompt, number, response)
                    if not batch_drawn.missing:
                        yield part.batch, unfinished.pop(part.batch).responses
                # The last token of a response is never put through the model: nothing is predicted from it. The
                # remaining rows may be in another order, which everything that is kept by row follows.
                order_kept = rows.keep(~ended)
                running.keep(order_kept)
                chosen = chosen[order_kept]
            logits = rows.step(chosen) if rows.rows else None

    def first_tokens(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[FirstToken]:
        """See :meth:`sppo.sampling.Sampler.first_tokens`; prompts of like length go through the model together."""
        wanted = torch.tensor(list(tokens), device=self.model.device)
        waiting = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        found: dict[int, FirstToken] = {}
        while waiting:
            rows, columns = self._key_values(self.model), len(prompts[waiting[0]]) + 1
            count = 1 if rows.one_prompt else rows.room(columns, self.settings.batch_tokens)
            part, waiting = waiting[:count], waiting[count:]
            logits = rows.admit([prompts[index] for index in part], [1] * len(part), columns)
            log_probs = logits.float().log_softmax(dim=-1)
            best_log_probs, best = log_probs.max(dim=-1)
            values = zip(log_probs[:, wanted].tolist(), best.tolist(), best_log_probs.tolist(), strict=True)
            found |= {index: FirstToken(*of) for index, of in zip(part, values, strict=True)}
        return [found[index] for index in range(len(prompts))]

    def _takes_another_batch(self, rows: KeyValues) -> bool:
        """Whether prompts of the next batch may begin beside the responses that are running, and have room."""
        room = rows.room(self.settings.max_new_tokens, self.settings.batch_tokens)
        return self.crosses_batches and room >= _ADMIT_AT * (rows.rows + room)

    def _check_lengths(self, prompts: Sequence[Sequence[int]]) -> None:
        longest, limit = max(map(len, prompts), default=0), self._rope_limit
        if limit is not None and longest + self.settings.max_new_tokens > limit:
            raise SamplingError(
                f"policy.model: its position embedding (RoPE) is another for sequences of more than {limit} tokens, so"
                " that the probability of a token would depend on how long its response becomes; a prompt has"
                f" {longest} tokens and sampling.max_new_tokens is {self.settings.max_new_tokens}. Lower"
                f" sampling.max_new_tokens, or set prompts.max_tokens so that both together are at most {limit}"
            )

    def _next(self, waiting: deque[_Waiting], rows: KeyValues) -> list[_Waiting]:
        """The responses that begin now: all of a prompt's, or a part of them if not even an empty batch holds all."""
        if not waiting:
            return []
        columns = len(waiting[0].token_ids) + self.settings.max_new_tokens
        room = rows.room(columns, self.settings.batch_tokens)
        if rows.rows and room < _ADMIT_AT * (rows.rows + room):
            return []
        begun: list[_Waiting] = []
        while waiting and room > 0 and not (begun and rows.one_prompt):
            part = waiting[0]
            count = part.stop - part.first
            # A prompt is split only where nothing else runs: otherwise it waits, since its keys and values would be
            # computed once for each of its parts.
            if count > room and (begun or rows.rows):
                break
            waiting.popleft()
            taken = min(count, room)
            begun.append(replace(part, stop=part.first + taken))
            if taken < count:
                waiting.appendleft(replace(part, first=part.first + taken))
            room -= taken
        return begun


def _longest_first(number: int, batch: PromptBatch, k: int) -> list[_Waiting]:
    """The responses to a batch; prompts that are padded to a common width are then of like length."""
    order = sorted(range(len(batch.prompts)), key=lambda index: (-len(batch.prompts[index]), index))
    return [_Waiting(number, index, batch.prompts[index], batch.keys[index], 0, k) for index in order]


class _Batch:
    """The responses to a batch that are finished, and the number of those that are missing."""

    def __init__(self, prompts: int, k: int) -> None:
        self.missing = prompts * k
        self._finished: list[list[Response | None]] = [[None] * k for _ in range(prompts)]

    def add(self, prompt: int, number: int, response: Response) -> None:
        self._finished[prompt][number] = response
        self.missing -= 1

    @property
    def responses(self) -> list[list[Response]]:
        """For each prompt its responses, once none is missing."""
        return [[response for response in of_prompt if response is not None] for of_prompt in self._finished]


class _Running:
    """The tokens of the running responses, a row for each response."""

    def __init__(self, steps: int, device: Any) -> None:
        self.steps = steps
        self.device = device
        self.owners: list[tuple[_Waiting, int]] = []
        self.uniforms = torch.zeros((0, steps), dtype=torch.float64, device=device)
        self.tokens = torch.zeros((0, steps), dtype=torch.long, device=device)
        self.log_probs = torch.zeros((0, steps), dtype=torch.float32, device=device)
        self.written = torch.zeros(0, dtype=torch.long, device=device)

    def begin(self, begun: Sequence[_Waiting]) -> None:
        """Add a row for each new response."""
        owners = [(part, number) for part in begun for number in range(part.first, part.stop)]
        # All random numbers of a response are drawn here, from its own key: they do not depend on when it begins, on its
        # row, or on what runs beside it.
        drawn = [randomness.generator(*part.key, number).random(self.steps) for part, number in owners]
        self.owners += owners
        count = len(owners)
        self.uniforms = torch.cat([self.uniforms, torch.from_numpy(np.stack(drawn)).to(self.device)])
        self.tokens = torch.cat([self.tokens, self.tokens.new_zeros((count, self.steps))])
        self.log_probs = torch.cat([self.log_probs, self.log_probs.new_zeros((count, self.steps))])
        self.written = torch.cat([self.written, self.written.new_zeros(count)])

    def uniform(self) -> Tensor:
        """The uniform random number of each row's next token."""
        return self.uniforms.gather(1, self.written[:, None]).squeeze(1)

    def write(self, chosen: Tensor, log_prob: Tensor, stop_ids: Tensor, stop_strings: StopStrings) -> Tensor:
        """Add a token to every row; returns True where it ends the response."""
        place = self.written[:, None]
        self.tokens.scatter_(1, place, chosen[:, None])
        self.log_probs.scatter_(1, place, log_prob[:, None].float())
        self.written = self.written + 1
        self.stopped = torch.isin(chosen, stop_ids)
        if stop_strings.strings:
            tokens, written = self.tokens.tolist(), self.written.tolist()
            ends = [stop_strings.end(ids[:count]) for ids, count in zip(tokens, written, strict=True)]
            self.stopped |= torch.tensor(ends, device=self.device)
        return self.stopped | (self.written == self.steps)

    def responses(self, ended: Tensor) -> list[tuple[_Waiting, int, Response]]:
        """The responses of the rows that have ended, each with its prompt and its number."""
        responses = []
        for row in ended.nonzero().squeeze(1).tolist():
            count = int(self.written[row])
            response = Response(
                self.tokens[row, :count].tolist(),
                "stop" if bool(self.stopped[row]) else "length",
                self.log_probs[row, :count].tolist(),
            )
            responses.append((*self.owners[row], response))
        return responses

    def keep(self, order: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.owners = [self.owners[row] for row in order.tolist()]
        self.uniforms, self.tokens = self.uniforms[order], self.tokens[order]
        self.log_probs, self.written = self.log_probs[order], self.written[order]
