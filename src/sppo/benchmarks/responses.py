"""A policy answers the questions of a benchmark, each turn after its own answers to the turns before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.benchmarks.outputs import excerpt
from sppo.benchmarks.participants import Participant
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.progress import Terminal
from sppo.recipe import Sampling
from sppo.rundir.folder import RunError
from sppo.rundir.shards import read_shard, table
from sppo.rundir.tables import TOKEN_IDS
from sppo.sampling import Response, Sampler

GREEDY = 1e-4
"""The temperature that stands for 0: the most probable token is the limit of a vanishing one."""
_SHARD = 32
_TURN = pa.struct([("text", pa.string()), ("token_ids", TOKEN_IDS), ("finish_reason", pa.string())])
RESPONSES = pa.schema(
    [("question_id", pa.string()), ("choices", pa.list_(pa.struct([("turns", pa.list_(_TURN))])))]
)
"""Each choice is a whole conversation's answers. `finish_reason` is `stop`, `length` where an answer was cut, or
`no_room` where the conversation had grown too long to be answered at all; the text is then empty."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: within the benchmark.
        turns: the user's messages.
        temperature: of its answers where the benchmark says so; None: the decoding's.
    """

    id: str
    turns: tuple[str, ...]
    temperature: float | None = None

    @property
    def shown(self) -> str:
        """For messages."""
        return f"question {self.id} ({excerpt(self.turns[0], 40)})"


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn.

    Attributes:
        sampling: as in a recipe; its `k` plays no part here.
        seed: of the draws.
        dtype: of the weights; None: bfloat16 on an accelerator, float32 without.
        system: a system message; None: none.
    """

    sampling: Sampling
    seed: int = 0
    dtype: str | None = None
    system: str | None = None

    @property
    def weights_dtype(self) -> str:
        """The weights' type on this machine."""
        return self.dtype or ("float32" if policies.default_device() == "cpu" else "bfloat16")

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, for the record."""
        return {
            "sampling": self.sampling.model_dump(exclude={"k", "dtype"}),
            "seed": self.seed,
            "dtype": self.weights_dtype,
            "system": self.system,
        }


class TextResponse(NamedTuple):
    """One answer."""

    text: str
    tokens: int
    finish_reason: str


def responses_stage(
    home: Path,
    benchmark: str,
    participant: Participant,
    questions: Sequence[Question],
    decoding: Decoding,
    n: int,
) -> EvaluationStage:
    """Where a policy's answers lie and what they depend on."""
    settings = {
        **decoding.identity(),
        "questions": [[question.id, *question.turns, question.temperature] for question in questions],
        "choices": n,
    }
    title = f"{benchmark}, {participant.name}: responses"
    return evaluation_stage(
        home / participant.file_name, title, "responses", settings, [participant.fingerprint]
    )


def respond(
    home: Path,
    benchmark: str,
    participant: Participant,
    questions: Sequence[Question],
    decoding: Decoding,
    terminal: Terminal,
    *,
    n: int = 1,
) -> tuple[list[list[list[TextResponse]]], EvaluationStage]:
    """A policy's answers, as far as they are not there already.

    Args:
        home: the evaluation's folder.
        benchmark: its name.
        participant: a policy.
        questions: of the benchmark.
        decoding: how answers are drawn.
        terminal: where progress is shown.
        n: choices for each question.

    Returns:
        For each question, in order, n choices of an answer for each turn; and the finished stage.

    Raises:
        RunError: a question is too long for the policy.
        sppo.policy.chat_format.ChatError: a question has a special token in its text, or the template refuses it.
    """
    found = responses_stage(home, benchmark, participant, questions, decoding, n)
    if not found.is_done():
        _Responding(found, benchmark, participant, questions, decoding, terminal, n).run()
    rows = {row["question_id"]: row for path in found.shards() for row in read_shard(path).to_pylist()}
    return [
        [
            [
                TextResponse(turn["text"], len(turn["token_ids"]), turn["finish_reason"])
                for turn in choice["turns"]
            ]
            for choice in rows[question.id]["choices"]
        ]
        for question in questions
    ], found


def empty_share(texts: Sequence[str]) -> float:
    """How many of some texts are empty or blank."""
    return sum(not text.strip() for text in texts) / len(texts)


def shortcomings(answers: Sequence[Sequence[Sequence[TextResponse]]]) -> dict[str, float]:
    """What answers lack: shares of those that are empty, cut, or had no room, and the mean length in tokens."""
    flat = [one for choices in answers for turns in choices for one in turns]
    return {
        "response_tokens": sum(one.tokens for one in flat) / len(flat),
        "truncated_share": sum(one.finish_reason == "length" for one in flat) / len(flat),
        "empty_share": empty_share([one.text for one in flat]),
        "no_room": float(sum(one.finish_reason == "no_room" for one in flat)),
    }


