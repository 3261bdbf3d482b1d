"""The rules of docs/design.md on which way imports point, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
LAYERS = {
    1: {"objectives", "winrates", "comparisons", "selection", "randomness", "game", "reading", "traits"},
    2: {
        "recipe",
        "prompts",
        "policy",
        "endpoint",
        "rundir",
        "output_options",
        "progress",
        "tinyworld",
        "instructions",
        "algorithms",
        "benchmarks.ifeval.constraints",
        "benchmarks.ifeval.languages",
    },
    3: {
        "sampling",
        "oracle",
        "training",
        "benchmarks.head_to_head.score",
        "benchmarks.open_llm.files",
        "benchmarks.open_llm.lm_eval_tasks",
        "benchmarks.open_llm.score",
    },
    4: {"stages", "executors", "selfplay", "cost", "dry_run"},
    5: {"report", "compare", "arena", "serving", "oracle_server", "benchmarks"},
    6: {"cli", "api", "memory_inputs", "__main__"},
}
ARITHMETIC = {"numpy", "scipy", "torch", "jaxtyping"}
HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "ray",
    "datasets",
    "accelerate",
    "peft",
    "matplotlib",
    "sklearn",
    "lm_eval",
    "openai",
}
# where a concrete engine lives, torch is at home
ENGINES = {
    "endpoint.server",
    "objectives",
    "algorithms",
    "sampling.decoding",
    "sampling.drawing",
    "sampling.key_values",
    "sampling.probe",
    "oracle",
    "training",
    "benchmarks",
    "report.charts",
}


def _modules() -> dict[str, Path]:
    """Modules of the package by their name within it."""
    found = {}
    for path in sorted((SOURCE / "sppo").rglob("*.py")):
        parts = path.relative_to(SOURCE / "sppo").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]
    return found


MODULES = _modules()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _imports(module: str, *, inside_functions: bool) -> Iterator[str]:
    """Full names that a module imports; `from sppo import records` is sppo.rundir.tables."""
    waiting: list[ast.AST] = [_tree(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if inside_functions or not (is_function or only_for_types):
            waiting.extend(ast.iter_child_nodes(node))


def _own(module: str, *, inside_functions: bool = True) -> set[str]:
    """Modules of this package that a module imports."""
    found = set()
    for name in _imports(module, inside_functions=inside_functions):
        parts = name.removeprefix("sppo.").split(".") if name.startswith("sppo.") else []
        candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        found |= {next((candidate for candidate in candidates if candidate in MODULES), None)}
    return found - {None, module}


def _others(module: str, *, inside_functions: bool) -> set[str]:
    """Packages outside this one and the standard library that a module imports."""
    found = {name.split(".")[0] for name in _imports(module, inside_functions=inside_functions)}
    return found - {"sppo"} - set(sys.stdlib_module_names)


def _layer(module: str) -> int:
    """The layer of the longest known prefix of a module's name; 0 if no prefix is known."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for layer, members in LAYERS.items():
            if ".".join(parts[:length]) in members:
                return layer
    return 0


def _in(module: str, members: set[str]) -> bool:
    return any(module == member or module.startswith(f"{member}.") for member in members)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_stands_in_a_layer(module):
    assert _layer(module), f"say in {Path(__file__).name} and docs/design.md in which sppo.{module} stands"


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_upwards(module):
    upwards = {other: _layer(other) for other in _own(module) if _layer(other) > _layer(module)}
    assert not upwards, f"sppo.{module} is of layer {_layer(module)}"


@pytest.mark.parametrize("module", [module for module in MODULES if _layer(module) == 3])
def test_siblings_never_import_each_other(module):
    package = module.split(".")[0]
    assert not {other for other in _own(module) if _layer(other) == 3 and other.split(".")[0] != package}


@pytest.mark.parametrize("module", [module for module in MODULES if _layer(module) == 1])
def test_arithmetic_needs_nothing_but_arrays(module):
    assert _others(module, inside_functions=False) <= ARITHMETIC
    assert "recipe" not in _own(module)


@pytest.mark.parametrize("module", [module for module in MODULES if not _in(module, ENGINES)])
def test_heavy_libraries_load_inside_the_engines(module):
    assert not _others(module, inside_functions=False) & HEAVY


@pytest.mark.parametrize("package", sorted(LAYERS[3]))
def test_a_protocol_loads_without_its_engines(package):
    if package in MODULES:
        assert not _others(package, inside_functions=False) & HEAVY


@pytest.mark.parametrize(
    "module", [module for module in MODULES if _layer(module) < 4 and module != "recipe"]
)
def test_a_whole_recipe_is_known_to_the_loop_alone(module):
    assert "sppo.recipe.Recipe" not in set(_imports(module, inside_functions=True))


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_named_after_what_it_holds(module):
    assert not set(module.split(".")) & {"utils", "util", "common", "core", "base", "misc", "helpers"}


@pytest.mark.parametrize("module", [module for module in MODULES if not _in(module, {"rundir", "stages"})])
def test_the_names_of_a_runs_files_are_known_to_its_reader_alone(module):
    texts = {
        node.value
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not [text for text in texts if text.startswith(("iter-", "part-"))]


def test_nothing_is_imported_in_a_circle():
    edges = {module: _own(module, inside_functions=False) for module in MODULES}
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in edges[module]:
                follow(other, (*path, module))
            done.add(module)

    for module in MODULES:
        follow(module, ())


@pytest.mark.parametrize(
    "statement",
    [
        "import sppo.cli.main",
        "from sppo import recipe; recipe.load('recipes/quickstart.yaml')",
        "import sppo.policy.chat_format, sppo.prompts, sppo.policy.load, sppo.rundir.folder, sppo.oracle, sppo.sampling, sppo.training",
        "from sppo import oracle; oracle.load({'type': 'panel'}).compare(['Tell me about a fox.'], [['a', 'b']])",
        "import sppo.stages.single, sppo.selfplay, sppo.rundir.summary, sppo.dry_run, sppo.cli.conversation",
    ],
)
def test_loading_a_recipe_or_the_commands_imports_nothing_heavy(statement):
    code = f"{statement}\nimport sys\nprint(*sorted(set(sys.modules) & {HEAVY!r}))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=SOURCE.parent,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
