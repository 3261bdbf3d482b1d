"""Files of prompts in the working folder, and the texts of a split."""

from pathlib import Path

import pyarrow as pa

from sppo import prompts
from sppo.recipe import PromptSource

QUESTION = {"role": "user", "content": "And why?"}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "It is."},
    QUESTION,
]


def as_source(value):
    if isinstance(value, list):
        return [as_source(entry) for entry in value]
    return PromptSource(source=value) if isinstance(value, str) else value


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def write_lines(name: str, count: int, start: int = 0) -> str:
    return write(name, "".join(f"prompt {number}\n" for number in range(start, start + count)))


def texts_of(table: pa.Table) -> list[str]:
    return [messages[-1]["content"] for messages in table["messages"].to_pylist()]


def all_texts(split: prompts.Split) -> list[str]:
    return sorted(text for part in [*split.iterations, split.held_out] for text in texts_of(part))


def all_rows(split: prompts.Split) -> list[list[dict[str, object]]]:
    return [part.to_pylist() for part in [*split.iterations, split.held_out]]
