"""Kernels compile for GPUs that are not here, without spilling, and multiply on tensor cores."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT

pytest.importorskip("triton", reason="kernels are compiled by triton, which is not installed")

from bench import compiled

OVERLAYS = ROOT / ".pytest_cache"
OTHERS = [pair for pair in product(compiled.ARCHITECTURES, compiled.DTYPES) if pair != ("sm_90", "bfloat16")]
GOOD = compiled.Compiled(
    architecture="sm_90", dtype="bfloat16", kernel="attention_forward forward", case="d64 tile 64", warps=4, stages=2,
    matrix=True, registers=112, stack=0, spills=0, scalar_spills=0, shared=24576, tensor_memory=0, instructions=839,
    hgmma=8, mma=8, loads=14, wide=12,
)  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, where kernels are not interpreted."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def check(*arguments: str, **environment: str) -> str:
    """What the command prints where it finds no fault."""
    done = run("-m", "bench.compiled", "--check", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert " kernels compiled with triton " in done.stdout
    return done.stdout


def test_kernels_for_sm_90_have_no_fault() -> None:
    check("--architecture", "sm_90", "--dtype", "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype"), OTHERS)
def test_kernels_for_other_architectures_and_dtypes_have_no_fault(architecture: str, dtype: str) -> None:
    check("--architecture", architecture, "--dtype", dtype)


@pytest.fixture(params=["3.6.0", "3.9.0"])
def other_triton(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A version of Triton and the folder that it is installed in, beside the installed one."""
    version = request.param
    folder = OVERLAYS / f"triton-{version}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        packages = [f"triton=={version}"] + ["numpy<2.4"] * (version == "3.6.0")
        done = run("-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(part), *packages)
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"pip reaches no index that has triton {version}")
        assert done.returncode == 0, done.stderr
        part.rename(folder)
    return version, folder


@pytest.mark.slow
def test_kernels_have_no_fault_under_other_versions_of_triton(other_triton: tuple[str, Path]) -> None:
    version, folder = other_triton
    printed = check("--architecture", "sm_90", "--dtype", "bfloat16", PYTHONPATH=str(folder))
    assert f"with triton {version}," in printed


@pytest.mark.slow
def test_kernels_are_right_under_other_versions_of_triton(other_triton: tuple[str, Path]) -> None:
    """By their interpreters."""
    files = ["tests/kernels/test_attention.py", "tests/kernels/test_rows.py"]
    done = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "float32 or any_lengths or bit_for_bit", *files,
        PYTHONPATH=str(other_triton[1]),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"stack": 8}, "spills"),
        ({"spills": 2}, "spills"),
        ({"architecture": "gfx942", "hgmma": 0, "scalar_spills": 3}, "spills"),
        ({"hgmma": 0}, "without HGMMA"),
        ({"hgmma": 0, "mma": 0}, "without tensor cores"),
        ({"architecture": "sm_80", "hgmma": 0}, None),
        ({"architecture": "sm_80", "hgmma": 0, "mma": 0}, "without tensor cores"),
        ({"hgmma": 0, "mma": 0, "dtype": "float32"}, None),
        ({"hgmma": 0, "mma": 0, "matrix": False}, None),
        ({"shared": 227 * 1024}, None),
        ({"shared": 227 * 1024 + 1}, "shared memory"),
        ({"architecture": "sm_120", "shared": 100 * 1024}, "shared memory"),
        ({"architecture": "sm_100", "tensor_memory": 513}, "tensor memory"),
    ],
)
def test_faults_are_found(changes: dict[str, Any], fault: str | None) -> None:
    found = compiled.faults(replace(GOOD, **changes))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_a_fault_fails_the_check_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(compiled, "compile_all", lambda *_: [GOOD, replace(GOOD, case="d64 tile 32", stack=40)])
    path = tmp_path / "report.md"
    arguments = ["--architecture", "sm_90", "--output", str(path)]
    assert compiled.main(arguments) == 0
    assert compiled.main([*arguments, "--check"]) == 1
    assert "sm_90 bfloat16 attention_forward forward, d64 tile 32: spills" in capsys.readouterr().err
    assert "| attention_forward forward | d64 tile 64 | 4 | 2 | 112 | 0 | 0 | 24576 | 839 | 8/8 | 12/14 |" in (
        path.read_text(encoding="utf-8")
    )


def test_a_bad_row_of_the_tables_is_found_in_the_machine_code() -> None:
    code = """
from bench import compiled
from erniem_fast.kernels import configs

case = compiled.Case("sm_90", "bfloat16", "attention", 64, True, len(compiled.ATTENTION_TILES) - 1)
configs.ATTENTION["sm_90"]["columns", "16x64", 128] = configs.AttentionConfig(128, 4, 2)
print(*[kernel.kernel for kernel in compiled.compile_case(case) if compiled.faults(kernel)])
"""
    done = run("-c", code)
    assert done.stdout.split() == ["attention_backward", "backward_columns"], done.stdout + done.stderr


def test_interpreted_kernels_are_refused() -> None:
    done = run("-m", "bench.compiled", "--list", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "TRITON_INTERPRET is set" in done.stderr


def test_the_committed_report_lists_the_present_kernels() -> None:
    """Of one architecture; what it says of them is as old as the report."""
    done = run("-m", "bench.compiled", "--list", "--architecture", "sm_90", "--dtype", "bfloat16")
    launches = sorted(tuple(line.split("\t")[2:]) for line in done.stdout.splitlines())
    assert launches, done.stderr
    text = compiled.RESULTS.read_text(encoding="utf-8")
    section = text.partition("## sm_90, bfloat16\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    listed = sorted((kernel, case, warps, stages or "0") for kernel, case, warps, stages, *_ in rows[2:])
    assert listed == launches, "run `python -m bench.compiled`"
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    version = next(line.partition("==")[2] for line in pinned if line.startswith("triton=="))
    assert f"with triton {version};" in text
