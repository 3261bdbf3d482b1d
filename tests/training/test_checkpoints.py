"""An interrupted training goes on from its checkpoint and ends with the same bytes."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import play, small
from training_jobs import metrics

from sppo.training import train
from sppo.training.checkpoints import identity, latest, resumed


class Stop(Exception):
    pass


def interrupted_after(steps):
    """A callback that raises after the given number of steps."""
    seen = []

    def on_step(count, note=""):
        seen.append(count)
        if len(seen) == steps:
            raise Stop

    return on_step


def bytes_of(job):
    return (Path(job.output) / "model.safetensors").read_bytes()


@pytest.fixture
def broken(job):
    """A training of 12 steps that was ended in its 8th, with checkpoints after the 3rd and the 6th."""
    stopped = job("stopped", epochs=4, checkpoint_steps=3, mixed_precision="no")
    with pytest.raises(Stop):
        train(stopped, interrupted_after(8))
    return stopped


@pytest.fixture
def whole(job):
    """The same without interruption."""
    alone = job("alone", epochs=4, checkpoint_steps=None)
    train(alone)
    return alone


def test_resumed_and_uninterrupted_give_the_same_bytes(broken, whole):
    said, seen = [], []
    again = resumed(broken, said.append)
    assert again.begun == 6
    assert said == ["training resumes from the checkpoint after step 6 of 12"]
    train(again, lambda count, note="": seen.append(count))
    assert sum(seen) == 6
    assert bytes_of(again) == bytes_of(whole)
    assert [record["loss"] for record in metrics(again)][-6:] == [
        record["loss"] for record in metrics(whole)
    ][6:]


def test_two_checkpoints_are_kept_and_the_one_before_a_damaged_one_is_used(broken, whole):
    work = Path(broken.work)
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    weights = work / "checkpoint-6" / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    said = []
    again = resumed(broken, said.append)
    assert again.begun == 3
    assert "after step 6 is not used: its file optimizer.pt is missing or has changed" in said[0]
    train(again)
    assert bytes_of(again) == bytes_of(whole)


def test_what_does_not_belong_is_said_and_not_used(broken):
    def reasons(job):
        said = []
        assert latest(job, said.append) is None
        return said

    other = broken.settings.model_copy(update={"learning_rate": 2e-3})
    assert all(
        "belongs to another training" in text for text in reasons(dataclasses.replace(broken, settings=other))
    )
    parallel = broken.settings.model_copy(update={"devices": 2})
    assert all("processes" in text for text in reasons(dataclasses.replace(broken, settings=parallel)))
    assert reasons(dataclasses.replace(broken, fingerprint="other"))
    # how often something is written down changes nothing
    often = broken.settings.model_copy(update={"checkpoint_steps": 1, "logging_steps": 2})
    assert identity(dataclasses.replace(broken, settings=often)) == identity(broken)
    for seal, content in zip(sorted(Path(broken.work).glob("checkpoint-*/sppo.json")), ("", "[1]")):
        seal.write_text(content)
    assert [text for text in reasons(broken) if "it is incomplete" in text] == reasons(broken)
    shutil.rmtree(Path(broken.work) / "checkpoint-3")
    (Path(broken.work) / "checkpoint-x").mkdir()
    (Path(broken.work) / "checkpoint-7").write_text("a file")
    assert len(reasons(broken)) == 1


def test_ctrl_c_and_sigterm_finish_the_step_and_leave_a_checkpoint(job, whole):
    stopped = job("signal", epochs=4)
    said, seen = [], []

    def on_step(count, note=""):
        seen.append(count)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(stopped, on_step, said.append)
    assert len(said) == 1 and "checkpoint" in said[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = resumed(stopped, said.append)
    assert again.begun == 5
    train(again)
    assert bytes_of(again) == bytes_of(whole)


@pytest.mark.parametrize(
    "devices", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.long)]
)
def test_killed_in_the_middle_of_training_a_run_goes_on_from_its_checkpoint(tmp_path, devices):
    changes = {"iterations": 1, "training.epochs": 5, "training.devices": devices, "evaluation.responses": 1}
    recipe = small(**changes)
    play(recipe, tmp_path / "alone")
    trained = json.loads((tmp_path / "alone" / "iter-1" / "train.json").read_text())
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "alone", killed)
    home = killed / "iter-1"
    (home / "train.json").unlink()
    shutil.rmtree(home / "policy")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    def start():
        set_ = ["--set", "training.checkpoint_steps=3"]
        return subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", "--run-dir", "killed", *set_],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = start()
    while not (home / ".training" / "checkpoint-6" / "sppo.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not (home / "train.json").exists(), "the training was over before it was killed"
    again = start()
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    step = int(re.search(r"training resumes from the checkpoint after step (\d+) of 30", output)[1])
    assert step >= 6
    assert json.loads((home / "train.json").read_text())["files"] == trained["files"]  # names and digests
    steps = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in steps if record["stage"] == "train" and "step" in record]
    assert steps == list(range(1, 31))
    assert not (home / ".training").exists()
