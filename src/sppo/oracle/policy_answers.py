"""Answers to a judge's questions by a policy, over an engine that samples; no server is asked.

:class:`PolicyAnswers` stands where a judge has an :class:`~sppo.endpoint.client.Endpoint`: it takes the same requests and gives the
same answers, so that whatever a judge does with a server's answers (both orders, verdicts that cannot be read, refusals) is
done with a policy's. A question is written by the policy's chat template. Random numbers are keyed by the question and
its repetition alone, so answers depend neither on batches nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence

from sppo.endpoint import exchange
from sppo.endpoint.exchange import (
    Answer,
    AnswerCheck,
    Choice,
    EndpointError,
    LogProbs,
    Request,
    TokenChoices,
    TokenCounts,
    TokenLogProb,
    Usage,
    accept_any,
    refused,
)
from sppo.oracle import OracleError, Prompts, own_policy
from sppo.oracle.judge_template import verdict_letter
from sppo.oracle.transcript import Markup
from sppo.policy import load as policies
from sppo.policy.adapter import AdapterError
from sppo.policy.chat_format import ChatError, ChatFormat
from sppo.policy.load import PolicyError
from sppo.policy.messages import Message
from sppo.recipe import Policy, Sampling
from sppo.recipe.run_policies import RunPolicy
from sppo.recipe.sampling import LOG_PROB_ROUNDING, Response, SampledPolicy, Sampler

BATCH = 1024
"""The number of questions that the engine is given at a time."""


class PolicyAnswers:
    """A policy as the judge's other side.

    Args:
        sampler: the engine with the policy's weights.
        chat: the policy's tokenizer and chat template.
        context: the most tokens of a question and its answer.
    """

    def __init__(self, sampler: Sampler, chat: ChatFormat, context: int) -> None:
        self.sampler = sampler
        self.chat = chat
        self.context = context
        self.usage = Usage()
        self._markup = Markup(chat.tokenizer)
        letters = {token: verdict_letter(token) for token in chat.tokenizer.get_vocab()}
        self._verdicts = {
            chat.tokenizer.get_vocab()[token]: token
            for token, letter in letters.items()
            if letter is not None
        }

    def ask(
        self,
        requests: Sequence[Request],
        on_answer: Callable[[int], None] | None = None,
        check: AnswerCheck = accept_any,
        *,
        allow_refusals: bool = False,
    ) -> list[Answer]:
        """The answers to chat requests, in their order, like :meth:`sppo.endpoint.client.Endpoint.ask`.

        Requests with `logprobs` are answered with the log-probabilities of all verdicts as the first token, and others with a text.
        A question that leaves no room for an answer counts as refused.

        Raises:
            EndpointError: a question is refused and refusals are not allowed, the policy gives numbers that are no
                log-probabilities, or an answer does not pass the check.
        """
        questions = [self._question(number, request) for number, request in enumerate(requests)]
        answers: list[Answer | None] = [None] * len(requests)
        for number, question in enumerate(questions):
            if isinstance(question, str):
                if not allow_refusals:
                    raise EndpointError(f"the policy cannot be asked: {question}", number, is_refusal=True)
                self.usage.refusals += 1
                answers[number] = refused(question)
        asked = [number for number, answer in enumerate(answers) if answer is None]
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            ids = [question for number in part if not isinstance(question := questions[number], str)]
            answer_all = self._first_tokens if requests[part[0]].body.get("logprobs") else self._texts
            for number, answer in zip(part, answer_all(part, ids, requests), strict=True):
                reason = check(requests[number], answer)
                if reason is not None:
                    raise EndpointError(f"the policy {reason}", number)
                self._count(answer)
                answers[number] = answer
            if on_answer is not None:
                on_answer(len(part))
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        """Free the engine's memory."""
        self.sampler.close()

    def _question(self, number: int, request: Request) -> list[int] | str:
        """The token ids of a question, or why it cannot be asked."""
        messages = [
            Message(role=message["role"], content=self._markup.as_text(message["content"]))
            for message in request.body["messages"]
        ]
        try:
            ids = self.chat.render(messages).token_ids
        except ChatError as error:
            raise EndpointError(
                f"the policy's chat template cannot write the question: {error}", number
            ) from error
        room = self.context - int(request.body["max_tokens"])
        if len(ids) > room:
            return (
                f"the question has {len(ids)} tokens and its answer up to {request.body['max_tokens']}, but the policy takes"
                f" {self.context} in all; lower oracle.max_tokens or sampling.max_new_tokens, or shorten the prompts"
            )
        return ids

    def _first_tokens(
        self, numbers: Sequence[int], ids: Sequence[list[int]], requests: Sequence[Request]
    ) -> list[Answer]:
        """The log-probabilities of the verdicts as the first token of each answer; its text is the most probable token."""
        verdicts = list(self._verdicts)
        found = []
        for number, question, (log_probs, best, best_log_prob) in zip(
            numbers, ids, self.sampler.first_tokens(ids, verdicts), strict=True
        ):
            values = [float(value) for value in (*log_probs, best_log_prob)]
            self._refuse_invalid(number, values)
            tokens = [
                TokenLogProb(token=self._verdicts[token], logprob=min(0.0, value))
                for token, value in zip(verdicts, values[:-1], strict=True)
            ]
            name = str(self.chat.tokenizer.convert_ids_to_tokens(int(best)))
            first = TokenChoices(token=name, logprob=min(0.0, values[-1]), top_logprobs=tokens)
            text = self.chat.tokenizer.decode([int(best)])
            found.append(_answer(text, "length", question, 1, LogProbs(content=[first])))
        return found

    def _texts(
        self, numbers: Sequence[int], ids: Sequence[list[int]], requests: Sequence[Request]
    ) -> list[Answer]:
        """An answer to each question, as the engine draws it."""
        keys = [("judge", _digest(requests[number]), requests[number].draw) for number in numbers]
        found = []
        for number, question, (response,) in zip(
            numbers, ids, self.sampler.sample(ids, keys, 1), strict=True
        ):
            self._refuse_invalid(number, response.token_log_probs)
            text, reason = self._said(response)
            found.append(_answer(text, reason, question, len(response.token_ids)))
        return found

    def _said(self, response: Response) -> tuple[str, str]:
        """The text of an answer, and why it ended; one that ends within a thought is truncated."""
        text = self.chat.decode(response.token_ids)
        answer = self.chat.answer(text)
        return (text, "length") if answer is None else (answer, response.finish_reason)

    def _refuse_invalid(self, number: int, log_probs: Sequence[float]) -> None:
        wrong = next((value for value in log_probs if math.isnan(value) or value > LOG_PROB_ROUNDING), None)
        if wrong is not None:
            raise EndpointError(
                f"the policy gives a token the log-probability {wrong}, so its logits are not finite; it cannot be a"
                " judge",
                number,
            )

    def _count(self, answer: Answer) -> None:
        prompt_tokens, completion_tokens = answer.tokens
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens


