"""A training that ends early, by a full disk or by a kill, goes on with the same command."""

import signal
import subprocess
import sys
import time

import pytest
import yaml
from small_runs import SMALL, digests

pytestmark = pytest.mark.timeout(900)
RECIPE = {
    **SMALL,
    "iterations": 1,
    "training": {**SMALL["training"], "epochs": 4, "checkpoint_steps": 2},
}
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from sppo.cli.main import main
main()
"""


def start(folder, name, *before):
    command = [
        sys.executable,
        *(before or ("-m", "sppo")),
        "run",
        "recipe.yaml",
        "--run-dir",
        name,
        "--no-report",
    ]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder, name):
    process = start(folder, name)
    output = process.communicate(timeout=800)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("limit", [pytest.param(1_000_000, marks=pytest.mark.long), 5_000_000])
def test_a_full_disk_during_training_is_said_and_costs_nothing(tmp_path, limit):
    """The weights have 4 MB: the smaller limit stops them, the larger one the optimiser's state in a checkpoint."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    full = start(tmp_path, "full", "-c", LIMITED, str(limit))
    output = full.communicate(timeout=800)[0]
    assert full.returncode == 1, output
    assert "Traceback" not in output
    assert "File too large" in output or "no space left on the disk" in output
    assert "iter-1" in output
    assert (tmp_path / "full" / "iter-1" / "select.json").is_file()
    finish(tmp_path, "full")
    finish(tmp_path, "alone")
    assert digests(tmp_path / "full") == digests(tmp_path / "alone")


@pytest.mark.long
def test_a_killed_training_on_demonstrations_goes_on(tmp_path):
    train = {**SMALL["prompts"]["train"], "demonstration": "completion"}
    recipe = {**RECIPE, "algorithm": {"type": "sft"}, "prompts": {**SMALL["prompts"], "train": train}}
    recipe["training"] = {**RECIPE["training"], "epochs": 20}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    killed = start(tmp_path, "killed")
    while not (tmp_path / "killed" / "iter-1" / ".training" / "checkpoint-4").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert "training resumes from the checkpoint after step" in finish(tmp_path, "killed")
    finish(tmp_path, "alone")
    assert digests(tmp_path / "killed") == digests(tmp_path / "alone")
