"""Functions that would end, stop or break the process that runs them: the run goes on and says what happened."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import SMALL
from typer.testing import CliRunner

from sppo import oracle
from sppo.cli.main import app
from sppo.oracle import OracleError, own_process
from sppo.oracle.function import FunctionOracle
from sppo.recipe.yaml_values import write_value

TIES = "[[[0.5] * len(r[0])] * len(r[0])] * len(p)"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of an oracle into the working folder and return the function's name."""
    monkeypatch.chdir(tmp_path)

    def write(body, top=""):
        (tmp_path / "own.py").write_text(
            f"import os, sys, time, signal\n{top}\ndef prefer(p, r):\n    {body}\n"
        )
        return "own:prefer"

    yield write
    for key, process in list(own_process._processes.items()):
        if key[1] == str(tmp_path):
            process.close()


def ask(name, **more):
    return oracle.load({"type": "function", "function": name, **more}).compare(["x"], [["a", "b"]])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os._exit(0)", "has ended its own process with exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "has ended its own process with the signal SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "has ended its own process with the signal SIGSEGV"),
        ("os.closerange(3, 100); time.sleep(0.1); os._exit(4)", "has ended its own process"),
        ("sys.exit(0)", r"raised SystemExit: 0 \(own.py, line 4\)"),
        ("return object()", "is not an array of numbers"),
        ("raise ValueError('x' * 5_000_000)", r"raised ValueError: x+ \[\.\.\.\] x+ \(own.py"),
    ],
)
def test_a_function_that_ends_its_process_does_not_end_the_run(module, body, reason):
    with pytest.raises(OracleError, match=reason) as refusal:
        ask(module(body))
    assert "among 1 prompts, the first of them 'x'" in str(refusal.value)
    assert len(str(refusal.value)) < 5000


@pytest.mark.parametrize("top", ["os._exit(0)", "time.sleep(1000)"])
def test_the_import_of_a_module_is_under_the_same_limits(module, top):
    with pytest.raises(OracleError, match=r"exit code 0|was not imported within 1 s"):
        FunctionOracle(function=module("pass", top), timeout_seconds=1).identity()


@pytest.mark.parametrize("body", ["time.sleep(1000)", "signal.alarm(0)\n    while True: pass"])
def test_a_function_that_does_not_answer_is_ended(module, body):
    name = module(body)
    loaded = oracle.load({"type": "function", "function": name, "timeout_seconds": 1})
    process = own_process.of(name)
    with pytest.raises(OracleError, match=r"has not answered within 1 s; among 1 prompts"):
        loaded.compare(["x"], [["a", "b"]])
    assert not process.is_alive()


def test_one_process_answers_all_questions_as_the_function_would_here(module):
    name = module(
        "calls.append(1); return [[[0.5, v(r)], [1 - v(r), 0.5]]]",
        "calls = []\ndef v(r): return 0.5 + len(calls) / 8",
    )
    here = oracle.load({"type": "function", "function": name})
    for expected in (0.625, 0.75):
        np.testing.assert_array_equal(here.compare(["\ud800 \0"], [["a", "b\u2028"]])[0, 0, 1], expected)
    identities = [FunctionOracle(function=name, own_process=own).identity() for own in (True, False)]
    assert identities[0] == identities[1] and "own_process" not in identities[0]


def test_only_the_processes_of_the_functions_asked_last_are_kept(module, tmp_path, monkeypatch):
    monkeypatch.setattr(own_process, "_MOST", 2)
    module(f"return {TIES}")
    for number in range(4):
        shutil.copy(tmp_path / "own.py", tmp_path / f"own{number}.py")
    processes = []
    for number in (0, 1, 0, 2):  # the first is asked again before the third
        ask(f"own{number}:prefer")
        processes.append(own_process.of(f"own{number}:prefer"))
    assert processes[0] is processes[2]
    assert [process.is_alive() for process in processes] == [True, False, True, True]
    ask("own1:prefer")  # one that has been ended is started again
    assert not processes[0].is_alive()


def test_a_run_whose_oracle_exits_ends_with_an_error(module, tmp_path):
    name = module("os._exit(0)")
    recipe = {**SMALL, "oracle": {"type": "function", "function": name}}
    (tmp_path / "recipe.yaml").write_text(write_value(recipe))
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--run-dir", "run"])
    assert result.exit_code == 1
    assert "a trial before the run" in result.output and "with exit code 0" in result.output


def test_a_function_at_work_ends_when_the_runs_process_is_killed(module, tmp_path):
    name = module("open('pid', 'w').write(str(os.getpid())); time.sleep(1000)")
    program = f"from sppo import oracle; oracle.load({{'type': 'function', 'function': {name!r}}}).compare(['x'], [['a', 'b']])"
    run = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    run.kill()
    run.wait()
    number = int((tmp_path / "pid").read_text())
    for _ in range(600):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the function is still at work")
