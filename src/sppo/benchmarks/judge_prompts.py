"""The prompts of judges: messages with places for the question and the responses.

The defaults are this project's own wording. A figure is comparable with a leaderboard's only if the judge is given the
leaderboard's prompt, which each benchmark keeps in a file of its own; such a file is read in its own format.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo.policy.chat_format import Message
from sppo.reading import regular

_PLACE = re.compile(r"\{(\w+)\}")


class JudgePromptError(ValueError):
    """A judge's prompt that cannot be used; the message names the file."""


@dataclass(frozen=True)
class JudgePrompt:
    """Messages with places such as ``{question}``.

    Attributes:
        name: the prompt's name in results.
        messages: the role and the template of each message.
    """

    name: str
    messages: tuple[tuple[str, str], ...]

    def fill(self, values: Mapping[str, str]) -> list[Message]:
        """The messages with their places filled. Each place is filled once: braces in a value are text."""
        return [
            {"role": role, "content": _PLACE.sub(lambda place: values.get(place[1], place[0]), template)}
            for role, template in self.messages
        ]

    def require(self, places: Sequence[str]) -> "JudgePrompt":
        """The prompt itself, if it has all of these places.

        Raises:
            JudgePromptError: it lacks one.
        """
        there = {place for _, template in self.messages for place in _PLACE.findall(template)}
        lacking = [place for place in places if place not in there]
        if lacking:
            raise JudgePromptError(f"the judge's prompt {self.name!r} has no place {{{lacking[0]}}}")
        return self

    def record(self) -> dict[str, object]:
        """The prompt word by word, with its SHA-256, for a result."""
        messages = [{"role": role, "content": template} for role, template in self.messages]
        digest = hashlib.sha256(repr(self.messages).encode()).hexdigest()
        return {"name": self.name, "sha256": digest, "messages": messages}


def read_text(path: Path) -> str:
    """The text of a prompt's file.

    Raises:
        JudgePromptError: it cannot be read.
    """
    try:
        return regular(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgePromptError(f"{path}: the judge's prompt cannot be read: {error}") from error
