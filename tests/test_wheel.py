"""The wheel, installed into an environment that knows nothing of this checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*command, stderr=None, **options):
    # neither the checkout nor its settings of pytest are seen
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stderr in (None, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "tree/src", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder / "tree")
    (path,) = folder.glob("sppo-*.whl")
    return path


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("sppo/")}
    files = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/sppo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files


@pytest.mark.slow
def test_the_installed_wheel_is_enough_to_begin(wheel, tmp_path):
    """`pip install`, `sppo init`, `sppo run`: with the installed dependencies, so that nothing is downloaded."""
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    commands = tmp_path / "venv/bin"
    call(
        sys.executable, "-m", "pip", "--python", commands / "python", "install", "--quiet", "--no-deps", "--no-index", wheel
    )  # fmt: skip
    packages = Path(
        call(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    # A path in a .pth file adds the dependencies, but not the checkout, which stands in a .pth file there.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    where = call(commands / "python", "-c", "import sppo; print(sppo.__file__)", cwd=work)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    assert "optimiser steps" in call(commands / "sppo", "run", "quickstart", "--dry-run", cwd=work)
    call(commands / "sppo", "init", cwd=work)
    out = call(commands / "sppo", "run", "own.yaml", "--quiet", cwd=work, stderr="")  # no noise of libraries
    assert "The report is runs/own/report.html" in out and "WARNING" not in out
    assert (work / "runs/own/report.html").is_file()
    *_, last = json.loads((work / "runs/own/summary.json").read_text())["iterations"]
    assert last["win_rate_vs_base"]["low"] > 0.6, "the first run that somebody sees has learnt something"
