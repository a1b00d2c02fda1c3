"""Imports of bench run downward: engine < ops < models < serving < training < report < tools < doors."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import ROOT

BENCH = ROOT / "bench"
ROOMS = ["engine", "ops", "models", "serving", "training", "report", "tools", "doors"]
"""A room's modules may import from their own room and from those before it; doors are the modules outside of rooms."""
PATHS = sorted(path for path in BENCH.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(BENCH).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return name.partition(".")[0] if name.partition(".")[0] in ROOMS else "doors"


NAMES = {name_of(path) for path in PATHS}


def imports_of(path: Path) -> set[str]:
    """Modules of bench that a file imports, functions and type-checking blocks included."""
    package = ["bench", *path.relative_to(BENCH).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # A module that is imported from a room does not read the names of the room's __init__.
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {one for one in inner if one.removeprefix("bench.") in NAMES} or {module}
    return {name.removeprefix("bench.") for name in found if name.startswith("bench.")} & NAMES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: name_of(path) or "__init__")
def test_imports_run_downward(path: Path) -> None:
    name = name_of(path)
    above = {one for one in imports_of(path) if ROOMS.index(room_of(one)) > ROOMS.index(room_of(name))}
    assert not above, f"{name} imports {sorted(above)}"


def test_there_are_no_import_circles() -> None:
    order = list(TopologicalSorter({name_of(path): imports_of(path) for path in PATHS}).static_order())
    assert order.index("engine.shapes") < order.index("ops.attention") < order.index("gpu")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: name_of(path) or "__init__")
def test_no_module_needs_a_test_or_plot_package(path: Path) -> None:
    """The suite runs where only PyTorch, Triton and transformers are: plots import matplotlib where they draw."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    assert not {name.split(".")[0] for name in found} & {"pytest", "pytest_benchmark", "matplotlib"}
