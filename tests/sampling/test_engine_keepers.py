"""Engines that outlive their samplers, with a stand-in for vLLM in the engine's real process."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import stand_in_vllm

from sppo.sampling import SamplingError
from sppo.sampling.engine_keepers import BorrowedEngines, OwnEngines
from sppo.sampling.vllm_engine import EngineRequest, VllmEngine

KEY = b"a key"
LENDER = """
import sys
from pathlib import Path
from sppo.sampling import engine_keepers
engine_keepers.has_room_to_keep = lambda: not Path("full").exists()
lender = engine_keepers.EngineLender(b"a key")
print(lender.address(), flush=True)
for line in sys.stdin:
    print(eval(line, {"lender": lender}), flush=True)
"""
BORROWER = """
import pickle, sys
from pathlib import Path
from sppo.sampling.engine_keepers import BorrowedEngines
keeper = BorrowedEngines(sys.argv[1], b"a key")
engine = keeper.start(pickle.loads(Path(sys.argv[2]).read_bytes()))
print(engine.pid, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Lender:
    """An `EngineLender` in a process of its own."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LENDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        self.keeper = BorrowedEngines(self.process.stdout.readline().strip(), KEY)

    def ask(self, call):
        self.process.stdin.write(f"lender.{call}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def engines(self):
        return {child.pid for child in psutil.Process(self.process.pid).children() if not is_dead(child.pid)}

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    stand_in_vllm.write(folder)
    for number in (1, 2):
        model = folder / f"model-{number}"
        model.mkdir()
        (model / "model.safetensors").write_bytes(bytes([number]))
    return folder


@pytest.fixture(scope="module")
def lender(folder):
    lender = Lender(folder)
    yield lender
    lender.kill()


@pytest.fixture
def request_of(folder):
    environment = stand_in_vllm.environment(folder)

    def request(model=1, shape="a shape", **arguments):
        return EngineRequest(arguments, folder / f"model-{model}", shape, environment, folder)

    return request


PARAMETERS = {"max_tokens": 9, "stop_token_ids": [5], "detokenize": False}


def drawn(engine, prompts=2, seed=0):
    """The token ids of two responses to each prompt."""
    named = [(str(number), [7], seed + 10 * number) for number in range(prompts)]
    engine.send(("sample", (PARAMETERS, named, 2)))
    answers = dict(engine.receive() for _ in named)
    return [[tokens for tokens, _, _ in answers[name]] for name, _, _ in named]


def is_dead(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def borrower(lender, request_of, tmp_path):
    """Starts a process that borrows an engine; returns it and the engine's id."""
    processes = []

    def start(**request):
        file = tmp_path / "request"
        file.write_bytes(pickle.dumps(request_of(**request)))
        process = subprocess.Popen(
            [sys.executable, "-c", BORROWER, lender.keeper._address, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_one_engine_serves_policies_of_several_processes_like_fresh_engines(lender, request_of, borrower):
    first = lender.keeper.start(request_of(model=1))
    of_first = drawn(first)
    lender.keeper.keep(first)
    _, lent_to_another_process = borrower(model=2)
    assert lent_to_another_process == first.pid
    lender.keeper.end()
    own = OwnEngines()
    fresh = own.start(request_of(model=1))
    assert fresh.pid != first.pid and drawn(fresh) == of_first
    fresh.load_weights(request_of(model=2).model)
    assert drawn(fresh) != of_first
    fresh.end()


def test_a_process_that_ends_gives_back_what_it_has_borrowed_and_is_waited_for(lender, request_of, borrower):
    process, pid = borrower()
    assert lender.ask("wait_for_returns(0.0)") == "False"
    process.stdin.write("keeper.keep(engine)\n")
    process.stdin.flush()
    assert lender.ask("wait_for_returns(20.0)") == "True"
    again = lender.keeper.start(request_of())
    assert again.pid == pid
    lender.keeper.keep(again)


def test_two_that_ask_at_the_same_time_get_an_engine_each_and_both_are_used_again(lender, request_of):
    engines = [lender.keeper.start(request_of(model=number)) for number in (1, 2)]
    assert engines[0].pid != engines[1].pid
    assert drawn(engines[0]) != drawn(engines[1])
    for engine in engines:
        lender.keeper.keep(engine)
    again = [lender.keeper.start(request_of(model=2)) for _ in range(2)]
    assert {engine.pid for engine in again} == {engine.pid for engine in engines}
    assert drawn(again[0]) == drawn(again[1])
    for engine in again:
        lender.keeper.keep(engine)


@pytest.mark.parametrize("change", [{"max_num_seqs": 3}, {"shape": "another shape"}], ids=str)
def test_other_arguments_or_another_shape_end_the_idle_engines_and_start_a_new_one(
    lender, request_of, change
):
    kept = lender.keeper.start(request_of())
    lender.keeper.keep(kept)
    before = lender.engines()
    other = lender.keeper.start(request_of(**change))
    assert lender.engines() == {other.pid} and other.pid not in before
    assert other.rows == change.get("max_num_seqs", 4)
    lender.keeper.keep(other)


def test_the_engine_of_a_borrower_that_is_killed_at_work_ends_and_the_next_loan_is_served(
    lender, request_of, borrower
):
    process, pid = borrower()
    request = (PARAMETERS, [("0", [-1], 0)], 1)
    process.stdin.write(f"engine.is_idle = False; engine.send(('sample', {request}))\n")
    process.stdin.flush()
    process.stdout.readline()
    process.kill()
    assert lender.ask("wait_for_returns(20.0)") == "True"
    assert is_dead(pid)
    engine = lender.keeper.start(request_of())
    assert len(drawn(engine)) == 2
    lender.keeper.keep(engine)


def test_an_engine_runs_in_the_environment_and_the_folder_of_its_borrower(lender, request_of, tmp_path):
    request = request_of()
    threads = {**request.environment, "OMP_NUM_THREADS": "3"}
    engine = lender.keeper.start(
        replace(request, environment=threads, working_folder=tmp_path, arguments={"max_num_seqs": 1})
    )
    process = psutil.Process(engine.pid)
    assert process.environ()["OMP_NUM_THREADS"] == "3" and process.cwd() == str(tmp_path)
    engine.end()
    assert is_dead(engine.pid)


def test_an_engine_that_fails_says_why_to_its_borrower(lender, request_of):
    with pytest.raises(SamplingError, match="no_such is no argument"):
        lender.keeper.start(request_of(no_such=1))
    engine = lender.keeper.start(request_of())
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(SamplingError, match="vllm has ended with exit code -9"):
        drawn(engine)
    engine.end()
    assert lender.ask("wait_for_returns(20.0)") == "True"


def test_engines_are_kept_where_there_is_room_and_end_before_training_where_there_is_none(
    lender, request_of, folder
):
    kept, lent = (lender.keeper.start(request_of()) for _ in range(2))
    lender.keeper.keep(kept)
    lender.ask("make_room()")
    assert kept.pid in lender.engines()
    (folder / "full").touch()
    lender.keeper.keep(lent)
    assert lender.engines() == {kept.pid}
    lender.ask("make_room()")
    assert not lender.engines()
    (folder / "full").unlink()


@pytest.mark.slow
def test_nothing_outlives_a_lender_that_is_killed_and_its_borrowers_go_on(folder, request_of):
    lender = Lender(folder)
    lent, idle = (lender.keeper.start(request_of()) for _ in range(2))
    lender.keeper.keep(idle)
    lender.kill()
    wait_until(lambda: is_dead(idle.pid))
    assert drawn(lent) == drawn(lent)
    lender.keeper.keep(lent)
    wait_until(lambda: is_dead(lent.pid))
    own = lender.keeper.start(request_of())
    assert isinstance(own, VllmEngine) and len(drawn(own)) == 2
    lender.keeper.keep(own)
    assert is_dead(own.pid)


def test_a_process_that_does_not_know_the_key_borrows_nothing(lender, request_of):
    stranger = BorrowedEngines(lender.keeper._address, b"another key")
    with pytest.raises(Exception, match="digest"):
        stranger.start(request_of())
    engine = lender.keeper.start(request_of())
    lender.keeper.keep(engine)


@pytest.mark.slow
def test_a_request_says_what_an_engine_depends_on(monkeypatch, tmp_path):
    from sppo.tinyworld import POLICY

    monkeypatch.chdir(Path(POLICY).parent)
    request = EngineRequest.of({"dtype": "float32"}, Path(Path(POLICY).name))
    assert request.model == Path(POLICY).absolute()
    assert request.working_folder == Path.cwd()
    assert request == EngineRequest.of({"dtype": "float32"}, Path(POLICY))
