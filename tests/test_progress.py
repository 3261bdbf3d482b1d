"""What commands print, and where."""

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sppo.progress import Terminal, counted_text, printable


def terminal(**options):
    """A terminal whose progress and results are kept apart."""
    made = Terminal(**options)
    made.console, made.results = (Console(file=StringIO(), width=120) for _ in range(2))
    return made


def texts(made):
    return made.console.file.getvalue(), made.results.file.getvalue()


def speak(made):
    with made.bar("iteration 1: train", 2, "steps") as advance:
        advance(1, "loss 0.5")
        advance(1, "loss 0.25")
    with made.bar("prompts", None, "prompts") as advance:
        advance(1)
    made.say("note: on the way")
    made.warn("WARNING: careful")
    made.show("the table")
    made.show_json({"win_rates": np.array([0.5, np.nan]), "limit": float("inf")})


def test_progress_and_results_go_to_different_consoles():
    made = terminal()
    speak(made)
    progress, results = texts(made)
    assert "iteration 1: train: 2 steps in 0.0 s, loss 0.25" in progress
    assert "prompts: 1 prompt in 0.0 s" in progress
    assert "note: on the way" in progress
    assert "WARNING: careful" in progress
    assert results == "the table\n"


def test_a_quiet_terminal_prints_warnings_and_results():
    made = terminal(quiet=True)
    speak(made)
    assert texts(made) == ("WARNING: careful\n", "the table\n")


def test_json_replaces_the_results_for_people_and_is_valid():
    made = terminal(as_json=True)
    speak(made)
    assert json.loads(texts(made)[1], parse_constant=pytest.fail) == {"win_rates": [0.5, None], "limit": None}


@pytest.mark.parametrize("how", [{}, {"as_json": True}, {"quiet": True}])
def test_a_part_of_a_command_prints_warnings_alone(how):
    whole = terminal(**how)
    speak(whole.for_part())
    assert texts(whole) == ("WARNING: careful\n", "")


def test_nouns_follow_their_number():
    assert [counted_text(n, "prompt") for n in (0, 1, 2, 1000)] == [
        "0 prompts", "1 prompt", "2 prompts", "1,000 prompts",
    ]  # fmt: skip


def test_text_of_models_cannot_drive_the_terminal():
    assert (
        printable("a\x1b[2Jb\x07\u202ec\r\n\td\u00e9\U0001f98a\u3000e\xa0f\u200d\u200f")
        == "a\\x1b[2Jb\\x07\\u202ec\\r\n\td\u00e9\U0001f98a\u3000e\xa0f\u200d\\u200f"
    )
