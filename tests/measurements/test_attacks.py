"""A small portion of the attacks on run folders, processes and readers of foreign input; the whole is run by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASUREMENTS = Path(__file__).resolve().parents[2] / "measurements"


def attacked(folder, *arguments):
    """The cases that an attack has tried; it must not fail."""
    done = subprocess.run(
        [sys.executable, MEASUREMENTS / arguments[0], *arguments[1:], "--folder", folder],
        capture_output=True,
        text=True,
        env={**os.environ, "SPPO_WORKING_COPIES": str(folder / "copies")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (ledger,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_damaged_files_are_noticed_or_mended(tmp_path):
    cases = attacked(tmp_path, "faults.py", "damage", "--count", "12", "--seed", "7", "--states", "finished")
    assert len(cases) == 12
    assert {case["verdict"] for case in cases} <= {"noticed", "refused", "redone", "identical"}


@pytest.mark.long
def test_killed_runs_end_in_the_same_bytes(tmp_path):
    cases = attacked(tmp_path, "faults.py", "kills", "--count", "6", "--seed", "7", "--place", "one process")
    assert sum(sum(case["killed"].values()) for case in cases) == 6
    assert {case["verdict"] for case in cases} == {"identical bytes"}


@pytest.mark.slow
def test_hostile_inputs_get_nowhere(tmp_path):
    cases = attacked(tmp_path, "hostile.py", "--count", "36", "--seed", "7")
    assert len({case["kind"] for case in cases}) == 6
    assert {case["verdict"] for case in cases} == {"refused", "accepted"}


def _in_a_child(program):
    subprocess.run([sys.executable, "-S", "-c", program], check=True)


def test_the_harness_notices_each_kind_of_failure(tmp_path, monkeypatch):
    """A harness that finds nothing must be able to find something."""
    monkeypatch.syspath_prepend(str(MEASUREMENTS))
    import attack
    import hostile
    import hostile_inputs
    from hostile_case import Case

    def tried(function, limit=5.0):
        home = tmp_path / "case"
        home.mkdir(exist_ok=True)
        verdict, _ = hostile.try_case(Case("x", function, limit), home, tmp_path / "visits")
        for left in home.iterdir():
            left.unlink()
        return verdict

    def said(text, code=0):
        print(text)
        return code

    assert tried(lambda: said("fine")) == "accepted"
    assert tried(lambda: said("error: no", 1)) == "refused"
    assert tried(lambda: said("", 1)) == "FAILED: failed without a message"
    assert tried(lambda: 1 / 0) == "FAILED: traceback"
    assert tried(lambda: os.kill(os.getpid(), 9)) == "FAILED: died of signal 9"
    assert tried(lambda: os.read(os.pipe()[0], 1), limit=0.2) == "FAILED: hang"
    assert tried(lambda: hostile_inputs.pickle.loads(hostile_inputs.PICKLE)) == "FAILED: code was executed"
    assert tried(lambda: said(os.environ["HOSTILE_KEY"])) == "FAILED: the key is shown or stored"
    assert tried(lambda: Path("kept").write_text(os.environ["HOSTILE_KEY"]) and 0).endswith("stored")
    assert tried(lambda: said(Path("/etc/passwd").read_text())) == "FAILED: /etc/passwd was read"
    assert tried(lambda: (tmp_path / "visits").touch()) == "FAILED: a redirection was followed"
    assert attack.attempt(lambda: None, tmp_path, 5).fault is None
    assert 0.1 < attack.attempt(lambda: _in_a_child("import time; time.sleep(0.2)"), tmp_path, 5).seconds < 5
    assert tried(lambda: _in_a_child("while True: pass"), limit=0.3) == "FAILED: hang"
