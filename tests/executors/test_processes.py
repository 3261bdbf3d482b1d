import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml
from rich.console import Console
from small_runs import RAY, digests, play
from toy_jobs import RECIPE, SHARDS, ToyDeadOnArrival, make, recipe, toy_job, worker_pool

from sppo.executors.local import Local, count_workers, devices_of_an_engine, visible_devices
from sppo.executors.processes import exit_in_words
from sppo.oracle import OracleError
from sppo.progress import Terminal
from sppo.recipe import RecipeError, parse
from sppo.rundir.folder import RunError, RunFolder
from sppo.rundir.shards import read_shard, table
from sppo.rundir.tables import PROMPTS
from sppo.stages.jobs import Kind, ShardJob
from sppo.stages.models import Models
from sppo.stages.sample import DrawResponses


def test_shards_are_shared_out_and_progress_is_counted_once(tmp_path):
    job = toy_job(tmp_path, seconds=0.3)
    assert make(job, 2) == 2 * SHARDS
    assert all(shard.is_whole() for shard in job.shards)
    assert len(makers(tmp_path)) == 2
    assert os.getpid() not in makers(tmp_path)


def test_a_worker_that_is_killed_is_replaced_and_its_shard_done_again(tmp_path):
    job = toy_job(tmp_path, kill=1, deaths=1)
    assert make(job, 2) == 2 * SHARDS
    assert [read_shard(shard.path)["prompt_id"].to_pylist() for shard in job.shards] == [
        [str(number)] for number in range(SHARDS)
    ]
    assert len(list(tmp_path.glob("begun-1-*"))) == 2
    assert len(list(tmp_path.glob("begun-*"))) == SHARDS + 1, "the other shards are not done again"


def test_a_shard_that_kills_its_workers_is_an_error_and_the_finished_ones_are_kept(tmp_path):
    job = toy_job(tmp_path, kill=1, deaths=9)
    with pytest.raises(
        RunError, match=r"toy: 2 workers .* part-00001.parquet, .* SIGKILL, as the kernel does"
    ):
        make(job, 2)
    assert not job.shards[1].is_whole()
    assert sum(shard.is_whole() for shard in job.shards) >= SHARDS - 3
    assert len(list(tmp_path.glob("begun-1-*"))) == 2


def test_an_error_in_a_worker_is_raised_as_it_was_and_ends_the_workers(tmp_path):
    with worker_pool() as pool:
        with pytest.raises(OracleError, match="the oracle's answer is nonsense") as error:
            make(toy_job(tmp_path, fail=2), 2, pool=pool)
        assert not pool.processes
        assert not any(map(alive, makers(tmp_path)))
    assert error.value.prompt_index == 3
    assert "in a worker" in error.value.__notes__[0]
    assert len(list(tmp_path.glob("begun-2-*"))) == 1, "an error is not tried again"


def makers(folder):
    """The processes that have made the shards of a toy job."""
    return {int(path.name.split("-")[2]) for path in folder.glob("begun-*")}


def test_the_same_workers_make_one_job_after_another_and_one_that_died_is_replaced(tmp_path):
    with worker_pool() as pool:
        made = [make(toy_job(tmp_path / name, seconds=0.3), 2, pool=pool) for name in ("first", "second")]
        assert made == [2 * SHARDS] * 2
        assert makers(tmp_path / "first") == makers(tmp_path / "second") == set(pool.processes)
        killed, kept = pool.processes
        os.kill(killed, signal.SIGKILL)
        assert make(toy_job(tmp_path / "third"), 2, pool=pool) == 2 * SHARDS
        assert kept in makers(tmp_path / "third") <= set(pool.processes)
        assert killed not in pool.processes and len(pool.processes) == 2
        workers = pool.processes
        assert make(toy_job(tmp_path / "fourth"), 1, pool=pool) == 2 * SHARDS
        assert len(makers(tmp_path / "fourth")) == 1
        assert makers(tmp_path / "fourth") < set(workers) == set(pool.processes)
    assert not any(map(alive, workers)), "nothing is left when the pool has ended"


