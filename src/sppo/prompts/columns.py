"""The meaning of a row's columns: a prompt, a response to learn from, and an id."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from sppo.policy.chat_format import ChatError, Message, as_messages
from sppo.prompts.conversations import (
    PromptError,
    notation,
    read_conversation,
    read_preference,
    split_last_response,
)
from sppo.recipe import PromptSource

COLUMNS = ("prompt", "messages", "instruction", "text", "conversations", "conversation", "chosen")
"""The columns in which a prompt is looked for, in this order."""
ID_COLUMNS = ("prompt_id", "id")
SYSTEM_COLUMNS = ("system", "system_prompt")


class Prompt(NamedTuple):
    """A prompt as a source holds it, before the chat template.

    Attributes:
        messages: the conversation, which ends with the user's message.
        demonstration: the text of a response to learn from; None if the source names no column of demonstrations.
        own_id: the id that the source gives it, if any.
        taken: which columns the prompt was taken from, in words.
    """

    messages: list[Message]
    demonstration: str | None
    own_id: str | None
    taken: str


def columns_to_read(source: PromptSource, known: Collection[str]) -> list[str]:
    """The columns of a table that prompts are made of.

    Raises:
        PromptError: none of the table's columns holds prompts.
    """
    candidates = _candidates(source)
    if not set(candidates) & set(known):
        raise PromptError(_no_column(source, known))
    extra = {*ID_COLUMNS, source.demonstration}
    if source.column is None:
        extra |= {"input", *SYSTEM_COLUMNS}
    if "chosen" in candidates:
        extra.add("rejected")
    return [name for name in known if name in extra or name in candidates]


def interpret(value: Any, source: PromptSource) -> Prompt:
    """Read the prompt of a row, and its demonstration if the source names a column of them.

    Raises:
        PromptError: the row could not be read, or it holds no prompt that can be used.
    """
    if isinstance(value, PromptError):
        raise value
    if isinstance(value, str):
        prompt = interpret({"text": value}, source.model_copy(update={"column": None}))
        return prompt._replace(taken=prompt.taken.replace("`text`", "plain text"))
    if not isinstance(value, dict):
        raise PromptError(f"malformed: a {type(value).__name__}, not an object with a prompt")
    present = [name for name in _candidates(source) if name in value]
    if not present:
        raise PromptError(f"malformed: {_no_column(source, value)}")
    column = next((name for name in present if value[name] is not None), present[0])
    own_id = next((str(value[name]) for name in ID_COLUMNS if value.get(name) not in (None, "")), None)
    if own_id is not None and not own_id.isprintable():
        raise PromptError(f"malformed: its id {own_id!r} is not a printable text")
    try:
        return _with_system_message(_prompt(value, column, source, own_id), value, source)
    except ChatError as error:
        raise PromptError(str(error)) from error


def _prompt(row: dict[str, Any], column: str, source: PromptSource, own_id: str | None) -> Prompt:
    if column == "chosen" and row.get("rejected") is not None:
        preference = read_preference(None, row["chosen"], row["rejected"])
        response = getattr(preference, source.demonstration or "", None)
        if source.demonstration in (None, "chosen", "rejected"):
            return Prompt(preference.prompt, response, own_id, "the beginning of `chosen` and `rejected`")
    value, taken = row[column], f"`{column}`"
    further = row.get("input") if column == "instruction" and source.column is None else None
    if isinstance(further, str) and further.strip():
        value, taken = f"{value}\n\n{further}", "`instruction` and `input`"
    conversation = read_conversation(value)
    if isinstance(value, str) and not isinstance(conversation, str):
        taken += f", which holds {notation(value)}"
    prompt, response = split_last_response(conversation)
    if source.demonstration is None:
        if response is not None:
            taken += ", without the assistant's last message"
        return Prompt(as_messages(prompt), None, own_id, taken)
    taken += f", demonstrations from `{source.demonstration}`"
    return Prompt(*_demonstrated(row, column, prompt, source.demonstration), own_id, taken)


def _demonstrated(row: dict[str, Any], column: str, prompt: Any, name: str) -> tuple[list[Message], str]:
    """The prompt and the demonstration of a row.

    A demonstration is a text, or messages that end with the assistant's. Messages before that one are the prompt: the row
    has no other prompt, or the same.
    """
    value = read_conversation(row.get(name))
    if isinstance(value, str) and column != name:
        return as_messages(prompt), value
    before, response = split_last_response(value)
    if response is None:
        held = "nothing" if value is None else f"a {type(value).__name__}"
        if isinstance(value, str):
            held += ", and the row has no prompt"
        raise PromptError(
            f"no demonstration in the column {name!r}: it holds {held}; a demonstration is a text beside a prompt, or a"
            " list of messages that ends with the assistant's"
        )
    if not before:
        return as_messages(prompt), response
    messages = as_messages(before)
    if column != name and row[column] is not None and as_messages(prompt) != messages:
        raise PromptError(
            f"its demonstration answers another prompt: the messages in the column {name!r} before the last one are"
            f" not this row's prompt; set `column: {name}` to take them as the prompt"
        )
    return messages, response


def _with_system_message(prompt: Prompt, row: dict[str, Any], source: PromptSource) -> Prompt:
    """Put a row's own system message before a prompt that has none."""
    name = next((name for name in SYSTEM_COLUMNS if isinstance(row.get(name), str)), None)
    if name is None or not row[name].strip() or source.column is not None:
        return prompt
    if any(message["role"] == "system" for message in prompt.messages):
        return prompt
    system: Message = {"role": "system", "content": row[name]}
    return prompt._replace(messages=[system, *prompt.messages], taken=f"{prompt.taken}, after `{name}`")


def _candidates(source: PromptSource) -> tuple[str, ...]:
    """The columns that may hold the prompt: the named one, or the usual ones and then that of demonstrations."""
    if source.column:
        return (source.column,)
    return (*COLUMNS, *({source.demonstration} - {None, *COLUMNS}))  # type: ignore[arg-type]


def _no_column(source: PromptSource, known: Iterable[str]) -> str:
    wanted = f"no column {source.column!r}" if source.column else f"none of the columns {', '.join(COLUMNS)}"
    there = ", ".join(known)
    return f"{wanted}; set `column` to one of {there}" if there else f"{wanted}, nor any other"
