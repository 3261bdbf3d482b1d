"""Several processes: how they end, and what is said of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from training_jobs import metrics

from sppo.training import train
from sppo.training.checkpoints import resumed

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")


def workers(job):
    """Processes whose command line names the job: the launcher, and each worker by its rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if f"{job.work}/job.json" in words:
                environment = (folder / "environ").read_bytes().decode().split("\0")
                rank = [entry.removeprefix("RANK=") for entry in environment if entry.startswith("RANK=")]
                found["launcher" if "sppo.training.launch" in words else rank[0]] = int(folder.name)
        except (OSError, IndexError):
            continue
    return found


def when_under_way(job, act):
    """Does something to the processes as soon as two steps are taken."""

    def wait():
        while not Path(job.metrics).exists() or len(metrics(job)) < 2:
            time.sleep(0.05)
        act(workers(job))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_process_that_the_kernel_kills_is_named(job, monkeypatch):
    # of another launcher, or left behind: not where these processes meet
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    long = job(devices=2, epochs=10_000)
    when_under_way(long, lambda found: os.kill(found["1"], signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r"process 1 of 2 was killed by SIGKILL \(exit code -9\).*memory"):
        train(long)
    assert not workers(long)


@pytest.mark.slow
def test_workers_end_with_their_launcher(job):
    long = job(devices=2, epochs=10_000)
    when_under_way(long, lambda found: os.kill(found["launcher"], signal.SIGKILL))
    with pytest.raises(RuntimeError, match="failed with exit code -9"):
        train(long)
    for _ in range(100):
        if not workers(long):
            break
        time.sleep(0.1)
    assert not workers(long)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        signal.SIGKILL,
    ],
)
def test_an_end_from_outside_leaves_a_checkpoint_of_all_processes(job, tmp_path, number):
    long = job(devices=2, epochs=10_000)
    (tmp_path / "job.json").write_text(long.to_json())
    script = (
        "import sys; from pathlib import Path; from sppo.training import TrainingJob, train\n"
        "train(TrainingJob.from_json(Path(sys.argv[1]).read_text()), say=print)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "job.json")],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    when_under_way(long, lambda found: parent.send_signal(number)).join(timeout=120)
    out, _ = parent.communicate(timeout=120)
    assert parent.returncode != 0
    assert ("a checkpoint is written" in out) == (number == signal.SIGINT)
    for _ in range(300):
        if not workers(long):
            break
        time.sleep(0.1)
    assert not workers(long)
    said = []
    again = resumed(long, said.append)
    assert again.begun == len(metrics(long)) > 1, said
    assert (
        json.loads((Path(again.checkpoint) / "trainer_state.json").read_text())["global_step"] == again.begun
    )
