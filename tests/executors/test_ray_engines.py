"""vLLM's engines on Ray: on a cluster of one node, with a stand-in for vLLM, and with a real one (`make test-vllm`)."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import stand_in_vllm
import yaml
from ray_nodes import RayNodes
from small_runs import RAY, rows

RECIPE = RAY | {
    "iterations": 2,
    "cpu_threads": 1,
    "sampling": {
        "engine": "vllm",
        "k": 3,
        "max_new_tokens": 30,
        "engine_args": {"enforce_eager": True, "kv_cache_memory_bytes": 100_000_000, "max_model_len": 256},
    },
}
# Engines are kept although other programs may fill the memory of the machine that tests run on.
ROOM = """
import psutil
measured = psutil.virtual_memory
psutil.virtual_memory = lambda: measured()._replace(available=measured().total)
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(
    scope="module",
    params=[pytest.param("stand-in", marks=pytest.mark.long), pytest.param("vllm", marks=pytest.mark.vllm)],
)
def cluster(request, tmp_path_factory):
    """The environment of a cluster's processes and its address; the real vLLM where it is installed."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "sitecustomize.py").write_text(ROOM)
    if request.param == "stand-in":
        stand_in_vllm.write(folder)
    environment = stand_in_vllm.environment(folder)
    nodes = RayNodes(folder, 1, environment)
    yield environment, nodes.address
    nodes.close()


def started(folder, environment, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", "--run-dir", "run", *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
        )


def engines(folder):
    """The engines that have been started for a run in a folder, by id, and their parents."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "sppo.sampling.vllm_worker" in process.cmdline() and process.cwd() == str(folder):
                found[process.pid] = process.ppid()
    return {pid: parent for pid, parent in found.items() if parent not in found}  # a fork is no engine


def finished(process, folder):
    """Every engine that was seen until the end of a run."""
    seen = {}
    while process.poll() is None:
        seen |= engines(folder)
        time.sleep(0.1)
    assert process.returncode == 0, (folder / "log").read_text()
    return seen


def wait_until_gone(pids):
    left = [process for process in psutil.process_iter() if process.pid in pids]
    assert not psutil.wait_procs(left, timeout=30)[1]


def responses(folder):
    """The token ids and the log-probability of every response of a run."""
    return {
        (str(table.relative_to(folder)), row["prompt_id"], k): (response["token_ids"], response["log_prob"])
        for name in ("responses", "evaluation")
        for table in sorted(folder.glob(f"run/iter-*/{name}"))
        for row in rows(table)
        for k, response in enumerate(row["responses"])
    }


def test_the_same_engine_serves_all_stages_and_iterations_with_the_responses_of_a_local_run(
    cluster, tmp_path
):
    environment, address = cluster
    on_ray = tmp_path / "on-ray"
    seen = finished(started(on_ray, environment, "--ray", address), on_ray)
    assert len(seen) == 1
    wait_until_gone({*seen, *seen.values()})
    local = tmp_path / "local"
    finished(started(local, environment), local)
    expected, drawn = responses(local), responses(on_ray)
    assert len(expected) == 2 * 6 * 3 + 3 * 4 * 2, (
        "of two iterations, and the held-out ones of three policies"
    )
    assert {key: ids for key, (ids, _) in drawn.items()} == {key: ids for key, (ids, _) in expected.items()}
    for key, (_, log_prob) in drawn.items():
        assert log_prob == pytest.approx(expected[key][1], abs=1e-3)
    assert len(json.loads((on_ray / "run/summary.json").read_text())["iterations"]) == 2


@pytest.mark.parametrize("victim", ["command", "lender"])
def test_no_engine_outlives_a_command_or_a_lender_that_is_killed(cluster, tmp_path, victim):
    """A run whose lender is killed goes on with engines of its own."""
    environment, address = cluster
    process = started(tmp_path, environment, "--ray", address)
    while not (running := engines(tmp_path)):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    psutil.Process(process.pid if victim == "command" else next(iter(running.values()))).kill()
    wait_until_gone({*running, *running.values()})
    if victim == "lender":
        wait_until_gone(finished(process, tmp_path))
    else:
        process.wait()
        wait_until_gone(engines(tmp_path))


def test_an_actor_that_is_killed_gives_its_engine_up_and_the_run_ends(cluster, tmp_path):
    environment, address = cluster
    process = started(tmp_path, environment, "--ray", address)
    while not list(tmp_path.glob("run/iter-1/responses/part-*.parquet")):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    for actor in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if actor.cmdline()[:1] and actor.cmdline()[0].startswith("ray::MapWorker(MapBatches(_Worker))"):
                actor.send_signal(signal.SIGKILL)
                break
    wait_until_gone(finished(process, tmp_path))