def test_workers_on_gpus_end_with_their_job(tmp_path):
    with worker_pool() as pool:
        assert make(toy_job(tmp_path / "toy"), 1, pool=pool, devices="0") == 2 * SHARDS
        assert not pool.processes
        assert not any(map(alive, makers(tmp_path / "toy")))


def test_workers_that_die_before_they_begin_a_shard_are_an_error(tmp_path):
    with pytest.raises(RunError, match=r"toy: 2 workers have ended before they began a shard, .* SIGKILL"):
        make(toy_job(tmp_path, work=ToyDeadOnArrival), 1)
    assert len(list(tmp_path.glob("arrived-*"))) == 2


def test_workers_outlast_training_where_enough_memory_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("sppo.training.train", lambda *arguments: None)
    with Local(recipe()) as executor:
        make(toy_job(tmp_path), 1, pool=executor.workers)
        begun = executor.workers.processes
        for has_room in (True, False):
            monkeypatch.setattr("sppo.sampling.memory.has_room_to_keep", lambda has_room=has_room: has_room)
            executor.train(None, None, None)
            assert executor.workers.processes == (begun if has_room else [])
    assert not any(map(alive, begun))


class WatchedLocal(Local):
    """Notes which worker processes there are after each job and after each training."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def run(self, jobs, models, terminal, on_made):
        super().run(jobs, models, terminal, on_made)
        self.seen.append((jobs[0].title, *self.workers.processes))

    def train(self, job, on_step, say):
        super().train(job, on_step, say)
        self.seen.append(("train", *self.workers.processes))


@pytest.mark.slow
def test_two_workers_serve_a_whole_run_which_is_that_of_one_process(tmp_path, monkeypatch):
    """They sample, annotate, select and evaluate in both iterations."""
    monkeypatch.setattr("sppo.sampling.memory.has_room_to_keep", lambda: True)
    one = parse(RAY | {"iterations": 2})
    play(one, tmp_path / "one")
    two = parse(RAY | {"iterations": 2}, {f"workers.{kind}": 2 for kind in get_args(Kind)})
    with WatchedLocal(two) as executor:
        play(two, tmp_path / "two", executor=executor)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    titles, *workers = map(list, zip(*executor.seen, strict=True))
    assert titles.count("train") == 2 and len(titles) > 8
    assert [len(set(of_jobs)) for of_jobs in workers] == [1, 1], "the same two all the time"
    assert not any(alive(of_jobs[0]) for of_jobs in workers)


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from toy_jobs import make, toy_job
    make(toy_job(Path(sys.argv[1]), seconds=600), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_workers_end_with_their_parent(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parents[1])))
    folder = tmp_path / "run"
    parent = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, start_new_session=True
    )
    while len(begun := list(folder.glob("begun-*"))) < 2:
        assert parent.poll() is None, parent.stderr.read().decode()
        time.sleep(0.05)
    workers = [int(path.name.split("-")[2]) for path in begun]
    assert all(map(interrupts_blocked, workers)), "a Ctrl-C is for the parent to handle"
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        os.kill(parent.pid, number)
    said = parent.communicate(timeout=60)[1].decode()
    for _ in range(200):
        if not any(map(alive, workers)):
            break
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert said.count("Traceback") == (number == signal.SIGINT), "workers end without a word"


def interrupts_blocked(pid):
    (mask,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) & 1 << (signal.SIGINT - 1))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_responses_do_not_depend_on_the_number_of_workers(tmp_path):
    """The real sampler, in this process and in two."""
    found = []
    for workers in (1, 2):
        of = recipe(**{"workers.sample": workers, "cpu_threads": 1})
        models = Models(of)
        stage = RunFolder(tmp_path / str(workers)).stage("sample", 1, {}, [], folder="responses")
        prompts = RunFolder(tmp_path / str(workers)).stage("prompts", 1, {}, [], folder="prompts")
        messages = [[{"role": "user", "content": f"Describe a {name}."}] for name in ("fox", "drum", "tram")]
        rows = [
            {
                "prompt_id": each[0]["content"],
                "messages": each,
                "prompt_token_ids": models.chat.render(each).token_ids,
            }
            for each in messages
        ]
        planned = prompts.plan_shards([[], [], []])
        for shard, row in zip(planned, rows, strict=True):
            shard.write(table([row], PROMPTS))
        job = ShardJob(
            "sample",
            "responses",
            "sample",
            DrawResponses(None, 3, ("sample", 1)),
            stage.plan_shards([[shard.path] for shard in planned]),
            [3, 3, 3],
        )
        made = []
        with open(os.devnull, "w") as nowhere, Local(of) as executor:
            executor.run([job], models, Terminal(Console(file=nowhere)), made.append)
        assert made == [job]
        found.append([hashlib.sha256(shard.path.read_bytes()).hexdigest() for shard in job.shards])
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_whole_run_by_three_workers_is_that_of_one_process(tmp_path):
    """One of the workers is killed."""
    small = {
        **RECIPE,
        "cpu_threads": 1,  # three workers of two threads each would be much slower on two cores
        "iterations": 1,
        "shard_prompts": 3,
        "prompts": {
            "train": {"source": "tinyworld/train", "limit": 12},
            "held_out": {"source": "tinyworld/held-out", "limit": 3},
        },
        "sampling": {"k": 3, "max_new_tokens": 30},
        "training": {"learning_rate": 1e-4, "batch_prompts": 4, "truncated_responses": "train"},
        "evaluation": {"responses": 2, "resamples": 200},
        "guard": {"on_failure": "keep"},
    }
    found = []
    for workers in (1, 3):
        run = tmp_path / str(workers)
        recipe_file = tmp_path / f"{workers}.yaml"
        of_stages = {"sample": workers, "annotate": workers, "select": min(2, workers)}
        recipe_file.write_text(yaml.safe_dump({**small, "workers": of_stages}))
        process = subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "run", str(recipe_file), "--run-dir", str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while workers > 1 and not (run / "iter-1" / "responses" / "part-00000.parquet").exists():
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.01)
        if workers > 1:
            os.kill(children(process.pid)[-1], signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
        files = sorted([*run.rglob("*.parquet"), *run.rglob("*.safetensors")])
        found.append(
            {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        )
    assert found[0] == found[1]


def children(pid):
    """Worker processes of a run, the resource tracker of multiprocessing left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return sorted(found)


