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

from bench.tools import compile_kernels

OVERLAYS = ROOT / ".pytest_cache"
PAIRS = list(product(compile_kernels.ARCHITECTURES, compile_kernels.DTYPES))
CODE = {
    "registers": 112, "stack": 0, "spills": 0, "looped_spills": 0, "scalar_spills": 0, "instructions": 839, "hgmma": 8,
    "mma": 8, "loads": 14, "wide": 12, "shared": 24576, "tensor_memory": 0,
}  # fmt: skip
GOOD = compile_kernels.Compiled("sm_90", "bfloat16", "attn_fwd_kernel", "d64 tile 64", 4, 2, matrix=True, code=CODE)


def changed(**changes: Any) -> compile_kernels.Compiled:
    """The good kernel with other fields, or other numbers of its machine code."""
    code = {name: value for name, value in changes.items() if name in CODE}
    others = {name: value for name, value in changes.items() if name not in CODE}
    return replace(GOOD, code=CODE | code, **others)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, where kernels are not interpreted."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def check(*arguments: str, **environment: str) -> str:
    """Output of the command where it finds no fault."""
    done = run("-m", "bench.tools.compile_kernels", "--check", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert " kernels compiled with triton " in done.stdout
    return done.stdout


SCRIPT = """
from bench.tools.compile_kernels import CompileCase, compile_case, faults, main

main(["--list", "--architecture", "sm_90", "--dtype", "bfloat16"])
for of in (("sm_90", "bfloat16"), ("gfx942", "float16")):
    for kernel in compile_case(CompileCase(*of, "layer_norm, unsaved", 768)):
        print("compiled", kernel.kernel, kernel.code["registers"] > 0, kernel.code["loads"] > 0, faults(kernel))
"""


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """Launches for sm_90, and a kernel compiled for two GPUs that are not there."""
    done = run("-c", SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_there(printed: list[str]) -> None:
    """Each kind of binary is read."""
    compiled = [line for line in printed if line.startswith("compiled ")]
    assert compiled == ["compiled layer_norm_fwd_kernel True True []"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype"), PAIRS)
def test_kernels_have_no_fault(architecture: str, dtype: str) -> None:
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
    done = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "float32 or any_lengths or bit_for_bit", "tests/kernels",
        PYTHONPATH=str(other_triton[1]),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"stack": 8}, "spills"),
        ({"spills": 2, "looped_spills": 1}, "2 registers, loads or stores, 1 of them in loops"),
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
    found = compile_kernels.faults(changed(**changes))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


@pytest.mark.parametrize(
    ("stack", "looped", "known"), [(8, 0, True), (88, 0, True), (8, 1, False), (128, 0, False)]
)  # fmt: skip
def test_some_local_memory_is_known_outside_loops(stack: int, looped: int, known: bool) -> None:
    kernel = changed(kernel="attn_bwd_single_tile_kernel", stack=stack, spills=2, looped_spills=looped)
    ((_, found),) = compile_kernels.complaints(kernel)
    assert found == known


@pytest.fixture
def compiled_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command compiles a good kernel, a faulty one and one with a known fault, and writes to this file."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    faulty = changed(case="d64 tile 32", stack=40, looped_spills=1, registers=255)
    known = changed(
        architecture="sm_120", kernel="attn_bwd_dq_kernel", case="d128 tile 64 list", stack=8, spills=2, hgmma=0
    )
    monkeypatch.setattr(compile_kernels, "compile_all", lambda *_: [GOOD, faulty, known])
    path = tmp_path / "report.md"
    monkeypatch.setattr(compile_kernels, "REPORT", path)
    return path


def test_a_fault_fails_the_check_and_is_named(compiled_two: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--architecture", "sm_90"]
    assert compile_kernels.main([*arguments, "--table"]) == 0
    printed = capsys.readouterr()
    assert "| sm_90 | bfloat16 | attn_fwd_kernel | d64 tile 64 | 4 | 2 | 112 | 0 | 0 |" in printed.out
    assert "3 kernels compiled" in printed.out
    assert "1 faults, 1 known ones" in printed.out
    assert compile_kernels.main([*arguments, "--check"]) == 1
    assert "sm_90 bfloat16 attn_fwd_kernel, d64 tile 32: spills" in capsys.readouterr().err
    assert not compiled_two.exists(), "a part of it is no report"


def test_the_report_is_a_short_summary(compiled_two: Path) -> None:
    assert compile_kernels.main([]) == 0
    text = compiled_two.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    (hopper, other) = (line for line in text.splitlines() if line.startswith("| sm_"))
    digest = compile_kernels.digest([GOOD, changed(case="d64 tile 32")])
    expected = f"| sm_90 | bfloat16 | 2 | {digest} | 255 (attn_fwd_kernel, d64 tile 32) | 40 | 0 | 24 KiB | 1 | 0 |"
    assert hopper == expected
    assert other.endswith("| 8 | 2 | 24 KiB | 0 | 1 |")
    assert all(pattern in text for pattern in compile_kernels.KNOWN)


def test_a_digest_is_of_the_launches_in_any_order() -> None:
    others = [changed(case="d64 tile 32"), changed(warps=8), changed(stages=1)]
    digests = {compile_kernels.digest([GOOD, other]) for other in others}
    assert len(digests) == 3
    assert compile_kernels.digest([others[0], GOOD]) in digests
    assert compile_kernels.digest([GOOD]) == compile_kernels.digest([changed(registers=1)])


@pytest.mark.slow
def test_a_bad_row_of_the_tables_is_found_in_the_machine_code() -> None:
    code = """
from bench.tools import compile_kernels
from erniem_fast.kernels import configs

case = compile_kernels.CompileCase("sm_90", "bfloat16", "attention", 64, True, len(compile_kernels.ATTENTION_TILES) - 1)
row = configs.AttentionConfig(128, 128, 4, 2)
configs.TUNED["sm_90"] = {("attention", "bwd_dkdv", "16x64", 128, True): row}
print(*[kernel.kernel for kernel in compile_kernels.compile_case(case) if compile_kernels.faults(kernel)])
"""
    done = run("-c", code)
    assert done.stdout.split() == ["attn_bwd_dkdv_kernel"], done.stdout + done.stderr


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET is set"):
        compile_kernels.main(["--list"])


@pytest.mark.slow
def test_the_committed_report_is_of_the_present_kernels(printed: list[str]) -> None:
    """Of one architecture; the figures are as old as the report."""
    cells = [line.split("\t") for line in printed if line.startswith("sm_90\t")]
    launches = [compile_kernels.Launch(*words[:4], int(words[4]), int(words[5])) for words in cells]
    text = compile_kernels.REPORT.read_text(encoding="utf-8")
    row = f"| sm_90 | bfloat16 | {len(launches)} | {compile_kernels.digest(launches)} |"
    assert row in text, "run `python -m bench.tools.compile_kernels`"
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    version = next(line.partition("==")[2] for line in pinned if line.startswith("triton=="))
    assert f"with triton {version};" in text
