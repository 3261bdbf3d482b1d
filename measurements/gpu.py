"""The rows that need a GPU, all in one call of ten minutes: first whether CUDA computes what the CPU does, then the figures.

    python measurements/gpu.py FOLDER                     # every row; on a machine without a GPU in small
    python measurements/gpu.py FOLDER --rows training-2 attention --small --seconds 300

What the rows measure stands in measurements/gpu_rows.py, and their figures in docs/experiments.md under "On a GPU". Each row is a
process of its own with a time limit, and writes FOLDER/ROW.json whenever it has a figure more; so a call that is cut
off loses only what was not measured yet. `state` there is `running`, `done`, `failed`, `skipped` or `out of time`, with the
reason in `why`. What the rows print goes to FOLDER/ROW.log. The exit code is 1 if a row has failed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_rows

_GRACE_SECONDS = 5
# Imported once for the processes of all rows; none of them touches the GPU. Scripts beside this one are not on the path there.
PRELOADED = [
    "sppo.oracle.pairrm",
    "sppo.sampling.decoding",
    "sppo.training.worker",
    "transformers.models.llama.modeling_llama",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the figures")
    parser.add_argument("--rows", nargs="+", choices=gpu_rows.ROWS, default=list(gpu_rows.ROWS))
    parser.add_argument("--seconds", type=float, default=570, help="for all rows together")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.small:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    end = time.monotonic() + options.seconds
    states = {}
    for name in options.rows:
        limit = min(gpu_rows.ROWS[name].seconds, end - time.monotonic())
        record = Record(options.folder / f"{name}.json")
        record.path.unlink(missing_ok=True)  # an earlier call's
        if limit <= 0:
            record.write(state="out of time", why=f"the {options.seconds:g} seconds of all rows were over")
        else:
            process = context.Process(target=make, args=(name, options.folder.resolve()))
            process.start()
            process.join(limit)
            if process.is_alive():
                end_group(process)
                record.write(state="out of time", why=f"it took longer than {limit:.3g} seconds")
            elif record.read().get("state") == "running":
                record.write(state="failed", why=f"its process ended with exit code {process.exitcode}")
        states[name] = record.read()["state"]
        print(f"{name:14} {states[name]:12} {record.read().get('why', '')}", flush=True)
    sys.exit("failed" in states.values())


class Record:
    """The figures of a row, which are written to its file whenever there is one more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def write(self, **figures: Any) -> None:
        whole = self.path.with_suffix(".partial")
        whole.write_text(json.dumps(self.read() | figures, indent=1), encoding="utf-8")
        whole.replace(self.path)


def make(name: str, folder: Path) -> None:
    """Make a row in this process, which has it for itself."""
    import torch

    os.setsid()  # what it starts ends with it
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    record, row = Record(folder / f"{name}.json"), gpu_rows.ROWS[name]
    place = gpu_rows.Place("cuda" if torch.cuda.is_available() else "cpu", record.write)
    record.write(state="running", environment=environment(place.is_small), small=place.is_small)
    begin, worked = time.perf_counter(), time.process_time()
    why = row.why_not(place)
    if why is not None:
        record.write(state="skipped", why=why)
        return
    try:
        with tempfile.TemporaryDirectory() as work:
            row.make(place, Path(work))
        record.write(
            state="done", seconds=time.perf_counter() - begin, processor_seconds=time.process_time() - worked
        )
    except Exception as error:
        traceback.print_exc()
        record.write(state="failed", why=f"{type(error).__name__}: {error}"[:2000])


def environment(small: bool) -> dict[str, Any]:
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    for name in ("trl", "vllm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = f"CPU, {torch.get_num_threads()} threads" if small else torch.cuda.get_device_name()
    return {"device": device, "Python": platform.python_version(), **versions}


def end_group(process: Any) -> None:
    """End a row's process and everything that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)  # it may have no group of its own yet
            os.killpg(process.pid, number)
        process.join(_GRACE_SECONDS)


if __name__ == "__main__":
    main()
