"""Prompts with verifiable constraints, written by a program from the texts of base.yaml.

A prompt is a base text (a form with a topic) and one to three constraints of IFEval's kinds, in wordings and with values
that are not the benchmark's. Some kinds are held out: no training prompt states them, and each held-out prompt states one of
them beside one that is trained on. So an oracle that reads only the former measures what was learnt about following
instructions, and not about the constraints that were trained on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sppo import randomness
from sppo.recipe import read_value

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
TRAINED_CONSTRAINTS, HELD_OUT_CONSTRAINTS = "constraints.jsonl", "held-out-constraints.jsonl"
NUMBER_OF_CONSTRAINTS = {1: 0.5, 2: 0.3, 3: 0.2}
"""How probable it is that a training prompt states so many constraints."""

Row = dict[str, Any]


@cache
def texts() -> Any:
    """The forms, topics, words and constraints of base.yaml."""
    name = "base.yaml"
    return read_value((files("sppo.instructions") / name).read_text(encoding="utf-8"), name=name)


def kinds(*, held_out: bool) -> list[str]:
    """IFEval's names of the constraints that are never trained on, or of those that are."""
    return [name for name, kind in texts()["constraints"].items() if kind.get("held_out", False) == held_out]


def base_texts(seed: int) -> list[str]:
    """Every form with every topic of its kind, in an order that depends on the seed."""
    forms, topics = texts()["forms"], texts()["topics"]
    every = [
        form.replace("{topic}", topic) for kind in forms for form in forms[kind] for topic in topics[kind]
    ]
    order = randomness.generator("base texts", seed).permutation(len(every))
    return [every[number] for number in order]


def training_rows(bases: Sequence[str], seed: int) -> list[Row]:
    """A training prompt for each base text, as rows in IFEval's format (`prompt`, `instruction_id_list`, `kwargs`)."""
    return [
        _row(f"train-{number}", base, _draw_kinds(generator), generator)
        for number, base, generator in _with_generators(bases, "train", seed)
    ]


def held_out_rows(bases: Sequence[str], seed: int) -> tuple[list[Row], list[Row]]:
    """A held-out prompt for each base text: a row with its constraint of a trained kind, and one with that of a held-out kind."""
    trained, held_out = [], []
    for number, base, generator in _with_generators(bases, "held-out", seed):
        first = str(generator.choice(_companions(kinds(held_out=True), [])))
        second = str(generator.choice(_companions(kinds(held_out=False), [first])))
        row = _row(f"held-out-{number}", base, [second, first], generator)
        names, values = row["instruction_id_list"], row["kwargs"]
        trained.append(row | {"instruction_id_list": names[:1], "kwargs": values[:1]})
        held_out.append(row | {"instruction_id_list": names[1:], "kwargs": values[1:]})
    return trained, held_out


def write(folder: Path, *, train: int, held_out: int, seed: int = 0) -> None:
    """Write the prompts of a run and the constraints for its oracles, all as JSON lines.

    Args:
        folder: where :data:`TRAIN`, :data:`HELD_OUT` and the two files of constraints are written.
        train: the number of training prompts.
        held_out: the number of held-out prompts; they share no base text with the training prompts.
        seed: the same seed writes the same files.

    Raises:
        ValueError: there are fewer base texts than prompts.
    """
    bases = base_texts(seed)
    if train + held_out > len(bases):
        raise ValueError(
            f"{train} training and {held_out} held-out prompts, but there are {len(bases)} base texts; ask for fewer"
        )
    rows = training_rows(bases[held_out : held_out + train], seed)
    trained, never_trained = held_out_rows(bases[:held_out], seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        (TRAIN, _prompts(rows)),
        (HELD_OUT, _prompts(trained)),
        (TRAINED_CONSTRAINTS, rows + trained),
        (HELD_OUT_CONSTRAINTS, never_trained),
    ):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")


def _prompts(rows: Sequence[Row]) -> list[Row]:
    return [{"prompt_id": row["key"], "prompt": row["prompt"]} for row in rows]


def _with_generators(
    bases: Sequence[str], part: str, seed: int
) -> Iterator[tuple[int, str, np.random.Generator]]:
    for number, base in enumerate(bases):
        yield number, base, randomness.generator(f"{part} prompt", seed, number)


def _draw_kinds(generator: np.random.Generator) -> list[str]:
    """One to three kinds that are trained on and go together."""
    every, chosen = kinds(held_out=False), [str(generator.choice(kinds(held_out=False)))]
    wanted = generator.choice(list(NUMBER_OF_CONSTRAINTS), p=list(NUMBER_OF_CONSTRAINTS.values()))
    if not texts()["constraints"][chosen[0]].get("alone"):
        while len(chosen) < wanted:
            chosen.append(str(generator.choice(_companions(every, chosen))))
    return chosen


def _companions(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Those of the kinds that can be stated beside the chosen ones: none of a group that is there, none that stands alone."""
    every = texts()["constraints"]
    groups = {every[name]["group"] for name in chosen}
    return [name for name in names if every[name]["group"] not in groups and not every[name].get("alone")]


def _row(key: str, base: str, names: Sequence[str], generator: np.random.Generator) -> Row:
    stated = [_state(name, base, generator) for name in names]
    gap = str(generator.choice([" ", "\n", "\n\n"]))
    return {
        "key": key,
        "prompt": base + gap + " ".join(text for text, _ in stated),
        "instruction_id_list": list(names),
        "kwargs": [arguments for _, arguments in stated],
    }


def _state(name: str, base: str, generator: np.random.Generator) -> tuple[str, Row]:
    """A constraint of a kind in words, and the arguments of its check."""
    variants = texts()["constraints"][name]["variants"]
    variant = variants[generator.integers(len(variants))]
    values = {key: _draw_value(value, base, generator) for key, value in variant["values"].items()}
    wording = variant["say"][generator.integers(len(variant["say"]))]
    words = {key: " and ".join(value) if isinstance(value, list) else value for key, value in values.items()}
    return wording.format(**words), values


def _draw_value(value: Any, base: str, generator: np.random.Generator) -> Any:
    """The value of an argument: fixed, one of a list, `{word: true}`, `{words: n}`, or `{base: true}` for the base text."""
    if isinstance(value, list):
        return value[generator.integers(len(value))]
    if not isinstance(value, Mapping):
        return value
    if "base" in value:
        return base
    words = [str(word) for word in generator.choice(texts()["words"], value.get("words", 1), replace=False)]
    return words[0] if "word" in value else words