class _Responding:
    """Computes the missing shards of one policy's responses."""

    def __init__(
        self,
        found: EvaluationStage,
        benchmark: str,
        participant: Participant,
        questions: Sequence[Question],
        decoding: Decoding,
        terminal: Terminal,
        n: int,
    ) -> None:
        self.stage, self.benchmark, self.participant, self.n = found, benchmark, participant, n
        self.decoding, self.terminal = decoding, terminal
        self.chat = chat_format.load(str(participant.path))
        self.room = policies.context_length(participant.path) - decoding.sampling.max_new_tokens
        # a shard has one temperature, so that one sampler at a time is loaded
        ordered = sorted(questions, key=lambda question: self._temperature(question))
        self.shards: list[list[Question]] = []
        for question in ordered:
            same = self.shards and self._temperature(self.shards[-1][0]) == self._temperature(question)
            if not same or len(self.shards[-1]) == _SHARD:
                self.shards.append([])
            self.shards[-1].append(question)
        self._sampler: tuple[float, Sampler] | None = None

    def run(self) -> None:
        for question in (question for shard in self.shards for question in shard):
            length = len(self._render(question, [{"role": "user", "content": question.turns[0]}]))
            if length > self.room:
                raise RunError(
                    f"{self.stage.title}: {question.shown} has {length} tokens, and"
                    f" {self.participant.name} takes {max(self.room, 0)} beside an answer of"
                    f" {self.decoding.sampling.max_new_tokens}; lower max_new_tokens of --sampling"
                )
        total = sum(len(shard) for shard in self.shards)
        with self.terminal.bar(self.stage.title, total, "questions") as advance:

            def work(number: int) -> pa.Table:
                rows = self._respond(self.shards[number])
                advance(len(rows))
                return table(rows, RESPONSES)

            def kept(number: int, there: bool) -> None:
                if there:
                    advance(len(self.shards[number]))

            self.stage.publish(self.stage.run_shards([() for _ in self.shards], work, kept))

    def _respond(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        sampler = self._load(self._temperature(questions[0]))
        rows: list[dict[str, Any]] = [
            {"question_id": question.id, "choices": [{"turns": []} for _ in range(self.n)]}
            for question in questions
        ]
        key = ("answer", self.decoding.seed, self.benchmark)
        firsts = [
            self._prompt(question, row["choices"][0]) or []
            for question, row in zip(questions, rows, strict=True)
        ]
        drawn = sampler.sample(firsts, [(*key, question.id, 0) for question in questions], self.n)
        for row, responses in zip(rows, drawn, strict=True):
            for choice, response in zip(row["choices"], responses, strict=True):
                choice["turns"].append(self._turn(response))
        for turn in range(1, max(len(question.turns) for question in questions)):
            waiting = [
                (choice, (*key, question.id, turn, number), self._prompt(question, choice))
                for row, question in zip(rows, questions, strict=True)
                for number, choice in enumerate(row["choices"])
                if turn < len(question.turns)
            ]
            fitting = [(prompt, name) for _, name, prompt in waiting if prompt is not None]
            said = iter(sampler.sample([prompt for prompt, _ in fitting], [name for _, name in fitting], 1))
            for choice, _, prompt in waiting:
                choice["turns"].append(self._turn(None if prompt is None else next(said)[0]))
        return rows

    def _turn(self, response: Response | None) -> dict[str, Any]:
        if response is None:
            return {"text": "", "token_ids": [], "finish_reason": "no_room"}
        return {
            "text": self.chat.decode(response.token_ids),
            "token_ids": response.token_ids,
            "finish_reason": response.finish_reason,
        }

    def _prompt(self, question: Question, choice: dict[str, Any]) -> list[int] | None:
        """The conversation so far as token ids; None where no room is left for an answer."""
        messages: list[Message] = []
        for asked, said in zip(question.turns, choice["turns"], strict=False):
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said["text"]}]
        messages.append({"role": "user", "content": question.turns[len(choice["turns"])]})
        ids = self._render(question, messages)
        return ids if len(ids) <= self.room else None

    def _render(self, question: Question, messages: list[Message]) -> list[int]:
        system: list[Message] = (
            [{"role": "system", "content": self.decoding.system}] if self.decoding.system else []
        )
        try:
            return self.chat.render([*system, *messages]).token_ids
        except chat_format.ChatError as error:
            raise chat_format.ChatError(f"{self.stage.title}: {question.shown}: {error}") from error

    def _temperature(self, question: Question) -> float:
        own = self.decoding.sampling.temperature if question.temperature is None else question.temperature
        return max(own, GREEDY)

    def _load(self, temperature: float) -> Sampler:
        if self._sampler is None or self._sampler[0] != temperature:
            from sppo import sampling

            if self._sampler is not None:
                self._sampler[1].close()  # its weights go before the next one's come
            self._sampler = None
            loaded = sampling.load(
                self.decoding.sampling,
                self.participant.path,
                temperature=temperature,
                stop_ids=self.chat.stop_ids,
                decode=self.chat.decode,
                dtype=self.decoding.weights_dtype,
            )
            self._sampler = (temperature, loaded)
        return self._sampler[1]
