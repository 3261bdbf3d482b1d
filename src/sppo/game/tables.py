"""Preference matrices in files: CSV with or without names, and NumPy's .npy format."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppo.game.preference_games import Array, GameError, preference_game
from sppo.reading import regular


@dataclass(frozen=True)
class Table:
    """A preference game with the names of its responses.

    Attributes:
        payoff: [n, n], or [games, n, n] from an .npy file.
        names: n names; 0, 1, ... if the file has none.
    """

    payoff: Array
    names: tuple[str, ...]


def read_table(path: str | Path, *, tolerance: float = 1e-6) -> Table:
    """Read and check a preference matrix.

    A CSV file holds one matrix of numbers, optionally with a header row of names and with the same names in the
    first column (the corner cell is ignored). An .npy file holds [n, n] or [games, n, n].

    Args:
        path: a file whose name ends in .csv or .npy.
        tolerance: see preference_game; widen it for rounded files.

    Raises:
        ValueError: the file has another ending, a cell that is not a number or rows of different lengths, or it is
            not a preference game.
    """
    path = Path(path)
    if path.suffix == ".npy":
        try:
            payoff = np.load(path, allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # numpy parses the header as Python, whose errors are of many kinds
            raise GameError(f"{path} is not an array of numbers: {error}") from error
        names = tuple(map(str, range(payoff.shape[-1] if payoff.ndim else 0)))
    elif path.suffix == ".csv":
        payoff, names = _read_csv(path)
    else:
        raise GameError(
            f"{path}: a preference matrix is read from a .csv or .npy file, not from {path.suffix or 'no ending'!r}."
        )
    try:
        return Table(preference_game(payoff, tolerance=tolerance), names)
    except ValueError as error:
        raise GameError(f"{path}: {error}") from error


def write_table(path: str | Path, payoff: Array, names: tuple[str, ...] | None = None) -> None:
    """Write a game: to .npy as it is, or one matrix to .csv with 12 digits and its names as the header row."""
    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, payoff)
        return
    if path.suffix != ".csv":
        raise GameError(
            f"{path}: a preference matrix is written to .csv or .npy; choose one of these endings."
        )
    if payoff.ndim != 2:
        raise GameError(f"{path}: a CSV file holds one matrix; write the shape {payoff.shape} to .npy.")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if names is not None:
            writer.writerow(names)
        writer.writerows([[f"{p:.12g}" for p in row] for row in payoff])


def _read_csv(path: Path) -> tuple[Array, tuple[str, ...]]:
    with regular(path).open(newline="", encoding="utf-8-sig") as file:
        try:
            lines = [[cell.strip() for cell in row] for row in csv.reader(file)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise GameError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from error
    rows = [(number, row) for number, row in enumerate(lines, 1) if any(row)]
    if not rows:
        raise GameError(f"{path} is empty; expected n rows of n probabilities.")
    # the first column holds names if the corner is empty or the last row begins with a word
    named = rows[0][1][0] == "" or not _is_number(rows[-1][1][0])
    n = len(rows[-1][1]) - named
    header: list[str] = []
    if len(rows) == n + 1:
        header = rows.pop(0)[1][-n:]
    first = [row[0] for _, row in rows] if named else header
    if header and first != header:
        raise GameError(
            f"{path}: the rows are named {first}, the columns {header}; "
            "rows and columns must be the same responses in the same order."
        )
    payoff = []
    for number, row in rows:
        cells = row[named:]
        if len(cells) != len(rows):
            raise GameError(
                f"{path}, line {number}: {len(cells)} numbers, but the matrix has {len(rows)} rows."
            )
        for cell in cells:
            if not _is_number(cell):
                raise GameError(f"{path}, line {number}: {cell!r} is not a number.")
        payoff.append([float(cell) for cell in cells])
    return np.array(payoff), tuple(first or map(str, range(len(rows))))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
