"""Messages to token ids, once: the chat template's rendering, its end of turn, and what goes wrong there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

from sppo.tinyworld import POLICY as TINYWORLD_POLICY

ROLES = ("system", "user", "assistant")
_SENTINEL = "sentinel"


class Message(TypedDict):
    """A turn of a conversation; the role is one of :data:`ROLES`."""

    role: str
    content: str


class ChatError(ValueError):
    """A tokenizer, chat template or conversation that cannot be used; the message says what to change."""


def model_path(model: str) -> str:
    """The folder or hub name that a recipe's `model` stands for: `tinyworld` is the embedded policy."""
    return str(TINYWORLD_POLICY) if model == "tinyworld" else model


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids that end with the generation prompt."""

    token_ids: list[int]
    doubled_bos: bool


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer, its chat template, and where a turn ends.

    Attributes:
        tokenizer: of transformers.
        end_of_turn: the token id with which the template closes an assistant's message.
        stop_ids: the ids at which sampling stops: the end of turn and the model's own end-of-sequence ids.
        notes: what was found and mended while loading, in words for the user.
    """

    tokenizer: Any
    end_of_turn: int
    stop_ids: tuple[int, ...]
    system: Literal["template", "merge"] = "template"
    notes: tuple[str, ...] = field(default=())

    def text(self, messages: Sequence[Message]) -> str:
        """The template's rendering as text, generation prompt included.

        Raises:
            ChatError: the template refuses the conversation.
        """
        conversation = _merge_system(messages) if self.system == "merge" else list(messages)
        return _render(self.tokenizer, conversation, add_generation_prompt=True)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Token ids of a conversation; no tokens are added to the template's own.

        A beginning-of-sequence token written twice (by the template) is reduced to one and reported.

        Raises:
            ChatError: the template refuses the conversation, or a message's text contains a special token or
                is no Unicode text.
        """
        self._refuse_markup(messages)
        ids = self._token_ids(self.text(messages))
        bos = self.tokenizer.bos_token_id
        start = 0
        while bos is not None and ids[start : start + 2] == [bos, bos]:
            start += 1
        return Rendered(ids[start:], doubled_bos=start > 0)

    def response(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of a given response to a conversation, as if the policy had drawn it: up to the end of its turn.

        They are what the template writes behind the generation prompt when the conversation goes on with this
        assistant's message.

        Raises:
            ChatError: the text is empty or as :meth:`render` refuses it, or the template changes what stands
                before it.
        """
        if not text.strip():
            raise ChatError("the demonstration is empty")
        answered: list[Message] = [*messages, {"role": "assistant", "content": text}]
        self._refuse_markup(answered[-1:])
        conversation = _merge_system(answered) if self.system == "merge" else answered
        prompt, whole = self.text(messages), _render(self.tokenizer, conversation)
        if not whole.startswith(prompt):
            raise ChatError(
                "the chat template writes a conversation that ends with the assistant's message otherwise than"
                " one that the assistant is to go on with; a demonstration cannot be told from its prompt. Mend it, or"
                " name another one as policy.chat_template"
            )
        before, ids = self._token_ids(prompt), self._token_ids(whole)
        # a tokenizer that joins characters across the border writes the response otherwise than the policy would
        ids = ids[len(before) :] if ids[: len(before)] == before else self._token_ids(whole[len(prompt) :])
        end = ids.index(self.end_of_turn) if self.end_of_turn in ids else len(ids)
        return [*ids[:end], self.end_of_turn]

    def _token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refuse_markup(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if any("\ud800" <= character <= "\udfff" for character in message["content"]):
                raise ChatError(
                    f"the {message['role']} message is not UTF-8: it contains half a surrogate pair"
                )
            for special in self._special_tokens:
                if special in message["content"]:
                    raise ChatError(
                        f"the {message['role']} message contains the special token {special!r}, which the"
                        " tokenizer would read as markup; remove it from the text"
                    )

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        # all_special_tokens has those that play a part, as BOS does; others are only among the added ones
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return tuple(sorted({*self.tokenizer.all_special_tokens, *added} - {""}))

    def decode(self, token_ids: Sequence[int]) -> str:
        """A response as text, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def load(
    model: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    system: Literal["template", "merge"] = "template",
) -> ChatFormat:
    """The chat format of a model folder or hub name.

    Args:
        model: as in the recipe.
        config: where the model's configuration lies; None: with the tokenizer.
        revision: of a hub model.
        chat_template: a jinja file that replaces the tokenizer's template.
        trust_remote_code: run Python that comes with the tokenizer.
        system: `merge` puts system messages at the head of the first user message.

    Raises:
        ChatError: no tokenizer, no chat template or one that does not render, or a vocabulary larger than
            the model's embedding.
    """
    from transformers import AutoConfig, AutoTokenizer

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    path = model_path(model)
    try:
        of_model = AutoConfig.from_pretrained(config or path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # what the hub, the disk, the formats and a model's own Python raise
        found = "has" if Path(path).is_dir() else "is no folder here, and the hub gives"
        hint = (
            "; if you trust it, set policy.trust_remote_code: true"
            if "trust_remote_code" in str(error)
            else ""
        )
        raise ChatError(
            f"policy.model: {model!r} {found} no configuration and tokenizer that load:"
            f" {type(error).__name__}: {error}{hint}"
        ) from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ChatError(f"policy.chat_template: {chat_template!r} cannot be read: {error}") from error
    if tokenizer.chat_template is None:
        raise ChatError(
            f"policy.model: {model!r} has no chat template; use its instruction-tuned version, or name a"
            " jinja file as policy.chat_template"
        )
    embedding = getattr(of_model.get_text_config(), "vocab_size", None)
    if embedding is None:
        raise ChatError(
            f"policy.model: {model!r} ({of_model.model_type}) is no causal language model; name one"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= embedding:
        raise ChatError(
            f"policy.model: the tokenizer of {model!r} has ids up to {largest}, its embedding only"
            f" {embedding} rows; resize the embedding (model.resize_token_embeddings) or use the tokenizer"
            " that it was trained with"
        )
    end_of_turn = _end_of_turn(tokenizer)
    own = _declared_eos(config or path, revision, of_model)
    own += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    strange = [stop for stop in own if not (type(stop) is int and 0 <= stop < embedding)]
    if strange:
        raise ChatError(
            f"policy.model: {model!r} ends at the token {strange[0]!r}, but its ids go from 0 to"
            f" {embedding - 1}; mend eos_token_id in its generation_config.json"
        )
    notes = []
    if end_of_turn is None:
        if not own:
            raise ChatError(
                f"policy.model: neither the chat template nor the configuration of {model!r} says how a turn"
                " ends; set eos_token_id in its generation_config.json"
            )
        end_of_turn = own[0]
        notes.append("the chat template writes no end-of-turn token; the end-of-sequence token is used")
    elif end_of_turn not in own:
        notes.append(
            f"the template ends a turn with {tokenizer.convert_ids_to_tokens(end_of_turn)!r}, at which the"
            " generation config does not stop; sampling stops there all the same"
        )
    return ChatFormat(tokenizer, end_of_turn, tuple(sorted({end_of_turn, *own})), system, tuple(notes))


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation as an oracle reads it: a single user message bare, others with their roles.

    ``[{user: a}]`` is ``a``; ``[{user: a}, {assistant: b}, {user: c}]`` is three paragraphs that begin with
    ``User:``, ``Assistant:`` and ``User:``.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def as_messages(value: Any) -> list[Message]:
    """A prompt as chat messages: a string is one user message.

    Raises:
        ChatError: it is neither, a role is unknown, a text is missing or empty, or the last message is not
            the user's.
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


def _render(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # a template is a program: it may raise anything
        roles = ", ".join(message["role"] for message in messages)
        hint = (
            "; set prompts.system: merge if it takes no system message"
            if any(message["role"] == "system" for message in messages)
            else "; mend it, or name another one as policy.chat_template"
        )
        raise ChatError(
            f"the chat template does not render a conversation of {roles}:"
            f" {type(error).__name__}: {error}{hint}"
        ) from error
    return text


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    others = [message for message in messages if message["role"] != "system"]
    if not system:
        return others
    first = next(index for index, message in enumerate(others) if message["role"] == "user")
    merged: Message = {"role": "user", "content": f"{system}\n\n{others[first]['content']}"}
    return [*others[:first], merged, *others[first + 1 :]]


def _declared_eos(path: str, revision: str | None, config: Any) -> list[Any]:
    """The ids at which the model's generation config stops; where it has none, its configuration's."""
    from transformers import GenerationConfig

    file = Path(path) / "generation_config.json"
    declared = config.get_text_config().eos_token_id
    if file.is_file() or not Path(path).is_dir():
        try:
            declared = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
        except Exception as error:  # what the hub, the disk and the format raise
            if file.is_file():
                raise ChatError(
                    f"policy.model: {file} does not load: {type(error).__name__}: {error}"
                ) from error
    return list(declared) if isinstance(declared, list | tuple) else [] if declared is None else [declared]


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template writes behind an assistant's message, if it writes one.

    Raises:
        ChatError: the template does not render, or leaves out what the user says.
    """
    user: Message = {"role": "user", "content": _SENTINEL}
    if _SENTINEL not in _render(tokenizer, [user], add_generation_prompt=True).lower():
        raise ChatError(
            "the chat template leaves out what the user says; mend it, or name another one as"
            " policy.chat_template"
        )
    text = _render(
        tokenizer, [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _SENTINEL}]
    )
    tail = text[text.rindex(_SENTINEL) + len(_SENTINEL) :] if _SENTINEL in text else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token_id in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token_id in special:
            return int(token_id)
    return None
