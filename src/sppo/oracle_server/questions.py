"""What requests ask: prompts and responses, checked against the limits of the server."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sppo.oracle import OracleError
from sppo.oracle.rewards import completion_text
from sppo.policy.messages import ChatError, Message, as_messages
from sppo.serving.bodies import RefusedRequest, is_text, json_type

Shown = Callable[[Sequence[Message]], str]
"""Writes a conversation in the form in which the oracle sees prompts."""
TASK, ROLLOUT = "_ng_task_index", "_ng_rollout_index"
"""The fields by which NeMo-Gym numbers tasks and their rollouts."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask.

    Attributes:
        responses: the most responses to a prompt.
        characters: the most characters of a prompt or of a response.
        waiting: the most prompts, and responses of incomplete cohorts, that wait.
        body: the most bytes of a request.
    """

    responses: int = 64
    characters: int = 100_000
    waiting: int = 1024
    body: int = 16 * 2**20


class Rollout(NamedTuple):
    """A response that NeMo-Gym wants to have verified.

    Attributes:
        cohort: what it has in common with the other responses to its prompt.
        name: what tells it from them; None where the request does not say.
        prompt: the prompt as the oracle sees it.
        response: the text.
    """

    cohort: Hashable
    name: Hashable
    prompt: str
    response: str


class Questions:
    """Reads the bodies of requests; what does not fit is a RefusedRequest that names the field.

    Args:
        limits: what a request may ask.
        shown: writes conversations as prompts.
    """

    def __init__(self, limits: Limits, shown: Shown) -> None:
        self.limits, self._shown = limits, shown

    def group(self, body: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The prompt and the responses of `{"prompt": ..., "responses": [...]}`."""
        _only(body, ("prompt", "responses"))
        responses = _list(body, "responses", "an array of texts")
        if not 2 <= len(responses) <= self.limits.responses:
            way_out = (
                "a response is compared with others: send 2 or more"
                if len(responses) < 2
                else f"at most {self.limits.responses} are compared at once: send fewer, or raise --max-responses"
            )
            raise RefusedRequest(400, f"responses: {len(responses)} of them; {way_out}")
        return self._prompt(_field(body, "prompt"), "prompt"), [
            self._text(value, f"responses[{n}]") for n, value in enumerate(responses)
        ]

    def completions(self, body: Mapping[str, Any]) -> tuple[list[str], list[str], int | None]:
        """The prompts, the completions and the size of groups of a trainer's batch."""
        _only(body, ("prompts", "completions", "group_size"))
        prompts = _list(body, "prompts", "an array with the prompt of each completion")
        completions = _list(body, "completions", "an array of completions")
        if len(prompts) != len(completions):
            raise RefusedRequest(
                400, f"completions: {len(completions)} for {len(prompts)} prompts; give one for each"
            )
        size = body.get("group_size")
        if size is not None and (type(size) is not int or not 2 <= size <= self.limits.responses):
            raise RefusedRequest(
                400,
                f"group_size: {_shortly(size)}; it is the number of responses to a prompt, from 2 to"
                f" {self.limits.responses} (--max-responses), or null",
            )
        shown = [self._prompt(value, f"prompts[{n}]") for n, value in enumerate(prompts)]
        texts = [self._completion(value, f"completions[{n}]") for n, value in enumerate(completions)]
        largest = max((shown.count(prompt) for prompt in set(shown)), default=0)
        if size is None and largest > self.limits.responses:
            raise RefusedRequest(
                400,
                f"completions: {largest} for one prompt, and at most {self.limits.responses} are compared at once; give"
                " group_size, or raise --max-responses",
            )
        return shown, texts, size

    def rollout(self, body: Mapping[str, Any]) -> Rollout:
        """The response of a request to verify, in NeMo-Gym's form."""
        asked = _object(body, "responses_create_params")
        messages = _input_messages(_field(asked, "input", "responses_create_params.input"))
        if isinstance(asked.get("instructions"), str):
            messages = [{"role": "system", "content": asked["instructions"]}, *messages]
        prompt = self._prompt(messages, "responses_create_params.input")
        output = _field(_object(body, "response"), "output", "response.output")
        response = self._text(_output_text(output), "response.output")
        task, rollout = body.get(TASK, body.get("prompt_id")), body.get(ROLLOUT)
        for name, value in ((f"{TASK} or prompt_id", task), (ROLLOUT, rollout)):
            if not isinstance(value, int | str | None):
                raise RefusedRequest(400, f"{name}: it must be a number or a string, not {json_type(value)}")
        return Rollout((task, hashlib.sha256(prompt.encode()).hexdigest()), rollout, prompt, response)

    def _prompt(self, value: Any, where: str) -> str:
        try:
            messages = as_messages(value)
        except ChatError as error:
            raise RefusedRequest(400, f"{where}: {error}") from error
        for message in messages:
            self._text(message["content"], where)
        try:
            return self._text(self._shown(messages), where)
        except ChatError as error:
            raise RefusedRequest(400, f"{where}: {error}") from error

    def _completion(self, value: Any, where: str) -> str:
        try:
            return self._text(completion_text(value, where), where)
        except OracleError as error:
            raise RefusedRequest(400, str(error)) from error

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise RefusedRequest(400, f"{where}: it must be a text, not {json_type(value)}")
        if not is_text(value):
            raise RefusedRequest(400, f"{where}: it has half of a surrogate pair, which is no character")
        if len(value) > self.limits.characters:
            raise RefusedRequest(
                400,
                f"{where}: {len(value):,} characters; at most {self.limits.characters:,} are read: shorten it, or raise"
                " --max-characters",
            )
        return value


