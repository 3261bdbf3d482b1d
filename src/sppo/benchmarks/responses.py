"""Policies respond to the questions of a benchmark, each turn after their own responses to the turns before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sppo.benchmarks import best_of
from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.evaluation_stage import EvaluationStage
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.question_files import Question, read_responses, write_responses
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.policy.opening import OpenPolicy
from sppo.progress import counted_text
from sppo.recipe import Sampling
from sppo.recipe.sampling import GREEDY
from sppo.rundir.folder import RunError
from sppo.rundir.shards import read_shard, table
from sppo.rundir.tables import TOKEN_IDS
from sppo.sampling import Response, Sampler

_TOGETHER = 128
"""The responses of a shard, which are sampled side by side as far as `batch_tokens` allows: fewer leave a processor waiting for
the weights, and more are lost when an evaluation is interrupted."""
_TURN = pa.struct([("text", pa.string()), ("token_ids", TOKEN_IDS), ("finish_reason", pa.string())])
RESPONSES = pa.schema(
    [("question_id", pa.string()), ("choices", pa.list_(pa.struct([("turns", pa.list_(_TURN))])))]
)
"""Each choice holds the responses of a whole conversation. `finish_reason` is `stop`, `length` for a truncated response,
or `no_room` where the conversation had become too long for another response, whose text is then empty."""


@dataclass(frozen=True)
class Decoding:
    """The settings that responses are sampled with.

    Attributes:
        sampling: the settings as in a recipe; `k` is not used.
        seed: the random seed.
        dtype: the data type of the weights; None: bfloat16 on an accelerator, float32 without.
        system: a system message; None: none.
    """

    sampling: Sampling
    seed: int = 0
    dtype: str | None = None
    system: str | None = None

    @property
    def weights_dtype(self) -> str:
        """The data type of the weights on this machine."""
        return self.dtype or policies.default_dtype()

    def identity(self) -> dict[str, Any]:
        """The settings that the responses depend on, for fingerprints and results."""
        return {
            "sampling": self.sampling.model_dump(exclude={"k", "dtype"}),
            "seed": self.seed,
            "dtype": self.weights_dtype,
            "system": self.system,
        }


class TextResponse(NamedTuple):
    """One response to one turn."""

    text: str
    tokens: int
    finish_reason: str


class CollectedResponses(NamedTuple):
    """A participant's responses to all questions.

    Attributes:
        turns: for each question the text of the response to each turn.
        tokens: for each question the number of tokens in all turns; None where a file does not say.
        stage: the stage that holds them; None where they come from a file.
        fingerprint: the fingerprint of what judgments of them depend on.
        shortcomings: how many are empty, truncated or without room, as shares.
        path: the file of a policy's responses in the benchmark's format; None where there is none.
    """

    turns: list[tuple[str, ...]]
    tokens: list[int | None]
    stage: EvaluationStage | None
    fingerprint: str
    shortcomings: dict[str, float]
    path: Path | None = None


def only_responses(
    evaluation: Evaluation,
    participants: Sequence[Participant],
    respond: Callable[[Participant], CollectedResponses],
) -> None:
    """Let policies respond without any judging, and show where their responses lie in the benchmark's format.

    Raises:
        RunError: a participant is a file of responses, or there is none.
    """
    if not participants or not all(participant.is_policy for participant in participants):
        raise RunError("--responses-only: name policies, which respond; files have their responses already")
    rows = []
    for participant in participants:
        collected = respond(participant)
        name, found = evaluation.name(participant), collected.shortcomings
        rows.append({"name": name, "responses": str(collected.path), **found})
        evaluation.terminal.show(
            f"{name}: {counted_text(len(collected.turns), 'response')}, {found['response_tokens']:.1f} tokens on average,"
            f" {found['truncated_share']:.1%} truncated, in {collected.path}"
        )
    evaluation.terminal.show_json(rows)


def collect_responses(
    evaluation: Evaluation, participant: Participant, questions: Sequence[Question], *, with_tokens: bool
) -> CollectedResponses:
    """The responses to a benchmark with a file of questions: sampled from a policy, or read from a file.

    A policy's responses are written in the benchmark's own format as well.

    Args:
        evaluation: the benchmark's settings.
        participant: a policy, or a file of responses.
        questions: the benchmark's questions.
        with_tokens: whether the format is Arena-Hard's, which counts tokens.
    """
    if not participant.is_policy:
        written = read_responses(participant.path, participant.name)
        turns = written.to(questions)
        empty = {"empty_share": empty_share([text for texts in turns for text in texts])}
        counts = [written.tokens.get(question.id) for question in questions]
        return CollectedResponses(turns, counts, None, participant.fingerprint, empty)
    collected = sample_best(evaluation, participant, questions)
    assert collected.stage is not None
    path = collected.stage.folder / "model_answer" / f"{participant.file_name}.jsonl"
    tokens = [count or 0 for count in collected.tokens] if with_tokens else None
    write_responses(path, participant.file_name, questions, collected.turns, tokens)
    return collected._replace(path=path)


def sample_best(
    evaluation: Evaluation, participant: Participant, questions: Sequence[Question]
) -> CollectedResponses:
    """A policy's response to each question; of several responses the one that the evaluation's oracle chooses."""
    responses, stage = respond(evaluation, participant, questions, n=evaluation.best_of)
    chosen = [0] * len(questions)
    if evaluation.chooser is not None:
        config = evaluation.chooser
        stage = evaluation.stage(
            participant, "best of n", "choices", best_of.settings(config), [stage.fingerprint]
        )
        prompts = [question.turns[0] for question in questions]
        candidates = [[turns[0].text for turns in choices] for choices in responses]
        ranked = best_of.choose(stage, config, prompts, candidates, evaluation.terminal)
        chosen = [best for best, _ in ranked]
    kept = [choices[number] for choices, number in zip(responses, chosen, strict=True)]
    return CollectedResponses(
        [tuple(response.text for response in turns) for turns in kept],
        [sum(response.tokens for response in turns) for turns in kept],
        stage,
        stage.fingerprint,
        shortcomings([response for turns in kept for response in turns]),
    )


def respond(
    evaluation: Evaluation, participant: Participant, questions: Sequence[Question], *, n: int = 1
) -> tuple[list[list[list[TextResponse]]], EvaluationStage]:
    """A policy's responses; only those that are missing are sampled.

    Args:
        evaluation: the benchmark's settings.
        participant: a policy.
        questions: the benchmark's questions.
        n: the number of responses (choices) to each question.

    Returns:
        For each question, in order, n choices of a response to each turn; and the finished stage.

    Raises:
        RunError: a question is too long for the policy.
        sppo.policy.chat_format.ChatError: a question has a special token in its text, or the template refuses it.
    """
    settings = {
        **evaluation.decoding.identity(),
        "questions": [[str(question.id), *question.turns, question.temperature] for question in questions],
        "choices": n,
        "together": _TOGETHER,
    }
    stage = evaluation.stage(participant, "responses", "responses", settings, [participant.fingerprint])
    if not stage.is_done():
        assert participant.policy is not None
        _Responding(stage, evaluation, participant.policy, participant.name, questions, n).run()
    rows = {row["question_id"]: row for path in stage.shards() for row in read_shard(path).to_pylist()}
    return [
        [
            [
                TextResponse(turn["text"], len(turn["token_ids"]), turn["finish_reason"])
                for turn in choice["turns"]
            ]
            for choice in rows[str(question.id)]["choices"]
        ]
        for question in questions
    ], stage


def empty_share(texts: Sequence[str]) -> float:
    """The share of texts that are empty or blank."""
    return sum(not text.strip() for text in texts) / len(texts)


def shortcomings(responses: Sequence[TextResponse]) -> dict[str, float]:
    """The mean length in tokens, the shares of truncated and empty responses, and how many found no room."""
    count = len(responses)
    return {
        "response_tokens": sum(response.tokens for response in responses) / count,
        "truncated_share": sum(response.finish_reason == "length" for response in responses) / count,
        "empty_share": empty_share([response.text for response in responses]),
        "no_room": float(sum(response.finish_reason == "no_room" for response in responses)),
    }


class _Responding:
    """Computes the missing shards of one policy's responses."""

    def __init__(
        self,
        stage: EvaluationStage,
        evaluation: Evaluation,
        policy: OpenPolicy,
        name: str,
        questions: Sequence[Question],
        n: int,
    ) -> None:
        self.stage, self.evaluation, self.policy, self.name, self.n = stage, evaluation, policy, name, n
        self.decoding = evaluation.decoding
        self.room = policy.context_length - self.decoding.sampling.max_new_tokens
        # a shard has one temperature, so that one sampler at a time is loaded
        ordered = sorted(questions, key=self._temperature)
        self.shards: list[list[Question]] = []
        for question in ordered:
            same = self.shards and self._temperature(self.shards[-1][0]) == self._temperature(question)
            if not same or self.n * (len(self.shards[-1]) + 1) > _TOGETHER:
                self.shards.append([])
            self.shards[-1].append(question)
        self._sampler: tuple[float, Sampler] | None = None

    def run(self) -> None:
        for note in self.policy.chat.notes:
            self.evaluation.terminal.note(f"{self.name}: {note}")
        for question in (question for shard in self.shards for question in shard):
            length = len(self._render(question, [{"role": "user", "content": question.turns[0]}]))
            if length > self.room:
                raise RunError(
                    f"{self.stage.title}: {question.label} has {length} tokens, and {self.name} takes"
                    f" {max(self.room, 0)} beside a response of {self.decoding.sampling.max_new_tokens};"
                    " lower max_new_tokens of --sampling"
                )
        sizes = [len(shard) for shard in self.shards]
        self.stage.publish_shards(
            sizes,
            lambda number: table(self._respond(self.shards[number]), RESPONSES),
            self.evaluation.terminal,
            "questions",
        )

    def _respond(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        sampler = self._load(self._temperature(questions[0]))
        rows: list[dict[str, Any]] = [
            {"question_id": str(question.id), "choices": [{"turns": []} for _ in range(self.n)]}
            for question in questions
        ]
        key = ("answer", self.decoding.seed, self.evaluation.benchmark)
        prompts = [
            self._prompt(question, row["choices"][0]) or []
            for question, row in zip(questions, rows, strict=True)
        ]
        # the first turn's prompt is the same for all n choices, which are therefore sampled together
        first_turns = sampler.sample(prompts, [(*key, str(question.id), 0) for question in questions], self.n)
        for row, responses in zip(rows, first_turns, strict=True):
            for choice, response in zip(row["choices"], responses, strict=True):
                choice["turns"].append(self._turn(response))
        for turn in range(1, max(len(question.turns) for question in questions)):
            waiting = [
                (choice, (*key, str(question.id), turn, number), self._prompt(question, choice))
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
            "text": self.policy.chat.answer(self.policy.chat.decode(response.token_ids)) or "",
            "token_ids": response.token_ids,
            "finish_reason": response.finish_reason,
        }

    def _prompt(self, question: Question, choice: dict[str, Any]) -> list[int] | None:
        """The conversation so far as token ids; None where no room is left for a response."""
        messages: list[Message] = []
        for asked, said in zip(question.turns, choice["turns"], strict=False):
            messages += [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": said["text"], "token_ids": said["token_ids"]},
            ]
        messages.append({"role": "user", "content": question.turns[len(choice["turns"])]})
        ids = self._render(question, messages)
        return ids if len(ids) <= self.room else None

    def _render(self, question: Question, messages: list[Message]) -> list[int]:
        system: list[Message] = (
            [{"role": "system", "content": self.decoding.system}] if self.decoding.system else []
        )
        try:
            return self.policy.chat.render([*system, *messages]).token_ids
        except chat_format.ChatError as error:
            raise chat_format.ChatError(f"{self.stage.title}: {question.label}: {error}") from error

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
                self.policy.folder,
                temperature=temperature,
                stop_ids=self.policy.chat.stop_ids,
                decode=self.policy.chat.decode,
                dtype=self.decoding.weights_dtype,
                **self.policy.loading,
            )
            self._sampler = (temperature, loaded)
        return self._sampler[1]
