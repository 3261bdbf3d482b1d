"""Conversations and preferences in the notations that data sets use, read as messages with `role` and `content`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sppo.policy.chat_format import ROLES, ChatError, Message, as_messages
from sppo.reading import parse

_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text")
_LIST_KEYS = ("messages", "conversations", "conversation")
_ROLES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Other names of roles in data sets, each with the name that chat templates know."""
_REFUSED_ROLES = ("tool", "function", "observation", "function_call", "ipython")
_SPEAKERS = frozenset((*ROLES, *_ROLES, *_REFUSED_ROLES))
_LIKE_A_ROLE = re.compile(
    rf"""["']({"|".join(_ROLE_KEYS)})["']\s*:\s*["']({"|".join(_SPEAKERS)})["']""", re.IGNORECASE
)
_LIKE_A_TEXT = re.compile(rf"""["']({"|".join(_TEXT_KEYS)})["']\s*:""")
_TRANSCRIPT = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):[ \n]?")


class PromptError(ValueError):
    """Raised for a prompt or a source of prompts that cannot be used; the message names the file and the line."""


class Preference(NamedTuple):
    """A prompt with a response that was preferred to another.

    Attributes:
        prompt: the conversation up to the responses, which ends with the user's message.
        chosen: the text of the preferred response.
        rejected: the text of the other response.
    """

    prompt: list[Message]
    chosen: str
    rejected: str


def read_conversation(value: Any) -> Any:
    """Translate a conversation into a list of messages with `role` and `content`; other values are returned unchanged.

    A conversation may be a list of messages, one message, a mapping of lists (as `datasets` stores sequences), any of
    these as JSON text, or a transcript of the helpful-harmless data. Messages may be written with `role` and `content` or
    with `from` and `value` (ShareGPT). Roles and the order of turns are not checked here;
    :func:`sppo.policy.chat_format.as_messages` does that.

    Raises:
        PromptError: the text looks like a conversation but is not JSON, or a message holds something other than text.
    """
    if isinstance(value, str):
        if value.startswith(_TRANSCRIPT):
            messages = _read_transcript(value)
            # a prompt in this notation ends where the assistant is to begin
            return messages if messages[-1]["content"] or messages[-1]["role"] == "user" else messages[:-1]
        value = _parse_json(value)
    if isinstance(value, Mapping):
        role, text = _present(value, _ROLE_KEYS), _present(value, _TEXT_KEYS)
        if isinstance(role, list) and isinstance(text, list) and len(role) == len(text):
            value = [{"role": each, "content": content} for each, content in zip(role, text, strict=True)]
        else:
            value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [_read_message(message, number) for number, message in enumerate(value, 1)]


def notation(text: str) -> str:
    """The notation in which a text is a conversation, in words; for texts that :func:`read_conversation` translates."""
    return "a transcript" if text.startswith(_TRANSCRIPT) else "JSON text"


def _read_transcript(text: str) -> list[dict[str, str]]:
    """Read a transcript of the helpful-harmless data: ``\\n\\nHuman: ...\\n\\nAssistant: ...``."""
    _, *pieces = _TURN.split(text)
    roles = [{"Human": "user", "Assistant": "assistant"}[name] for name in pieces[::2]]
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, pieces[1::2], strict=True)]


def _parse_json(text: str) -> Any:
    """The conversation that a text holds as JSON; any other text is returned unchanged."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = parse(text)
    except ValueError as error:
        if not (_LIKE_A_ROLE.search(text) and _LIKE_A_TEXT.search(text)):
            return text
        raise PromptError(
            f"malformed: the text looks like a conversation, {text[:40]!r}, but is not JSON ({error}); store it as"
            " JSON, or as a list of messages"
        ) from error
    if isinstance(value, Mapping):
        value = next((value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)), value)
    messages = value if isinstance(value, list) else [value]
    return value if messages and all(map(_is_message, messages)) else text


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    role = _present(value, _ROLE_KEYS)
    speakers = role if isinstance(role, list) and role else [role]
    known = all(isinstance(speaker, str) and speaker.strip().lower() in _SPEAKERS for speaker in speakers)
    return known and any(key in value for key in _TEXT_KEYS)


def _present(message: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first key that has one; a table with several notations has None under the others."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _read_message(message: Any, number: int) -> Any:
    if not isinstance(message, Mapping):
        return message
    role, text = _present(message, _ROLE_KEYS), _present(message, _TEXT_KEYS)
    if isinstance(text, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in text]
        text = "".join(part for part in parts if isinstance(part, str))
        if None in parts:
            raise PromptError(f"message {number} holds a part that is not text; only text can be a prompt")
    if message.get("tool_calls"):
        raise PromptError(f"message {number} calls tools; only text can be a prompt")
    if isinstance(role, str):
        name = role.strip().lower()
        role = _ROLES.get(name, name)
    return {"role": role, "content": text}


def split_last_response(conversation: Any) -> tuple[Any, str | None]:
    """Divide a conversation that ends with the assistant into what comes before and its last response.

    Anything else is returned with None for the response.
    """
    if isinstance(conversation, list) and conversation:
        last = conversation[-1]
        if (
            isinstance(last, dict)
            and last.get("role") == "assistant"
            and isinstance(last.get("content"), str)
        ):
            return conversation[:-1], last["content"]
    return conversation, None


def read_preference(prompt: Any, chosen: Any, rejected: Any) -> Preference:
    """Read a preference whose responses are texts, assistant messages, or whole conversations.

    Args:
        prompt: the prompt as text or messages; None if it is what `chosen` and `rejected` both begin with.
        chosen: the preferred response, or the conversation that ends with it.
        rejected: the other response, in the same form.

    Raises:
        PromptError: the responses have different forms or answer different prompts, or no prompt can be told from them.
    """
    (before, better), (other_before, worse) = (_split_response(value) for value in (chosen, rejected))
    if before != other_before:
        raise PromptError(
            "`chosen` and `rejected` differ before their last message, so they do not respond to the same prompt"
        )
    if prompt is not None:
        given = _checked(prompt)
        if before and _checked(before) != given:
            raise PromptError(
                "`prompt` is not the conversation that `chosen` and `rejected` begin with; set `column: chosen` to take"
                " that conversation as the prompt"
            )
        return Preference(given, *_without_prompt(given[-1]["content"], better, worse))
    if not before:
        raise PromptError(
            "`chosen` and `rejected` are single responses, and there is no column `prompt`; name the column of prompts"
        )
    return Preference(_checked(before), better, worse)


def _split_response(value: Any) -> tuple[list[Any], str]:
    """The messages before a response, if its value holds them too, and the response's text."""
    if isinstance(value, str) and value.startswith(_TRANSCRIPT):
        value = _read_transcript(value)
    value = read_conversation(value)
    if isinstance(value, str):
        return [], value
    before, response = split_last_response(value)
    if response is None:
        raise PromptError(
            "`chosen` and `rejected` must each be a text or messages that end with the assistant's; one holds"
            f" {type(value).__name__}"
        )
    return before, response


def _without_prompt(prompt: str, *responses: str) -> tuple[str, ...]:
    """The responses without the text of the prompt, if all of them repeat it."""
    if all(response.startswith(prompt) and len(response) > len(prompt) for response in responses):
        return tuple(response[len(prompt) :].lstrip() for response in responses)
    return responses


def _checked(prompt: Any) -> list[Message]:
    try:
        return as_messages(read_conversation(prompt))
    except ChatError as error:
        raise PromptError(str(error)) from error