def _only(body: Mapping[str, Any], known: Sequence[str]) -> None:
    strange = [name for name in body if name not in known]
    if strange:
        raise RefusedRequest(
            400, f"{_shortly(strange[0])}: there is no such field; known are {', '.join(known)}"
        )


def _field(body: Mapping[str, Any], name: str, where: str | None = None) -> Any:
    if body.get(name) is None:
        raise RefusedRequest(400, f"{where or name}: missing")
    return body[name]


def _list(body: Mapping[str, Any], name: str, wanted: str) -> list[Any]:
    value = _field(body, name)
    if not isinstance(value, list):
        raise RefusedRequest(400, f"{name}: it must be {wanted}, not {json_type(value)}")
    return value


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = _field(body, name)
    if not isinstance(value, dict):
        raise RefusedRequest(400, f"{name}: it must be an object, not {json_type(value)}")
    return value


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _input_messages(value: Any) -> Any:
    """The input of OpenAI's Responses API as messages; what is neither a text nor a message is refused."""
    if isinstance(value, str) or not isinstance(value, list):
        return value
    messages = []
    for n, item in enumerate(value):
        if not isinstance(item, dict) or item.get("type", "message") != "message":
            kind = item.get("type") if isinstance(item, dict) else json_type(item)
            raise RefusedRequest(
                400,
                f"responses_create_params.input[{n}]: {_shortly(kind)} cannot be shown to the oracle; it reads messages"
                " only",
            )
        role = "system" if item.get("role") == "developer" else item.get("role")
        messages.append({"role": role, "content": _text_of_parts(item.get("content"))})
    return messages


def _output_text(output: Any) -> Any:
    """The text of the last message of a response; thoughts and calls of tools, which are items of their own, are left out."""
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        raise RefusedRequest(400, "response.output: it must be an array of objects")
    messages = [item for item in output if item.get("type") == "message"]
    return _text_of_parts(messages[-1].get("content")) if messages else ""


def _text_of_parts(content: Any) -> Any:
    """The text of a message whose content is a list of parts; parts that are no text, such as refusals, are left out."""
    if not isinstance(content, list):
        return content
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in parts if isinstance(text, str))