# How many, and on which devices


def test_auto_is_one_engine_for_each_gpu_and_one_without():
    assert [count_workers(recipe(), "sample", gpus) for gpus in (0, 1, 8)] == [1, 1, 8]
    assert count_workers(recipe(**{"workers.sample": 3}), "sample", 0) == 3
    assert devices_of_an_engine(recipe(), "sample") == 1


def test_an_oracle_without_a_model_takes_one_worker_unless_the_recipe_says_more():
    assert count_workers(recipe(), "annotate", 8) == 1
    assert count_workers(recipe(**{"workers.annotate": 12}), "annotate", 8) == 12
    assert count_workers(recipe(oracle={"type": "pairrm"}), "annotate", 8) == 8
    panel = {"type": "panel", "members": [{"type": "function", "function": "a:b"}, {"type": "pairrm"}]}
    assert count_workers(recipe(oracle=panel), "annotate", 8) == 8


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(RecipeError, match=r"workers.sample: 3 models, but there are 2 GPUs; lower it"):
        count_workers(recipe(**{"workers.sample": 3}), "sample", 2)
    with pytest.raises(RecipeError, match=r"workers.select: must be at least 1, or auto \(got 0\)"):
        recipe(**{"workers.select": 0})


def test_each_worker_sees_its_own_gpus(monkeypatch):
    monkeypatch.setattr("sppo.executors.local.count_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(4, 1) == ["0", "1", "2", "3"]
    assert visible_devices(2, 2) == ["0,1", "2,3"]
    assert visible_devices(6, 1) == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert visible_devices(2, 2) == ["3,5", "6,7"]
    monkeypatch.setattr("sppo.executors.local.count_gpus", lambda: 0)
    assert visible_devices(2, 1) == [None, None]


def test_how_a_process_ended_is_said_in_words():
    assert exit_in_words(3) == "with exit code 3"
    assert exit_in_words(-signal.SIGSEGV) == "by the signal SIGSEGV"
