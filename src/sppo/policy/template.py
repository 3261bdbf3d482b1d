"""A chat template: a program of the tokenizer that writes a conversation as text."""

import contextlib
import datetime
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from sppo.policy.messages import ChatError, Message

_TWO_TIMES = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2032, 11, 27, 18, 49, 50))

SECONDS = 2.0
"""The longest time that a template may compute for one conversation; others take milliseconds."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise a TimeoutError if the template that is rendered inside computes for longer than :data:`SECONDS`.

    A template is a program of the model's folder, whose loops may never end and whose text may fill the memory. Python can
    interrupt its main thread only, so templates in other threads have no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    end = time.thread_time() + SECONDS

    def look(*_: Any) -> None:
        if time.thread_time() > end:  # the timer counts the time of other threads, too
            raise TimeoutError(f"it computes for longer than {SECONDS:g} seconds")

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Template:
    """The chat template of a tokenizer with the values that a recipe gives it.

    What a template does is found by rendering conversations of marks, which are words that no template writes by itself.

    Args:
        tokenizer: a tokenizer of transformers with a chat template.
        arguments: further variables of the template, such as ``enable_thinking``.
        date: the date that the template takes for today's, as YYYY-MM-DD; None: the clock's.
        owner: the section of the recipe that the settings stand in, for messages.

    Raises:
        ChatError: an argument or the date has no effect on this template.
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, Any],
        date: str | None,
        owner: Literal["policy", "oracle"] = "policy",
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments)
        self._owner = owner
        self._another = "mend it" + (
            ", or name another one as policy.chat_template" if owner == "policy" else ""
        )
        self._date = None if date is None else datetime.date.fromisoformat(date)
        self._marked: dict[tuple[tuple[str, ...], bool], str] = {}
        own = {"messages", "add_generation_prompt", "strftime_now", *tokenizer.special_tokens_map}
        for name in arguments:
            if name in own or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
                raise ChatError(
                    f"policy.template_arguments: the chat template has no argument {name!r}; remove it, or name one that"
                    " the template reads"
                )
        if self._date is not None and not self.reads_clock:
            raise ChatError(
                f"{owner}.template_date: {date}, but the chat template does not read today's date; remove this setting"
                + (
                    ", or set policy.template_arguments if the date is an argument of the template"
                    if owner == "policy"
                    else ""
                )
            )

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is rendered with beside the conversation: the arguments, and the date if it is fixed."""
        return self._variables(self._date)

    def _variables(self, date: datetime.date | None) -> dict[str, Any]:
        # a variable of the rendering takes the place of the function of this name that transformers provides
        return self._arguments if date is None else {**self._arguments, "strftime_now": date.strftime}

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Write a conversation as text.

        Raises:
            ChatError: the template fails on it.
        """
        return self._render(messages, generation_prompt, self._date)

    def _render(
        self, messages: Sequence[Message], generation_prompt: bool, date: datetime.date | None
    ) -> str:
        try:
            with limited():
                text: str = self._tokenizer.apply_chat_template(
                    [{"role": message["role"], "content": message["content"]} for message in messages],
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **self._variables(date),
                )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            system = any(message["role"] == "system" for message in messages)
            remedy = "set prompts.system: merge if it takes no system message" if system else self._another
            raise ChatError(
                f"the chat template does not render a conversation of {roles}:"
                f" {type(error).__name__}: {error}; {remedy}"
            ) from error
        return text

    def marked(self, roles: tuple[str, ...], *, generation_prompt: bool = False) -> str:
        """Return the text of a conversation of marks, in which the template has left out no message.

        Raises:
            ChatError: the template fails on it, or leaves out a message.
        """
        key = (roles, generation_prompt)
        if key not in self._marked:
            text = self.render(marks(roles), generation_prompt=generation_prompt)
            for number, role in enumerate(roles):
                if mark(number) not in text.lower():
                    remedy = "set prompts.system: merge" if role == "system" else self._another
                    raise ChatError(
                        f"the chat template leaves out what the {role} says in message {number + 1} of"
                        f" {', '.join(roles)}, so that the policy would not see what oracles read; {remedy}"
                    )
            self._marked[key] = text
        return self._marked[key]

    def behind_answer(self, *, next_turn: bool) -> str:
        """Return what the template writes behind an assistant's message, up to the user's next one if there is one."""
        roles = ("user", "assistant", "user") if next_turn else ("user", "assistant")
        text = self.render(marks(roles))
        behind = text[text.lower().rindex(mark(1)) + len(mark(1)) :] if mark(1) in text.lower() else ""
        end = behind.lower().find(mark(2))
        return behind[:end] if end >= 0 else behind

    @property
    def generation_prompt(self) -> str:
        """The text of a conversation of one user message up to where the response begins."""
        return self.marked(("user",), generation_prompt=True)

    @property
    def note_on_date(self) -> str | None:
        """What to say of a template that writes another date every day; None if it does not."""
        if self._date is not None or not self.reads_clock:
            return None
        return (
            "the chat template writes today's date, so that prompts depend on the day on which they are made; set"
            f" {self._owner}.template_date, e.g. to 2024-07-26, to give them a fixed one"
        )

    @cached_property
    def reads_clock(self) -> bool:
        """Whether prompts depend on the time at which they are written."""
        if "strftime_now" not in str(self._tokenizer.chat_template):
            return False
        for roles in (("user",), ("system", "user"), ("user", "assistant")):
            try:
                generation_prompt = roles[-1] == "user"
                texts = {self._render(marks(roles), generation_prompt, time) for time in _TWO_TIMES}
            except ChatError:
                continue  # it takes no such conversation
            if len(texts) > 1:
                return True
        return False

    def keeps_thoughts(self, start: str, end: str) -> bool:
        """Whether the template leaves the thoughts of earlier turns in the conversation; some refuse them instead."""
        conversation = marks(("user", "assistant", "user"))
        conversation[1]["content"] = f"{start}{mark(3)}{end}{mark(1)}"
        try:
            return mark(3) in self.render(conversation).lower()
        except ChatError:
            return False


def mark(number: int) -> str:
    """Return a word that stands for a message: lower case, because some templates change the case."""
    return f"sentinel{number}word"


def marks(roles: Sequence[str]) -> list[Message]:
    """Return a conversation in which each message is a mark of its own."""
    return [{"role": role, "content": mark(number)} for number, role in enumerate(roles)]
