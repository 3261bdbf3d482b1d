"""Requests to an OpenAI-compatible server, and its answers once they have been validated.

Every answer is validated here, once, whoever asked: an :class:`Answer` has choices, texts are texts, and every
log-probability is a number of at most 0. Nothing behind this module looks at a server's JSON.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
)

from sppo.policy.thought import KNOWN_THOUGHTS
from sppo.reading import parse
from sppo.recipe.sampling import LOG_PROB_ROUNDING

Kind = Literal["chat/completions", "completions"]
_MOST_TOKENS = 1_000_000_000  # of one answer; sums of more would outgrow the columns that they are stored in


@dataclass(frozen=True)
class Request:
    """One question to a server.

    Attributes:
        kind: the path under the server's URL.
        body: what is sent, without `model`.
        draw: tells repetitions of the same body apart, each of which has an answer of its own; it is not sent.
    """

    kind: Kind
    body: Mapping[str, Any]
    draw: int = 0


def chat(messages: Sequence[Mapping[str, str]], *, draw: int = 0, **settings: Any) -> Request:
    """A chat completion: `messages` with `role` and `content`, and settings such as `temperature` or `logprobs`."""
    return Request("chat/completions", {"messages": list(messages), **settings}, draw)


def completion(prompt: str | Sequence[int], *, draw: int = 0, **settings: Any) -> Request:
    """A completion of a prompt, which is text or token ids."""
    text_or_ids = prompt if isinstance(prompt, str) else list(prompt)
    return Request("completions", {"prompt": text_or_ids, **settings}, draw)


def _log_prob(value: float) -> float:
    if not value <= LOG_PROB_ROUNDING:  # NaN is not at most anything
        raise ValueError(f"{value} is not a log-probability, which is a number of at most 0")
    return min(0.0, value)


def _text_of_parts(content: Any) -> Any:
    """The text of a message whose content is a list of parts; parts of other types, such as thoughts, are left out."""
    if not isinstance(content, list):
        return content
    texts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(str(part.get("text", "")) for part in texts)


def _none_if_invalid(value: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


_Unimportant = WrapValidator(
    _none_if_invalid
)  # a field that only describes the answer: None where it is malformed
LogProb = Annotated[float, AfterValidator(_log_prob)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class TokenLogProb(_Part):
    """A token and its log-probability in nats."""

    token: str
    logprob: LogProb


class TokenChoices(TokenLogProb):
    """The token at one place of an answer, and the most probable tokens there."""

    top_logprobs: list[TokenLogProb] | None = None


class LogProbs(_Part):
    """Log-probabilities: `content` in chats, `token_logprobs` in completions."""

    content: list[TokenChoices] | None = None
    token_logprobs: list[LogProb] | None = None


class Message(_Part):
    """The message of a chat; a thought that the server keeps in fields of its own is not part of it."""

    content: Annotated[str | None, BeforeValidator(_text_of_parts)] = None
    refusal: Annotated[str | None, _Unimportant] = None


class Choice(_Part):
    """One of the n answers to a request."""

    index: Annotated[int | None, _Unimportant] = None
    finish_reason: Annotated[str | None, _Unimportant] = None
    message: Message | None = None
    text: str | None = None
    logprobs: LogProbs | None = None
    token_ids: Annotated[list[int] | None, _Unimportant] = None
    prompt_token_ids: list[int] | None = None

    @property
    def said(self) -> str:
        """The text of the answer; empty where there is none."""
        return (self.text if self.message is None else self.message.content) or ""

    @property
    def conclusion(self) -> str | None:
        """The text behind the thought; None where the text, or a thought within it, is unfinished."""
        return None if self.finish_reason == "length" else after_thought(self.said)

    @property
    def first_token(self) -> TokenChoices | None:
        """The first token of a chat's answer with its log-probability; None where the server gives none."""
        content = self.logprobs.content if self.logprobs else None
        return content[0] if content else None

    @property
    def refusal(self) -> str | None:
        """Why there is no answer: the server's or the model's own words; None where it did answer."""
        if self.message is not None and self.message.refusal:
            return self.message.refusal
        return "its content filter stopped the answer" if self.finish_reason == "content_filter" else None


class TokenCounts(_Part):
    """The tokens of an answer as the server counts them."""

    prompt_tokens: int = Field(ge=0, lt=_MOST_TOKENS)
    completion_tokens: int = Field(ge=0, lt=_MOST_TOKENS)


class Answer(_Part):
    """A server's answer to one request."""

    choices: list[Choice] = Field(min_length=1)
    usage: Annotated[TokenCounts | None, _Unimportant] = None
    model: Annotated[str | None, _Unimportant] = None
    system_fingerprint: Annotated[str | None, _Unimportant] = None

    @property
    def tokens(self) -> tuple[int, int]:
        """The prompt's and the completion's tokens; 0 and 0 where the server does not count them."""
        return (self.usage.prompt_tokens, self.usage.completion_tokens) if self.usage else (0, 0)


class InvalidAnswerError(ValueError):
    """JSON that is no valid answer, such as one without choices."""


def parse_answer(text: str, kind: Kind) -> Answer:
    """The answer that a server's text holds.

    Raises:
        ValueError: the text is not JSON.
        InvalidAnswerError: it holds no answer; the message names the field that is missing or malformed.
    """
    shown = repr(text if len(text) <= 200 else text[:197] + "...")
    try:
        content = parse(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {shown}") from error
    try:
        answer = Answer.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the answer"
        raise InvalidAnswerError(f"{field}: {first['msg']}: {shown}") from error
    field = "message" if kind == "chat/completions" else "text"
    for number, choice in enumerate(answer.choices):
        if getattr(choice, field) is None:
            raise InvalidAnswerError(f"choices.{number}.{field}: missing: {shown}")
    return answer


def refused(reason: str) -> Answer:
    """The answer that stands for a request which the server refuses, with the server's words."""
    return Answer(choices=[Choice(message=Message(refusal=reason))])


_BEGINNING, _END = (
    re.compile("|".join(map(re.escape, marks)), re.IGNORECASE)
    for marks in (KNOWN_THOUGHTS, KNOWN_THOUGHTS.values())
)


def after_thought(text: str) -> str | None:
    """The text behind the last thought of a model; None if a thought has no end.

    Templates may put the beginning of the thought into the prompt, so its end alone closes one as well. A text without
    either mark is returned as it is.
    """
    rest = _END.split(text)[-1]
    return None if _BEGINNING.search(rest) else rest


@dataclass
class Usage:
    """The requests and tokens that an endpoint has been sent.

    Attributes:
        requests: requests that the server answered.
        cached: requests that were answered from the disk.
        prompt_tokens: tokens of the prompts, as the server counts them.
        completion_tokens: tokens of the answers, likewise.
        retries: requests that were sent again.
        refusals: requests that the server or the model refused to answer, kept refusals included.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    refusals: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


class EndpointError(RuntimeError):
    """A server that refuses, stalls, cannot be reached or answers nonsense.

    Attributes:
        request_index: which of the requests of the call failed; None where it is not one of them.
        is_refusal: whether the server has no answer to this one request, as content filters cause, and may answer others.
    """

    def __init__(self, message: str, request_index: int | None = None, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.request_index = request_index
        self.is_refusal = is_refusal


class BudgetError(EndpointError):
    """The token budget is spent."""


AnswerCheck = Callable[[Request, Answer], str | None]
"""Says what makes an answer useless to whoever asks, in words that follow the server's name; None where nothing does."""


def accept_any(request: Request, answer: Answer) -> None:
    """The check that every answer passes."""
