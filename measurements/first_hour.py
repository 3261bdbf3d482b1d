"""The first hour by the docs alone: the minutes from a wheel to a report, by the command line and in a notebook.

    python measurements/first_hour.py FOLDER --model SMOLLM2

FOLDER must not exist. The wheel is built from this checkout and installed into an environment of its own, to which this
environment's packages are added by a .pth file, so that nothing is downloaded; the checkout itself is not seen. What `sppo init`
writes, for the embedded world and for SmolLM2-135M-Instruct, and the program of docs/python.md, as a notebook, run word by
word. The figures stand in docs/experiments.md.
"""

import argparse
import io
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read("real.ipynb", as_version=4)
NotebookClient(notebook, timeout=None).execute()
nbformat.write(notebook, "real.ipynb")
"""


def timed(name: str, *command: str | Path, cwd: Path) -> None:
    """Run a command without this checkout in its path, and print its minutes, its CPU minutes and the load."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime - before.ru_utime + spent.ru_stime - before.ru_stime
    minutes = (time.perf_counter() - begin) / 60
    print(f"| {name} | {minutes:.1f} | {cpu / 60:.1f} | {os.getloadavg()[0]:.0f} |", flush=True)


def write_notebook(path: Path) -> None:
    """The second program of docs/python.md as a notebook that ends with the report."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)[1]
    assert HUB in program
    cells = [nbformat.v4.new_code_cell(text) for text in (program, "run.report()")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="The folder of SmolLM2-135M-Instruct.")
    options = parser.parse_args()
    home = options.folder.resolve()
    home.mkdir(parents=True)
    tree, pip = home / "tree", [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as committed:
        committed.extractall(tree, filter="data")
    print("| step | minutes | CPU minutes | load |\n|---|---|---|---|")
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", home, tree]
    timed("build the wheel", *wheel, cwd=home)
    timed("make an environment", sys.executable, "-m", "venv", home / "venv", cwd=home)
    (packages,) = (home / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (built,) = home.glob("*.whl")
    bin_ = home / "venv/bin"
    timed("pip install (dependencies are there)", bin_ / "pip", "install", "-q", "--no-deps", built, cwd=home)
    timed("sppo init first", bin_ / "sppo", "init", "first", cwd=home)
    timed("sppo run own.yaml, as init wrote it", bin_ / "sppo", "run", "own.yaml", cwd=home / "first")
    mine = home / "mine"
    (mine / HUB).parent.mkdir(parents=True)
    (mine / HUB).symlink_to(options.model.resolve())  # a folder comes before a name on the hub
    init = ["init", "mine", "--model", f"mine/{HUB}"]
    timed(f"sppo init mine --model {HUB}", bin_ / "sppo", *init, cwd=home)
    timed("sppo run own.yaml, on that model", bin_ / "sppo", "run", "own.yaml", cwd=mine)
    write_notebook(mine / "real.ipynb")
    timed("the same in a notebook (docs/python.md)", bin_ / "python", "-c", NOTEBOOK, cwd=mine)


if __name__ == "__main__":
    main()
