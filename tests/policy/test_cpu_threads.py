"""The number of threads that a run chooses, and keeps."""

import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from small_runs import play_aloud, small

from sppo.policy import cpu_threads
from sppo.progress import Terminal
from sppo.recipe import load
from sppo.rundir.folder import RunFolder
from sppo.rundir.records import with_digest
from sppo.stages.open_run import open_run
from sppo.tinyworld import POLICY

LEFT_OUT = {"cpu_threads": None}
QUIET = Terminal(Console(quiet=True))


@pytest.fixture(autouse=True)
def _one_thread_afterwards():
    yield
    torch.set_num_threads(1)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(cpu_threads, "cores", lambda: 2)


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [({1: 1.0}, 1), ({1: 1.0, 2: 0.95}, 1), ({1: 1.0, 2: 0.6, 4: 0.5, 8: 0.49}, 4), ({1: 1.0, 2: 9.0}, 1)],
)
def test_more_threads_must_save_a_tenth(seconds, threads):
    assert cpu_threads.fewest_near_the_fastest(seconds) == threads


def test_the_machine_and_openmp_bound_the_number(monkeypatch):
    for value, threads in (("1", 1), ("1,4", 1), ("", os.cpu_count()), ("nonsense", os.cpu_count())):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert cpu_threads.cores() == min(threads, len(os.sched_getaffinity(0)))
    assert cpu_threads._candidates(1) == [1]
    assert cpu_threads._candidates(6) == [1, 2, 4, 6]
    assert cpu_threads._candidates(8) == [1, 2, 4, 8]


def test_the_policy_is_measured_once_and_torch_is_left_as_it_was():
    seconds = cpu_threads.measure(POLICY, "float32", 2)
    assert seconds.keys() == {1, 2}
    assert min(seconds.values()) > 0
    assert torch.get_num_threads() == 1
    assert cpu_threads.measure(POLICY, "float32", 2) == seconds


FINISHED = """
import sys
from pathlib import Path
from rich.console import Console
from sppo.progress import Terminal
from sppo.recipe import load
from sppo.rundir.folder import RunFolder
from sppo.stages.open_run import open_run
recipe, folder = load(sys.argv[1] + "/recipe.yaml", {"cpu_threads": None}), RunFolder(Path(sys.argv[1]))
print(open_run(recipe, folder, Terminal(Console())).recipe.cpu_threads, "torch" in sys.modules)
"""


def test_a_run_says_its_number_once_and_needs_no_torch_to_keep_it(two_cores, tmp_path):
    limits = {"prompts.train.limit": 4, "prompts.held_out.limit": 2, "sampling.max_new_tokens": 8}
    said = play_aloud(small(iterations=1, **LEFT_OUT, **limits), tmp_path)[1]
    chosen = cpu_threads.fewest_near_the_fastest(cpu_threads.measure(POLICY, "float32", 2))
    assert f"cpu_threads: {chosen}, as measured now" in said
    text = (tmp_path / "recipe.yaml").read_text()
    assert load(tmp_path / "recipe.yaml").cpu_threads == chosen
    assert f"CPU threads {chosen}" in text.partition("\n")[0]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FINISHED, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.stdout.endswith(f"{chosen} False\n"), shown.stderr
    assert "cpu_threads:" not in shown.stdout
    assert (tmp_path / "recipe.yaml").read_text() == text


def test_a_run_that_goes_on_keeps_the_number_that_it_was_begun_with(two_cores, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    open_run(small(cpu_threads=2), folder, QUIET)
    monkeypatch.setattr(cpu_threads, "measure", lambda *args, **options: pytest.fail("measured again"))
    continued = open_run(small(**LEFT_OUT), folder, QUIET)
    assert continued.recipe.cpu_threads == continued.executor.recipe.cpu_threads == 2, "workers too"
    assert continued.models.recipe.cpu_threads == 2
    assert open_run(small(cpu_threads=1), folder, QUIET).recipe.cpu_threads == 1, "the recipe decides"
    # an earlier version left the number to torch, and the first line alone says which one that was
    path = tmp_path / "recipe.yaml"
    lines = path.read_text().splitlines(keepends=True)[:-1]
    lines[0] = lines[0].replace("CPU threads 1", "CPU threads 2")
    earlier = "".join(lines).replace("cpu_threads: 1\n", "cpu_threads: null\n")
    path.write_text(with_digest(earlier))
    assert open_run(small(**LEFT_OUT), folder, QUIET).recipe.cpu_threads == 2


def test_a_number_beyond_this_machine_is_chosen_anew(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    open_run(small(cpu_threads=64), folder, QUIET)
    monkeypatch.setattr(cpu_threads, "cores", lambda: 1)
    assert open_run(small(**LEFT_OUT), folder, QUIET).recipe.cpu_threads == 1


def test_processes_side_by_side_share_the_cores(two_cores, tmp_path, monkeypatch):
    monkeypatch.setattr(
        cpu_threads, "measure", lambda *args, **options: pytest.fail("one core is left for each")
    )
    recipe = small(**LEFT_OUT, **{"workers.sample": 2})
    assert open_run(recipe, RunFolder(tmp_path), QUIET).recipe.cpu_threads == 1
