"""AlpacaEval's files: annotations as the leaderboard keeps them, and the tables behind length control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppo.benchmarks.alpaca_eval.score import AlpacaEvalError, LengthControl
from sppo.benchmarks.outputs import read_rows

HUB_REPOSITORY = "tatsu-lab/alpaca_eval"
GAMED_FILE = "df_gamed.csv"
"""The hub's file of the gamed baselines' judgments and each instruction's difficulty."""

BASELINE_FILE = "alpaca_eval_gpt4_baseline.json"
"""The hub's file of GPT-4 Turbo's outputs to the 805 instructions."""


@dataclass(frozen=True)
class Judgments:
    """One model's judgments against one baseline by one judge, in the file's order.

    Attributes:
        model: the model whose outputs are judged; None where the file does not say.
        baseline: the model whose outputs they are compared with.
        judge: the name of the judge.
        preferences: 1 to 2, 0 for a tie, None where the judge gave none.
        output_lengths: lengths of the model's outputs, in characters.
        baseline_lengths: lengths of the baseline's outputs, in characters.
        instructions: the instructions; None where the file has no texts.
        rows: positions in the published file, by which difficulties are looked up; None where the file does not say,
            and the positions in this file are used.
    """

    model: str | None
    baseline: str | None
    judge: str | None
    preferences: list[float | None]
    output_lengths: list[int]
    baseline_lengths: list[int]
    instructions: list[str] | None
    rows: list[int] | None = None


def read_annotations(path: Path) -> Judgments:
    """Read a file of judgments: the leaderboard's `annotations.json`, or a table with lengths in place of texts.

    A row has `preference`, and either `output_1` (the baseline's) and `output_2` (the model's), or `baseline_len` and
    `output_len`; `instruction`, `generator_1`, `generator_2`, `annotator` and `row`, the position in the published file,
    where they are known.

    Raises:
        AlpacaEvalError: a column is missing, an instruction is there twice, or rows of several models, baselines or
            judges are mixed.
        sppo.benchmarks.outputs.OutputsError: the file cannot be read.
    """
    rows = list(read_rows(path))
    if not rows:
        raise AlpacaEvalError(f"{path}: there are no judgments in it")
    preferences = [_preference(row, number, path) for number, row in enumerate(rows)]
    instructions = [row.get("instruction") for row in rows]
    texts = [text for text in instructions if isinstance(text, str)]
    if texts and len(texts) < len(rows):
        raise AlpacaEvalError(f"{path}: {len(rows) - len(texts)} of {len(rows)} rows have no instruction")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise AlpacaEvalError(f"{path}: two judgments of the instruction {twice[:80]!r}; keep one")
    return Judgments(
        model=_shared_value(rows, "generator_2", path),
        baseline=_shared_value(rows, "generator_1", path),
        judge=_shared_value(rows, "annotator", path),
        preferences=preferences,
        output_lengths=[_length(row, "output_2", "output_len", n, path) for n, row in enumerate(rows)],
        baseline_lengths=[_length(row, "output_1", "baseline_len", n, path) for n, row in enumerate(rows)],
        instructions=texts or None,
        rows=_positions(rows, path),
    )


def in_order(judgments: Judgments, instructions: Sequence[str]) -> Judgments:
    """The judgments in the benchmark's order, in which difficulties are looked up.

    Raises:
        AlpacaEvalError: the instruction of a judgment does not belong to the benchmark.
    """
    if judgments.instructions is None:
        return judgments
    place = {text: number for number, text in enumerate(instructions)}
    for text in judgments.instructions:
        if text not in place:
            raise AlpacaEvalError(
                f"the benchmark has no instruction {text[:80]!r}, which a judgment belongs to; remove that judgment"
            )
    texts = judgments.instructions
    order = sorted(range(len(texts)), key=lambda row: place[texts[row]])
    columns = ("preferences", "output_lengths", "baseline_lengths", "instructions", "rows")
    moved: dict[str, Any] = {
        name: [column[row] for row in order]
        for name in columns
        if (column := getattr(judgments, name)) is not None
    }
    return replace(judgments, **moved)


