"""A package with entry points, installed for the length of a test by a folder on sys.path."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    files: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    *,
    name: str = "toy_package",
) -> None:
    """Write a distribution as pip would leave it, and make this process and its children find it.

    Args:
        monkeypatch: takes the package away again after the test.
        folder: becomes the place that packages are found in.
        files: paths of modules to their text.
        entry_points: group to names to `module:attribute`.
        name: of the distribution.
    """
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        monkeypatch.delitem(sys.modules, module, raising=False)
    home = folder / f"{name}-1.0.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    groups = (
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in values.items())])
        for group, values in entry_points.items()
    )
    (home / "entry_points.txt").write_text("\n".join(groups) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
