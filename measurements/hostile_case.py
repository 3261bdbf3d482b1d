"""What a hostile case is, and what all kinds of cases share."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRONG = "SILENT WRONG"


@dataclass(frozen=True)
class Case:
    """What to run, and in which words it was made.

    Attributes:
        what: what is hostile about it.
        run: the function to run in the case's folder.
        limit: the seconds after which the case hangs.
    """

    what: str
    run: Callable[[], Any]
    limit: float = 10.0


@dataclass(frozen=True)
class Materials:
    """Valid inputs to change.

    Attributes:
        model: the folder of a tiny policy.
        run: the folder of a finished run.
        judge: the address of the hostile judge.
    """

    model: Path
    run: Path
    judge: str


def at_the_edge(function: Callable[[], None]) -> Callable[[], int]:
    """The function, with errors shown as the command line shows them."""

    def run() -> int:
        from sppo.cli.main import show_expected_error

        try:
            function()
        except (ValueError, OSError, RuntimeError) as error:
            return show_expected_error(error)
        return 0

    return run


Kind = Callable[[Path, random.Random, Materials], Case]
"""Makes a case of a kind of input in an empty folder."""