def read_length_control(path: Path | None = None) -> LengthControl:
    """Read the tables behind length control.

    Args:
        path: a copy of the hub's `df_gamed.csv` or its parquet, with the columns `model`, `index`, `preference` (or
            `surrogate_preference`), `std_delta_len` and `instruction_difficulty`; or a folder with one; None: the
            hub's. The data are CC BY-NC 4.0 and not part of this package.

    Raises:
        AlpacaEvalError: there is no such file, a column is missing, or a value is no number.
    """
    file = _control_file(path)
    rows = list(read_rows(file))
    needed = ("index", "std_delta_len", "instruction_difficulty")
    lacking = [name for name in needed if not rows or name not in rows[0]]
    preference = next(
        (name for name in ("preference", "surrogate_preference") if rows and name in rows[0]), None
    )
    if lacking or preference is None:
        raise AlpacaEvalError(
            f"{file}: no column {', '.join([*lacking, *([] if preference else ['preference'])])}"
        )
    columns = {name: np.array([_number(row, name, file) for row in rows]) for name in (*needed, preference)}
    first: dict[int, float] = {}
    for index, difficulty in zip(columns["index"], columns["instruction_difficulty"], strict=True):
        first.setdefault(int(index), float(difficulty))
    if list(first) != list(range(len(first))):
        raise AlpacaEvalError(f"{file}: the instructions are not numbered 0, 1, 2, ... in their order")
    return LengthControl(
        np.array(list(first.values())),
        columns["std_delta_len"],
        columns["instruction_difficulty"],
        columns[preference],
    )


def baseline_from_hub() -> Path:
    """The hub's file of the baseline's outputs.

    Raises:
        AlpacaEvalError: the hub does not give it.
    """
    return _from_hub(BASELINE_FILE)


def _control_file(path: Path | None) -> Path:
    if path is None:
        return _from_hub(GAMED_FILE)
    if path.is_dir():
        names = (
            GAMED_FILE,
            "gamed_surrogate.parquet",
            f"common/{GAMED_FILE}",
            "common/gamed_surrogate.parquet",
        )
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise AlpacaEvalError(f"{path}: none of {', '.join(names)} is in it")
        return file
    if not path.is_file():
        raise AlpacaEvalError(f"{path}: there is no such file or folder")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise AlpacaEvalError(
            f"{name} of the hub's data set {HUB_REPOSITORY} cannot be downloaded: {error}; name your own copy with --length-control or --baseline"
        ) from error


def _preference(row: Mapping[str, Any], number: int, path: Path) -> float | None:
    if "preference" not in row:
        raise AlpacaEvalError(f"{path}, row {number}: no `preference`")
    value = row["preference"]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AlpacaEvalError(f"{path}, row {number}: preference = {value!r} is no number")
    return float(value)


def _positions(rows: Sequence[Mapping[str, Any]], path: Path) -> list[int] | None:
    if not any("row" in row for row in rows):
        return None
    positions: dict[int, None] = {}
    for number, row in enumerate(rows):
        value = row.get("row")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise AlpacaEvalError(
                f"{path}, row {number}: row = {value!r} is no position in the published file"
            )
        if value in positions:
            raise AlpacaEvalError(f"{path}, row {number}: a second judgment of row {value}; keep one")
        positions[value] = None
    return list(positions)


def _length(row: Mapping[str, Any], text: str, length: str, number: int, path: Path) -> int:
    if isinstance(row.get(text), str):
        return len(row[text])
    value = row.get(length)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise AlpacaEvalError(
        f"{path}, row {number}: neither a text under {text!r} nor its length under {length!r}"
    )


def _shared_value(rows: Sequence[Mapping[str, Any]], key: str, path: Path) -> str | None:
    values = {str(row[key]) for row in rows if row.get(key) is not None}
    if values and any(row.get(key) is None for row in rows):
        values.add("none")
    if len(values) > 1:
        raise AlpacaEvalError(
            f"{path}: judgments with several values of {key!r} ({', '.join(sorted(values)[:3])}) are mixed; give each"
            " its own file"
        )
    return next(iter(values), None)


def _number(row: Mapping[str, Any], key: str, path: Path) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise AlpacaEvalError(f"{path}: {key} = {value!r} is no finite number")
    return float(value)