class PolicyResponses:
    """A policy that responds to prompts, each time with the same responses.

    Args:
        sampler: the engine with the policy's weights.
        chat: the policy's tokenizer and chat template.
        settings: how responses are drawn.
        count: how many for each prompt.
    """

    def __init__(self, sampler: Sampler, chat: ChatFormat, settings: Sampling, count: int) -> None:
        self.sampler = sampler
        self.chat = chat
        self.settings = settings
        self.count = count
        self._markup = Markup(chat.tokenizer)

    @classmethod
    def of_policy(cls, policy: RunPolicy | Policy, settings: Sampling, count: int) -> PolicyResponses:
        """Load a policy.

        Raises:
            OracleError: as for :func:`load`.
        """
        sampler, chat, _ = _load(policy, settings)
        return cls(sampler, chat, settings, count)

    def responses(self, prompts: Prompts) -> list[list[str]]:
        """The responses to each prompt, whose random numbers are keyed by the prompt alone.

        Raises:
            OracleError: the template cannot write a prompt, or the engine cannot respond.
        """
        ids = []
        for number, prompt in enumerate(prompts):
            try:
                text = self._markup.as_text(prompt)
                ids.append(self.chat.render([Message(role="user", content=text)]).token_ids)
            except ChatError as error:
                raise OracleError(f"oracle.policy: {error}", number) from error
        keys = [("opponent", prompt) for prompt in prompts]
        try:
            drawn = self.sampler.sample(ids, keys, self.count)
        except RuntimeError as error:  # samplers raise RuntimeErrors
            raise OracleError(f"oracle.policy: it cannot respond: {error}") from error
        return [[self._text(response) for response in of_prompt] for of_prompt in drawn]

    def _text(self, response: Response) -> str:
        text = self.chat.decode(response.token_ids)
        ends = [place for stop in self.settings.stop if (place := text.find(stop)) >= 0]
        return self.chat.answer(text[: min(ends, default=len(text))]) or ""

    def close(self) -> None:
        """Free the engine's memory."""
        self.sampler.close()


def load(policy: RunPolicy | Policy, sampling: Sampling) -> PolicyAnswers:
    """A policy in an engine, ready to answer.

    Args:
        policy: the policy.
        sampling: the engine with its settings, and the temperature and the most tokens of an answer.

    Raises:
        OracleError: there is no such policy, it has no chat template, or the engine does not start.
    """
    return PolicyAnswers(*_load(policy, sampling))


def _load(policy: RunPolicy | Policy, sampling: Sampling) -> tuple[Sampler, ChatFormat, int]:
    """The engine with a policy's weights, its chat format, and the most tokens that it takes."""
    folder, chat = own_policy.find(policy)
    assert not isinstance(policy, str), "found above"
    try:
        context = policies.context_length(folder, policy.trust_remote_code)
        sampled = SampledPolicy(
            folder,
            chat.stop_ids,
            chat.decode,
            sampling.dtype or policy.dtype,
            policy.attn_implementation,
            policy.trust_remote_code,
            policy.quantization,
        )
        sampling.check()
        return sampling.load(sampled), chat, min(context, sampling.engine_context or context)
    except (PolicyError, AdapterError, RuntimeError) as error:  # samplers raise RuntimeErrors
        raise own_policy.refusal(error) from error


def _answer(
    text: str, reason: str, question: Sequence[int], tokens: int, log_probs: LogProbs | None = None
) -> Answer:
    choice = Choice(index=0, finish_reason=reason, message=exchange.Message(content=text), logprobs=log_probs)
    usage = TokenCounts(prompt_tokens=len(question), completion_tokens=tokens)
    return Answer(choices=[choice], usage=usage)


def _digest(request: Request) -> str:
    written = json.dumps(request.body["messages"], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(written.encode()).hexdigest()
