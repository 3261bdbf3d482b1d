"""The smallest recipe, texts made of it, and what loading such a text gives."""

from pathlib import Path

import pytest

from sppo.recipe import Recipe, RecipeError, load

SMALLEST = "policy: {model: m}\nprompts: {train: a.jsonl}\noracle: {type: function, function: mine:f}\n"


def smallest() -> dict[str, object]:
    return {
        "policy": {"model": "m"},
        "prompts": {"train": "a.jsonl"},
        "oracle": {"type": "function", "function": "mine:f"},
    }


def load_text(folder: Path, text: str | bytes, overrides: dict[str, object] | None = None) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, overrides)


def refusal_lines(folder: Path, text: str | bytes, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_text(folder, text, overrides)
    return [line.strip() for line in str(caught.value).splitlines()]


def with_oracle(text: str) -> str:
    return SMALLEST.replace("{type: function, function: mine:f}", text)


def with_train(text: str) -> str:
    return SMALLEST.replace("a.jsonl", text)
