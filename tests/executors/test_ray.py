"""Ray: on a cluster of two nodes on this machine, which runs in a process of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray_nodes import RayNodes
from small_runs import RAY as SMALL
from small_runs import digests

from sppo.executors.ray import ClusterError, RayCluster, _Place
from sppo.recipe import parse
from sppo.rundir import storage

RECIPE = SMALL | {
    "oracle": {"type": "function", "function": "deadly_oracle:prefer", "own_process": False},
    "algorithm": {"type": "sppo", "eta": 10},
    "workers": {"sample": 2},
}

# Kills its process so many times as the file beside it says, once a shard has been annotated.
ORACLE = """
import os, signal
from pathlib import Path
import numpy as np

def prefer(prompts, responses):
    if Path("broken").exists() and "trial" not in prompts[0]:
        raise KeyError("lost")
    left = Path("deaths")
    count = int(left.read_text()) if left.exists() else 0
    if count and list(Path("run").glob("iter-1/preferences/part-*.parquet")):
        left.write_text(str(count - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    lengths = np.array([[len(text) for text in of_prompt] for of_prompt in responses], dtype=float)
    return 1 / (1 + np.exp((lengths[:, :, None] - lengths[:, None, :]) / 20))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory, s3):
    """The address of a cluster whose nodes reach the S3 server."""
    pytest.importorskip("ray")
    cluster = RayNodes(tmp_path_factory.mktemp("cluster"))
    yield cluster.address
    cluster.close()


def sppo(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def sampling_on(address, folder):
    """The process of a run on Ray that has sampled its first shard."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", "--run-dir", "run", "--ray", address],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (folder / "run" / "iter-1" / "responses" / "part-00000.parquet").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    return process


def written(folder):
    (folder / "deadly_oracle.py").write_text(ORACLE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run without Ray."""
    folder = written(tmp_path_factory.mktemp("local"))
    done = sppo(folder, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def sampled(local, folder):
    """A copy of it that has come as far as iteration 1's responses."""
    shutil.copytree(local, folder / "run")
    for name in ("preferences", "training", "policy", "evaluation"):
        shutil.rmtree(folder / "run" / "iter-1" / name)
    for name in ("annotate", "select", "train", "evaluation"):
        (folder / "run" / "iter-1" / f"{name}.json").unlink()
    return folder


pytestmark = pytest.mark.timeout(900)


@pytest.mark.long
def test_a_run_on_two_nodes_ends_as_a_local_one_although_workers_are_killed(address, folder, local):
    """One annotating worker kills itself; one that samples is killed from outside."""
    (folder / "deaths").write_text("1")
    process = sampling_on(address, folder)
    os.kill(actors()[0], signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert (folder / "deaths").read_text() == "0"
    assert digests(folder / "run") == digests(local)


def actors():
    """Processes of the pipeline, the oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker(MapBatches(_Worker))"):
                found.append((path.stat().st_mtime_ns, int(path.parent.name)))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [pid for _, pid in sorted(found)]


@pytest.mark.long
def test_ray_goes_on_after_local_and_local_after_ray_whose_workers_died(address, sampled, local):
    (sampled / "deaths").write_text("99")
    failed = sppo(sampled, "--run-dir", "run", "--ray", address)
    assert failed.returncode == 1
    assert "a worker has crashed 2 times; every finished shard is kept" in failed.stderr
    run = sampled / "run"
    assert list(run.glob("iter-1/preferences/part-*.parquet"))
    assert not (run / "iter-1" / "annotate.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("part-*.parquet")}
    (sampled / "deaths").unlink()
    gone_on = sppo(sampled, "--run-dir", "run")
    assert gone_on.returncode == 0, gone_on.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert digests(run) == digests(local)


@pytest.mark.long
def test_a_process_may_use_the_cores_of_the_smallest_node(address, tmp_path, monkeypatch):
    for here, cores in ((64, 2), (1, 1)):
        monkeypatch.setattr("sppo.policy.cpu_threads.cores", lambda here=here: here)
        with RayCluster(parse(RECIPE), tmp_path, address) as cluster:
            assert cluster.cores() == cores


@pytest.mark.long
def test_errors_come_out_as_they_were(address, sampled):
    (sampled / "broken").touch()
    failed = sppo(sampled, "--run-dir", "run", "--ray", address)
    assert failed.returncode == 1
    assert "the oracle deadly_oracle:prefer raised KeyError: 'lost'" in failed.stderr
    more = sppo(sampled, "--run-dir", "run", "--ray", address, "--set", "workers.sample=9")
    assert "workers.sample: 9 models on 9 CPUs, but the cluster has 4; lower it" in more.stderr


@pytest.mark.long
def test_a_run_on_s3_goes_on_on_ray_to_the_same_bytes(address, s3, sampled, local, monkeypatch):
    """From iteration 1's responses on, which are in the storage alone."""
    monkeypatch.setenv("SPPO_WORKING_COPIES", str(sampled / "copies"))
    run = f"{s3}/{sampled.parent.name}-{sampled.name}/run"
    files = [path for path in (sampled / "run").rglob("*") if path.is_file()]
    storage.adopt(sampled / "run", run)
    for path in files:
        storage.publish(path)
    shutil.rmtree(sampled / "run")
    done = sppo(sampled, "--run-dir", run, "--ray", address)
    assert done.returncode == 0, done.stderr
    storage.adopt(sampled / "elsewhere", run)
    storage.fetch(sampled / "elsewhere")
    assert digests(sampled / "elsewhere") == digests(local)


def test_a_process_that_ray_ends_has_last_words():
    program = "import os; from sppo.executors.ray import _last_words\nwith _last_words('It is lost.'): {}"
    for inside, said in (
        ("os._exit(1)", "It is lost."),
        ("os.kill(os.getpid(), 9)", "It is lost."),
        ("pass", ""),
    ):
        done = subprocess.run([sys.executable, "-c", program.format(inside)], capture_output=True, text=True)
        assert done.stderr == said


@pytest.mark.long
@pytest.mark.parametrize("part", ["gcs_server", "raylet/raylet"])
def test_a_lost_head_is_said_and_the_run_continues(part, folder, local):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    cluster = RayNodes(folder)
    address = cluster.address
    run = sampling_on(address, folder)
    processes = psutil.Process(cluster.process.pid).children(recursive=True)
    parts = [process for process in processes if part in "".join(process.cmdline()[:1])]
    head = min(parts, key=psutil.Process.create_time)
    head.kill()
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 1
    assert f"error: --on ray:{address}: this process was ended" in said
    cluster.close()
    done = sppo(folder, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert digests(folder / "run") == digests(local)


def refused(address):
    with pytest.raises(ClusterError) as error, RayCluster(parse(RECIPE), Path("run"), address):
        pass
    return str(error.value)


def test_an_address_that_does_not_answer_is_said():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
        assert f"--on ray:{closed}: nothing answers there" in refused(closed)
    assert "give the address of the cluster's head as HOST:PORT, or auto" in refused("somewhere")
    assert "give the head's own address" in refused("ray://10.0.0.1:10001")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'sppo[ray]'" in refused("auto")


def test_a_node_that_does_not_see_the_run_folder_says_which(tmp_path):
    place = _Place(tmp_path, tmp_path, "this run")
    assert f"does not see the run folder {tmp_path}" in place.why_unusable()
    place.mark()
    assert place.why_unusable() is None
    assert "does not see" in _Place(tmp_path, tmp_path, "another run").why_unusable(), (
        "a folder of the same name"
    )
    with pytest.raises(ClusterError, match="does not see"):
        _Place(tmp_path, tmp_path, "another run").enter()
