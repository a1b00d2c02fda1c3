"""Imports of bench run downward: engine < ops < models < report < tools < doors."""

import ast
from pathlib import Path

import pytest
from helpers.paths import ROOT

BENCH = ROOT / "bench"
LAYERS = [
    "engine.shapes", "engine.work", "engine.registry", "engine.closeness", "engine.timing", "engine.memory",
    "engine.results", "engine.environment", "engine.torch_compile", "engine.measure", "engine.loop",
    "ops.inputs", "ops.attention", "ops.layer_norm", "ops.activation", "ops.embedding", "ops.linear", "ops.mlp", "ops",
    "models.work", "models.inputs", "models.peers", "models.encoder", "models",
    "report.markdown", "report.rows", "report.goals", "report.tables", "report.chart",
    "report.roofline", "report.readme", "report.__main__",
    "tools.machine_code", "tools.compile_kernels", "tools.workloads", "tools.tune", "tools.make_lengths", "tools.check",
    "suite", "run", "gpu",
]  # fmt: skip
"""Each may import from those before it; a room's __init__ comes after its modules, or imports nothing."""
PATHS = sorted(path for path in BENCH.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(BENCH).with_suffix("").parts).removesuffix(".__init__")


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
    name, imported = name_of(path), imports_of(path)
    if name not in LAYERS:
        assert path.name == "__init__.py", f"say in LAYERS where {name} belongs"
        assert not imported
        return
    above = {other for other in imported if other not in LAYERS or LAYERS.index(other) >= LAYERS.index(name)}
    assert not above, f"{name} imports {sorted(above)}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: name_of(path) or "__init__")
def test_no_module_needs_a_test_or_plot_package(path: Path) -> None:
    """The suite runs where only PyTorch, Triton and transformers are: plots import matplotlib where they draw."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    assert not {name.split(".")[0] for name in found} & {"pytest", "pytest_benchmark", "matplotlib"}
