"""Messages to token ids, once: the rendering of a chat template, its end of turn, and what can go wrong with them."""

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sppo.policy import model_files
from sppo.policy.messages import ROLES as ROLES
from sppo.policy.messages import ChatError as ChatError
from sppo.policy.messages import Message as Message
from sppo.policy.messages import as_messages as as_messages
from sppo.policy.messages import merge_system
from sppo.policy.messages import plain_text as plain_text
from sppo.policy.model_files import load_errors, load_tokenizer
from sppo.policy.template import Template, mark
from sppo.policy.thought import KNOWN_THOUGHTS, Thought
from sppo.reading import regular
from sppo.tinyworld import POLICY as TINYWORLD_POLICY


def model_path(model: str) -> str:
    """Return the folder or hub name of a recipe's `model`; `tinyworld` is the embedded policy."""
    return str(TINYWORLD_POLICY) if model == "tinyworld" else model


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids that end with the generation prompt."""

    token_ids: list[int]
    doubled_bos: bool


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer, its chat template, and the tokens that end a turn.

    Attributes:
        tokenizer: a tokenizer of transformers.
        template: its chat template.
        end_of_turn: the token id with which the template closes an assistant's message.
        stop_ids: the ids at which sampling stops: the end of turn and the model's own end-of-sequence ids.
        system: `merge` puts system messages at the head of the first user message.
        thought: the texts between which the policy thinks, if oracles and benchmarks are not to read its thoughts.
        notes: what loading has found and mended, in words for the user.
    """

    tokenizer: Any
    template: Template
    end_of_turn: int
    stop_ids: tuple[int, ...]
    system: Literal["template", "merge"] = "template"
    thought: Thought | None = None
    notes: tuple[str, ...] = field(default=())

    # Prompts.

    def text(self, messages: Sequence[Message]) -> str:
        """Return the template's text of a conversation, generation prompt included.

        Raises:
            ChatError: the template fails on the conversation or leaves out a message.
        """
        conversation = self._conversation(messages)
        text = self.template.render(conversation, generation_prompt=True)
        self.template.marked(_roles(conversation), generation_prompt=True)
        return text

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Return the token ids of a conversation; no tokens are added to the template's own.

        Turns of the policy itself, which have `token_ids`, stand there as they were sampled. A beginning-of-sequence
        token that the template writes twice is reduced to one and reported.

        Raises:
            ChatError: the template fails on the conversation or leaves out a message, or a message's text contains a
                special token or is not Unicode text.
        """
        ids = self._checked_ids(self._conversation(messages), generation_prompt=True)
        bos = self.tokenizer.bos_token_id
        start = 0
        while bos is not None and ids[start : start + 2] == [bos, bos]:
            start += 1
        return Rendered(ids[start:], doubled_bos=start > 0)

    def response(self, messages: Sequence[Message], text: str) -> list[int]:
        """Return the token ids of a given response to a conversation, up to the end of its turn.

        They are what the template writes behind the generation prompt if the conversation goes on with this message of
        the assistant, as if the policy had sampled it.

        Raises:
            ChatError: the text is empty or refused by :meth:`render`, or the template changes what stands before it.
        """
        if not text.strip():
            raise ChatError("the demonstration is empty")
        answered = self._conversation([*messages, {"role": "assistant", "content": text}])
        ids = self._checked_ids(answered)
        prompt, whole = self.text(messages), self.template.render(answered)
        if not whole.startswith(prompt):
            raise ChatError(
                "the chat template writes a conversation that ends with the assistant's message differently from one"
                " that the assistant is to continue, so a demonstration cannot be told from its prompt; mend it, or"
                " name another one as policy.chat_template"
            )
        before = self._tokenize(prompt)
        # a tokenizer that joins characters across the border writes the response differently from the policy
        ids = ids[len(before) :] if ids[: len(before)] == before else self._tokenize(whole[len(prompt) :])
        end = ids.index(self.end_of_turn) if self.end_of_turn in ids else len(ids)
        return [*ids[:end], self.end_of_turn]

    def _conversation(self, messages: Sequence[Message]) -> list[Message]:
        return merge_system(messages) if self.system == "merge" else list(messages)

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _checked_ids(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[int]:
        """Tokenize a conversation, and refuse text that becomes markup.

        Whether text becomes markup shows in the ids only: tokenizers normalise text and templates change it before it is
        compared with the special tokens. The template writes as many special tokens around marks as around any other
        messages of the same roles, so each one more comes from a message.
        """
        for message in messages:
            if any("\ud800" <= character <= "\udfff" for character in message["content"]):
                raise ChatError(
                    f"the {message['role']} message is not UTF-8: it contains half a surrogate pair"
                )
        own = {
            number: message["token_ids"] for number, message in enumerate(messages) if "token_ids" in message
        }
        shown: list[Message] = [
            {"role": message["role"], "content": _turn_mark(number, messages)} if number in own else message
            for number, message in enumerate(messages)
        ]
        text = self.template.render(shown, generation_prompt=generation_prompt)
        expected = self._count_special(_roles(messages), generation_prompt)
        ids: list[int] = []
        written: Counter[int] = Counter()
        start = 0
        for number, token_ids in own.items():
            place = re.search(_turn_mark(number, messages), text, re.IGNORECASE)
            assert place is not None, "the template leaves out no message"
            piece = self._continue(
                self._before_turn(shown[:number], text[: place.start()])[start:], bool(ids)
            )
            written.update(piece)
            ids += [*piece, *self._without_end(token_ids)]
            start = place.end()
        piece = self._continue(text[start:], bool(ids))
        written.update(piece)
        extra = [token for token in written if token in self._special and written[token] > expected[token]]
        if extra:
            raise ChatError(self._markup(messages, extra[0]))
        return [*ids, *piece]

    def _before_turn(self, messages: Sequence[Message], written: str) -> str:
        """Return the text before a turn of the policy: what it was sampled after, if the template has not changed that.

        Templates write white space before an answer that the policy has not seen or that it has written itself. If they
        leave thoughts in the conversation, they also expect the answer to begin one that the prompt has begun.
        """
        prompt, before = self.template.render(messages, generation_prompt=True), written.rstrip()
        same = prompt.rstrip() == before or (prompt.startswith(before) and self._keeps_thoughts)
        return prompt if same else written

    def _continue(self, text: str, follows: bool) -> list[int]:
        """Tokenize a piece of a conversation; one that follows a turn is not the beginning of a text."""
        end = self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
        if not follows or text.startswith(end):
            return self._tokenize(text)
        # some tokenizers write the beginning of a text differently, so the piece is put behind an end of turn
        ids = self._tokenize(end + text)
        return ids[1:] if ids[:1] == [self.end_of_turn] else self._tokenize(text)

    def _without_end(self, token_ids: Sequence[int]) -> list[int]:
        """Return the policy's turn without its end, which the template writes, and without thoughts that it leaves out."""
        ids = list(token_ids)
        while ids and ids[-1] in self.stop_ids:
            ids.pop()
        text = self._decode(ids)
        if self._thought_texts[1] not in text or self._keeps_thoughts:
            return ids
        answer = text.rpartition(self._thought_texts[1])[2].lstrip()
        # the last place behind which the whole answer stands
        return ids[next(n for n in range(len(ids), -1, -1) if len(self._decode(ids[n:])) >= len(answer)) :]

    @cached_property
    def _keeps_thoughts(self) -> bool:
        return self.template.keeps_thoughts(*self._thought_texts)

    @cached_property
    def _thought_texts(self) -> tuple[str, str]:
        if self.thought is not None:
            return self.thought.start, self.thought.end
        return _known_thought(self.tokenizer) or next(iter(KNOWN_THOUGHTS.items()))

    def _count_special(self, roles: tuple[str, ...], generation_prompt: bool) -> Counter[int]:
        key = (roles, generation_prompt)
        if key not in self._special_counts:
            text = self.template.marked(roles, generation_prompt=generation_prompt)
            self._special_counts[key] = Counter(
                token for token in self._tokenize(text) if token in self._special
            )
        return self._special_counts[key]

    @cached_property
    def _special_counts(self) -> dict[tuple[tuple[str, ...], bool], Counter[int]]:
        return {}

    def _markup(self, messages: Sequence[Message], token: int) -> str:
        """Say which message contains a special token."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        for message in messages:
            # the template's own text decides; a message by itself shows whose it is where the template changes nothing
            if "token_ids" not in message and token in self._tokenize(message["content"]):
                where = f"the {message['role']} message contains the special token {name!r}"
                break
        else:
            where = f"the chat template makes the special token {name!r} of a message's text"
        return f"{where}, which the tokenizer would read as markup; remove it from the text"

    @cached_property
    def _special(self) -> frozenset[int]:
        # all_special_ids has those with a role, such as BOS; others are only among the added ones
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {
            number for number, token in added if token.special
        }

    # Responses.

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return a response as text without special tokens, except those that begin and end a thought."""
        if self.thought is None:
            text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
            return text
        return self._decode(token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode([token for token in token_ids if token not in self._hidden])
        return text

    @cached_property
    def vocabulary(self) -> frozenset[int]:
        """The ids that have a text; a model's embedding can have rows for others."""
        return frozenset(self.tokenizer.get_vocab().values())

    @cached_property
    def _hidden(self) -> frozenset[int]:
        shown = "".join(self._thought_texts)
        return frozenset(
            token for token in self._special if self.tokenizer.convert_ids_to_tokens(token) not in shown
        )

    def answer(self, response: str) -> str | None:
        """Return what oracles and benchmarks read of a response's text; None if it is a thought without an end."""
        return response if self.thought is None else self.thought.answer(response)


def load(
    model: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    system: Literal["template", "merge"] = "template",
    template_arguments: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    thought: Sequence[str] | None = None,
) -> ChatFormat:
    """Load the chat format of a model folder or hub name.

    Args:
        model: a folder, a hub name or `tinyworld`.
        config: the folder of the model's configuration; None: that of the tokenizer.
        revision: the revision of a hub model.
        chat_template: a jinja file that replaces the tokenizer's template.
        trust_remote_code: run Python code that comes with the tokenizer.
        system: `merge` puts system messages at the head of the first user message.
        template_arguments: further variables of the template, such as `enable_thinking`.
        template_date: the date that the template takes for today's, as YYYY-MM-DD; None: the clock's.
        thought: the texts that begin and end a thought; oracles and benchmarks do not read what stands between them.

    Raises:
        ChatError: there is no tokenizer or no chat template, the template does not render, or the vocabulary is larger
            than the model's embedding.
    """
    path = model_path(model)
    settings, tokenizer = _load_files(path, model, config, revision, trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if tokenizer.chat_template is None:
        raise ChatError(
            f"policy.model: {model!r} has no chat template; use its instruction-tuned version, or name a"
            " jinja file as policy.chat_template"
        )
    template = Template(tokenizer, template_arguments or {}, template_date)
    prompt = template.generation_prompt  # refuses a template that leaves out what the user says
    declared = _declared_ends(model, config or path, revision, settings, tokenizer)
    end_of_turn, notes = _end_of_turn(tokenizer, template, declared)
    if end_of_turn is None:
        raise ChatError(
            f"policy.model: neither the chat template nor the configuration of {model!r} says how a turn"
            " ends; set eos_token_id in its generation_config.json"
        )
    if template.note_on_date is not None:
        notes.append(template.note_on_date)
    known = _known_thought(tokenizer)
    if thought is None and known is not None and not prompt.rstrip().endswith(known[1]):
        notes.append(
            "the policy may write thoughts, which oracles and benchmarks read as a part of its responses; set"
            f" policy.thought: [{known[0]!r}, {known[1]!r}] to leave them out"
        )
    begun = thought is not None and prompt.rstrip().endswith(thought[0])
    marks = None if thought is None else Thought(thought[0], thought[1], opened=begun)
    stop_ids = tuple(sorted({end_of_turn, *declared}))
    return ChatFormat(tokenizer, template, end_of_turn, stop_ids, system, marks, tuple(notes))


def _known_thought(tokenizer: Any) -> tuple[str, str] | None:
    """The texts that begin and end a thought by the chat template; None if it knows no thoughts."""
    template = str(tokenizer.chat_template)
    return next((marks for marks in KNOWN_THOUGHTS.items() if marks[1] in template), None)


def _read_template(path: str) -> str:
    try:
        return regular(Path(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatError(f"policy.chat_template: {path!r} cannot be read: {error}") from error


def _load_files(
    path: str, model: str, config: str | None, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """Load the configuration of a model and its tokenizer."""
    from transformers import AutoConfig

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    reason = "has" if Path(path).is_dir() else "is no folder here, and the hub gives"
    with load_errors(f"policy.model: {model!r} {reason} no configuration and tokenizer that load", ChatError):
        for folder in {Path(path), Path(config or path)}:
            if folder.is_dir():
                model_files.check(folder, trust_remote_code=trust_remote_code)
        return AutoConfig.from_pretrained(config or path, **options), load_tokenizer(path, **options)


def _declared_ends(model: str, path: str, revision: str | None, config: Any, tokenizer: Any) -> list[int]:
    """Return the ids at which the model stops: those of its generation config and its tokenizer's end of sequence.

    If there is no generation config, the configuration's are taken.

    Raises:
        ChatError: the model is no language model, its embedding has fewer rows than the tokenizer has ids, or an id lies
            outside of the vocabulary.
    """
    from transformers import GenerationConfig

    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        raise ChatError(
            f"policy.model: {model!r} ({config.model_type}) is not a causal language model; name one that is"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ChatError(
            f"policy.model: the tokenizer of {model!r} has ids up to {largest}, its embedding only"
            f" {rows} rows; resize the embedding (model.resize_token_embeddings) or use the tokenizer"
            " that it was trained with"
        )
    file = Path(path) / "generation_config.json"
    declared = config.get_text_config().eos_token_id
    if file.is_file() or not Path(path).is_dir():
        absent = () if file.is_file() else (ChatError,)  # a model of the hub may have no such file
        with contextlib.suppress(*absent), load_errors(f"policy.model: {file} does not load", ChatError):
            declared = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    ends = list(declared) if isinstance(declared, list | tuple) else [declared]
    ends = [end for end in [*ends, tokenizer.eos_token_id] if end is not None]
    for end in ends:
        if not (type(end) is int and 0 <= end < rows):
            raise ChatError(
                f"policy.model: {model!r} ends at the token {end!r}, but its ids go from 0 to"
                f" {rows - 1}; mend eos_token_id in its generation_config.json"
            )
    return ends


def _end_of_turn(tokenizer: Any, template: Template, declared: Sequence[int]) -> tuple[int | None, list[str]]:
    """Return the token that ends an assistant's turn, and notes about it.

    It is the special token that the template writes behind an assistant's message. Some models end a turn with the token
    that begins the next one, which the template writes only if there is a next turn; it counts if the model stops there.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def first_special(text: str) -> int | None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return next((int(token) for token in ids if token in special), None)

    end = first_special(template.behind_answer(next_turn=False))
    if end is not None:
        name = tokenizer.convert_ids_to_tokens(end)
        stops = end in declared
        return end, [] if stops else [
            f"the template ends a turn with {name!r}, at which the generation config does not stop; sampling stops"
            " there all the same"
        ]
    try:
        following = first_special(template.behind_answer(next_turn=True))
    except ChatError:  # the template takes one turn only
        following = None
    if following is not None and following in declared:
        return following, []
    note = "the chat template writes no end-of-turn token; the end-of-sequence token is used"
    return (declared[0], [note]) if declared else (None, [])


def _roles(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _turn_mark(number: int, messages: Sequence[Message]) -> str:
    """Return a mark for a message that no message contains."""
    name = mark(number)
    while any(name in message["content"].lower() for message in messages):
        name = f"x{name}"
    return name
