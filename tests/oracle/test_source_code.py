"""The identity of a function oracle: its code, the code of modules beside it, and the files that it depends on."""

import importlib
import os
import sys

import pytest
from plugins import install

from sppo import oracle
from sppo.oracle import OracleError
from sppo.recipe import parse_oracle

LENGTHS = """
def compare(prompts, responses):
    return [[[0.5 if a == b else len(a) > len(b) for b in of] for a in of] for of in responses]
"""


@pytest.fixture
def identity(tmp_path, monkeypatch):
    """Write files into the working folder, and return the identity of the function in `mine.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget():
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
                del sys.modules[name]

    def of(files=None, name="mine:compare", **more):
        for path, text in (files or {}).items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        forget()
        importlib.invalidate_caches()
        return oracle.identity(
            parse_oracle({"type": "function", "function": name, "own_process": False, **more})
        )

    yield of
    forget()


@pytest.mark.parametrize(
    "changed",
    [
        LENGTHS + "# a comment\n",
        LENGTHS.replace("):\n", "):  # why\n"),
        "\n\n" + LENGTHS.replace("    return", "\n    # longer is better\n\n    return"),
    ],
)
def test_comments_and_empty_lines_are_no_code(identity, changed):
    assert identity({"mine.py": changed}) == identity({"mine.py": LENGTHS})


@pytest.mark.parametrize(
    "changed",
    [
        LENGTHS.replace(">", "<"),
        LENGTHS + "x = 1\n",
        LENGTHS + '"""# no comment"""\n',
        LENGTHS + '"""two\nlines"""\n',
        LENGTHS + '"""two\n\nlines"""\n',
        LENGTHS + '"""two  \nlines"""\n',
    ],
)
def test_everything_else_is(identity, changed):
    variants = [LENGTHS, LENGTHS + '"""#"""\n', LENGTHS + '"""two\n\n\nlines"""\n', changed]
    digests = [identity({"mine.py": text})["source"] for text in variants]
    assert len(set(digests)) == len(variants)


IMPORTS = {
    "a module beside it": ("import helper\n", "helper.py"),
    "a name of a module beside it": ("from helper import value\n", "helper.py"),
    "inside a function": ("def later():\n    import helper\n", "helper.py"),
    "a module in a folder": ("import inside.helper\n", "inside/helper.py"),
    "a module as a name of a folder": ("from inside import helper\n", "inside/helper.py"),
    "the folder's own module": ("import inside.other\n", "inside/__init__.py"),
    "the imports of an import": ("import between\n", "helper.py"),
    "a relative import of an import": ("import inside.relative\n", "inside/helper.py"),
    "under another name": ("import helper as h, json\n", "helper.py"),
}
AROUND = {
    "helper.py": "value = 1\n",
    "between.py": "import helper\n",
    "inside/__init__.py": "",
    "inside/helper.py": "value = 1\n",
    "inside/other.py": "",
    "inside/relative.py": "from . import helper\n",
    "unused.py": "value = 1\n",
}


@pytest.mark.parametrize(("statement", "file"), IMPORTS.values(), ids=IMPORTS)
def test_what_it_imports_from_beside_it_is_followed(identity, statement, file):
    before = identity({**AROUND, "mine.py": statement + LENGTHS})
    assert identity({"unused.py": "value = 2\n"}) == before
    assert identity({file: "value = 1  # one\n" if AROUND[file] else "# empty\n"}) == before
    assert identity({file: "value = 2\n"})["source"] != before["source"]


def test_modules_that_exchange_their_code_are_others(identity):
    files = {"mine.py": "import a, b\n" + LENGTHS, "a.py": "x = 1\n", "b.py": "x = 2\n"}
    before = identity(files)
    assert identity({"a.py": "x = 2\n", "b.py": "x = 1\n"}) != before


def test_modules_that_import_each_other_end(identity):
    files = {"mine.py": "import other\n" + LENGTHS, "other.py": "import mine\n"}
    assert identity(files)["source"]


def test_of_an_installed_package_its_own_modules_count(tmp_path, monkeypatch, identity):
    place = tmp_path / "site-packages"
    files = {
        "judges/__init__.py": "",
        "judges/taste.py": "import neighbour\nfrom judges import table\n" + LENGTHS,
    }
    files |= {"judges/table.py": "value = 1\n", "neighbour.py": "value = 1\n"}
    install(monkeypatch, place, files, {}, name="judges")
    before = identity(name="judges.taste:compare")
    (place / "neighbour.py").write_text("value = 2\n")
    assert identity(name="judges.taste:compare") == before
    (place / "judges" / "table.py").write_text("value = 2\n")
    assert identity(name="judges.taste:compare") != before


# depends_on


def test_files_and_folders_that_answers_depend_on(identity, tmp_path):
    files = {
        "mine.py": LENGTHS,
        "table.csv": "1",
        "folder/a.txt": "1",
        "folder/deep/b.txt": "1",
        "other.txt": "1",
    }
    settings = {"depends_on": ["table.csv", "folder"]}
    before = identity(files, **settings)
    assert identity({"other.txt": "2"}, **settings) == before
    assert identity({"table.csv": "2"}, **settings) != before
    assert identity({"table.csv": "1", "folder/deep/b.txt": "2"}, **settings) != before
    assert identity({"folder/deep/b.txt": "1", "folder/c.txt": ""}, **settings) != before
    (tmp_path / "folder" / "c.txt").unlink()
    os.rename(tmp_path / "folder" / "a.txt", tmp_path / "folder" / "z.txt")
    assert identity(**settings) != before


@pytest.mark.parametrize("name", ["none.csv", "/no/such/folder", "folder/none.txt"])
def test_a_file_that_is_not_there(identity, name):
    with pytest.raises(OracleError, match=rf"oracle\.depends_on: '{name}': there is no such file or folder"):
        identity({"mine.py": LENGTHS}, depends_on=[name])


def test_a_pipe_is_not_waited_for(identity, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OracleError, match="there is no such file or folder"):
        identity({"mine.py": LENGTHS}, depends_on=["pipe"])
