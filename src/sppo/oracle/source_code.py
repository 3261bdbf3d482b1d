"""The code that a Python function's answers depend on, as far as its source shows, without comments.

The code of a function is that of its module and of all modules beside it that are imported from there, whether at the
top of a file or inside a function. Of a program or a notebook (the module `__main__`), which also starts the run, it is the
function itself, with the functions and classes of `__main__` that it uses, and the modules beside it that those import. Beside it are the modules in the folder that its module was found in; of an installed
package, its own modules alone. What is imported by a computed name, or read from a file, cannot be seen in the source;
`oracle.depends_on` names it.
"""

import ast
import hashlib
import importlib.machinery
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sppo.oracle import OracleError
from sppo.rundir.shards import file_digest


def code_digest(function: Callable[..., Any], module: ModuleType) -> str:
    """SHA-256 of the code behind a function of a module; empty where it is not written in Python."""
    files: dict[Path, str] = {}
    definitions: dict[str, str] = {}
    if module.__name__ == "__main__":
        definitions = _definitions(inspect.unwrap(function), files)
    else:
        origin = sys.modules.get(getattr(inspect.unwrap(function), "__module__", None) or "", module)
        for start in (module, origin):
            _add(start, files)
    code = sorted([*definitions.items(), *((name, _code(path)) for path, name in files.items())])
    return hashlib.sha256(repr(code).encode()).hexdigest() if code else ""


def _add(module: ModuleType, files: dict[Path, str]) -> None:
    """Add the files of a module and of the modules beside it that it imports, each with its module's name."""
    top, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
    if file and top == "sppo":  # a function's own module counts, not what this package is built on
        files[Path(file)] = module.__name__
    elif file and top not in sys.stdlib_module_names:
        _follow(module.__name__, _root(module), files)


def _definitions(function: Callable[..., Any], files: dict[Path, str]) -> dict[str, str]:
    """The code of a function of `__main__`, and of the functions and classes of `__main__` that it uses, by name.

    The files of the modules that they use are added to `files`, except those of installed packages.
    """
    definitions: dict[str, str] = {}
    main, waiting = vars(sys.modules["__main__"]), [function]
    while waiting:
        used = waiting.pop()
        if getattr(used, "__module__", None) != "__main__":
            module = used if isinstance(used, ModuleType) else inspect.getmodule(used)
            if module is not None and not _is_installed(Path(getattr(module, "__file__", None) or "")):
                _add(module, files)
        elif getattr(used, "__qualname__", None) not in {None, *definitions}:
            try:
                source = textwrap.dedent(inspect.getsource(used))
                tree = ast.parse(source)
            except (OSError, TypeError, SyntaxError):  # made by exec, or not written in Python
                continue
            definitions[used.__qualname__] = _without_comments(source)
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            waiting += [main[name] for name in sorted(names & main.keys())]
    return definitions


def _is_installed(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def files_digest(paths: Sequence[str]) -> dict[str, Any]:
    """The SHA-256 of each file, and of all files in each folder, by path.

    Raises:
        OracleError: there is no such file or folder.
    """
    digests: dict[str, Any] = {}
    for name in paths:
        path = Path(name)
        if path.is_file():
            digests[name] = file_digest(path)
        elif path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts
            )
            digests[name] = {file.relative_to(path).as_posix(): file_digest(file) for file in inside}
        else:
            raise OracleError(
                f"oracle.depends_on: {name!r}: there is no such file or folder; paths are relative to {Path.cwd()}"
            )
    return digests


def _root(module: ModuleType) -> Path:
    """The folder that a module's top-level name was found in."""
    file = Path(str(module.__file__)).resolve()
    return file.parents[module.__name__.count(".") + (file.stem == "__init__")]


def _follow(name: str, root: Path, files: dict[Path, str]) -> None:
    """Add the files of a module and of what it imports from the same place, each with the module's name."""
    is_installed = _is_installed(root)
    waiting = [name]
    while waiting:
        parts = waiting.pop().split(".")
        if is_installed and parts[0] != name.partition(".")[0]:
            continue
        for length in range(1, len(parts) + 1):  # a package's __init__ runs before its modules
            module, path = ".".join(parts[:length]), _file_of(root, parts[:length])
            if path is not None and path not in files:
                files[path] = module
                waiting += _imports(path, module)


def _file_of(root: Path, parts: Sequence[str]) -> Path | None:
    place = root.joinpath(*parts)
    for suffix in importlib.machinery.all_suffixes():
        for path in (place / f"__init__{suffix}", place.with_name(place.name + suffix)):
            if path.is_file():
                return path
    return None


def _imports(path: Path, module: str) -> Iterator[str]:
    """The names that a file imports; `from a import b` may mean a module a.b."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # not Python, or never run
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _code(path: Path) -> str:
    """A file's source without its comments; the digest of a file that cannot be parsed."""
    try:
        with tokenize.open(path) as file:
            return _without_comments(file.read())
    except (SyntaxError, tokenize.TokenError, ValueError):  # compiled, or never run
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_comments(source: str) -> str:
    """A source without its comments and the empty lines outside of texts."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.split("\n")
    for token in tokens:
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
    empty = {
        token.start[0]
        for token in tokens
        if token.type == tokenize.NL and not lines[token.start[0] - 1].strip()
    }
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in empty)
