"""Conversations as messages: what a prompt may be, and how oracles read one."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
        role: one of :data:`ROLES`.
        content: the text.
        token_ids: the tokens of a response that the policy itself has written, end of turn included. They stand in the
            conversation as they are; text of other origin has none.
    """

    role: str
    content: str
    token_ids: NotRequired[list[int]]


class ChatError(ValueError):
    """A tokenizer, chat template or conversation cannot be used; the message says what to change."""


def plain_text(messages: Sequence[Message]) -> str:
    """Write a conversation as an oracle reads it: a single user message as it is, several with their roles.

    ``[{user: a}]`` is ``a``; ``[{user: a}, {assistant: b}, {user: c}]`` is three paragraphs that begin with
    ``User:``, ``Assistant:`` and ``User:``.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def as_messages(value: Any) -> list[Message]:
    """Check a prompt and return it as messages; a string is one user message.

    Raises:
        ChatError: the value is neither a string nor a list of messages, a role is unknown, a text is missing or empty,
            or the last message is not the user's.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list | tuple) or not value:
        raise ChatError(f"a prompt is a string or a list of messages, not {type(value).__name__}")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ChatError(f"message {number} has no text under `content`")
        if message.get("role") not in ROLES:
            raise ChatError(
                f"message {number} has the role {message.get('role')!r}; known are {', '.join(ROLES)}"
            )
        messages.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] != "user":
        raise ChatError(
            f"the last message is the {messages[-1]['role']}'s; leave it out, or end with the user's"
        )
    if not messages[-1]["content"].strip():
        raise ChatError("the prompt is empty")
    return messages


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """Put the system messages at the head of the first user message."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    others = [message for message in messages if message["role"] != "system"]
    if not system:
        return others
    first = next(index for index, message in enumerate(others) if message["role"] == "user")
    merged: Message = {"role": "user", "content": f"{system}\n\n{others[first]['content']}"}
    return [*others[:first], merged, *others[first + 1 :]]
