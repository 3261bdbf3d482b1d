"""measurements/gpu.py in small, on a CPU, so that it is right on the day on which there is a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "measurements" / "gpu.py"


def measured(folder, *arguments):
    """The exit code, what the call printed, and the records of its rows."""
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, "--small", *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert not list(folder.glob("*.partial"))
    return done, records, logs


@pytest.mark.slow
def test_what_cuda_must_compute_is_computed_right_by_the_cpu(tmp_path):
    done, records, logs = measured(tmp_path, "--rows", "correctness", "attention", "pairrm", "engine")
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    right = records["correctness"]
    assert right["state"] == "done"
    assert right["log_probs_float32"]["chosen"] == "pieces"
    assert 0 <= max(right["log_probs_float32"][name] for name in ("rows", "mask", "pieces")) < 1e-4
    assert 0 < right["log_probs_bfloat16"]["rows"] < 0.1
    assert min(right[f"chi_square_{name}_token"]["p"] for name in ("first", "second")) > 1e-3
    assert right["resumed_step"]["apart"] == 0, "a CPU resumes to the byte"
    assert records["attention"]["K=5, pieces"]["response_tokens_per_second"] > 0
    assert min(records["pairrm"]["ordered_pairs_per_second"].values()) > 0
    if records["engine"]["state"] == "skipped":
        assert "engine         skipped      vllm is not installed" in done.stdout


@pytest.mark.slow
def test_a_call_that_is_cut_off_keeps_what_it_has(tmp_path):
    done, records, _ = measured(tmp_path, "--rows", "correctness", "training-2", "--seconds", "0.01")
    assert done.returncode == 0
    assert {record["state"] for record in records.values()} == {"out of time"}
    assert "seconds" not in records["correctness"], "it has been ended, not waited for"
    assert "the 0.01 seconds of all rows were over" in records["training-2"]["why"]


@pytest.mark.long
def test_the_rows_beside_trl_and_on_several_devices(tmp_path):
    rows = ("training-2", "training-5", "memory-sppo", "memory-trl", "fsdp2")
    done, records, logs = measured(tmp_path, "--rows", *rows)
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    assert {record["state"] for record in records.values()} == {"done"}
    assert records["training-2"]["step"]["ratio"] > 0
    assert records["memory-trl"]["bytes_over_state"] > records["memory-sppo"]["bytes_over_state"] > 0
    assert records["fsdp2"]["losses_apart"] < 1e-4
