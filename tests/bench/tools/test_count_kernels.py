"""Machine code is split into loops, counted by pipe, and held against the committed table and the bars."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paths import ROOT

triton = pytest.importorskip("triton", reason="kernels are compiled by triton, which is not installed")

from bench.report import counts
from bench.tools import count_kernels, machine_code

TEXT = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00 */
        /*0010*/              @!P0 STL [R1], R4 ;                          /* 0x00 */
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64] ;        /* 0x00 */
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;   /* 0x00 */
        /*0040*/                   HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;     /* 0x00 */
        /*0050*/                   FFMA R5, R5, R6, R7 ;                   /* 0x00 */
        /*0060*/                   FADD R5, R5, R6 ;                       /* 0x00 */
        /*0070*/                   IMAD.WIDE.U32 R4, R5, R6, RZ ;          /* 0x00 */
        /*0080*/                   LOP3.LUT R5, R5, R6, R7, 0x96, !PT ;    /* 0x00 */
        /*0090*/                   PRMT R5, R5, 0x5410, R6 ;               /* 0x00 */
        /*00a0*/                   MUFU.EX2 R5, R5 ;                       /* 0x00 */
        /*00b0*/                   F2F.BF16.F32 R5, R5 ;                   /* 0x00 */
        /*00c0*/                   LDS.128 R8, [R4] ;                      /* 0x00 */
        /*00d0*/                   UIADD3 UR4, UR4, 0x1, URZ ;             /* 0x00 */
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;           /* 0x00 */
        /*00f0*/               @P0 BRA 0x30 ;                              /* 0x00 */
        /*0100*/                   STG.E desc[UR4][R2.64], RZ ;            /* 0x00 */
        /*0110*/               @P1 BRA 0x100 ;                             /* 0x00 */
        /*0120*/                   LDL R4, [R1] ;                          /* 0x00 */
        /*0130*/               @P2 BRA 0x20 ;                              /* 0x00 */
        /*0140*/                   EXIT ;                                  /* 0x00 */
        /*0150*/                   BRA 0x150;                              /* 0x00 */
        /*0160*/                   NOP;                                    /* 0x00 */
"""


def test_loops_are_found_and_counted_by_pipe() -> None:
    code = machine_code.instructions_of(TEXT)
    assert [(loop[0], loop[-1]) for loop in machine_code.loops_of(code)] == [
        (0x20, 0x130), (0x30, 0xF0), (0x100, 0x110)
    ]  # fmt: skip
    loop, outside = machine_code.parts_of(code)  # the loop that only stores is in neither
    assert [one.address for one in outside] == [0x0, 0x10, 0x20, 0x120, 0x130, 0x140, 0x150]
    assert machine_code.count(loop) == {
        "issue": 13, "fma": 3, "alu": 4, "mufu": 16, "mma": 48, "shared": 16 + 16 + 8 + 16, "local": 0, "f2f": 1,
        "prmt": 1, "bar": 1,
    }  # fmt: skip
    assert machine_code.count(outside)["local"] == 2


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "programs"),
    [(107, 8, 65536, 2), (128, 4, 32768, 4), (129, 4, 0, 3), (32, 1, 0, 32), (32, 4, 0, 16), (64, 8, 131072, 1)],
)
def test_programs_of_a_multiprocessor(registers: int, warps: int, shared: int, programs: int) -> None:
    assert count_kernels.programs(registers, warps, shared) == programs


@pytest.fixture
def committed() -> list[counts.Count]:
    return counts.read()


def changed(committed: list[counts.Count], **numbers: int) -> list[counts.Count]:
    """The counts, with other numbers of the first."""
    return [replace(committed[0], numbers=committed[0].numbers | numbers), *committed[1:]]


def test_a_table_is_read_as_it_was_written(committed: list[counts.Count], tmp_path: Path) -> None:
    path = tmp_path / "counts.md"
    path.write_text(f"text\n\n{counts.table(committed)}\n", encoding="utf-8")
    assert counts.read(path) == committed


@pytest.mark.parametrize(
    ("name", "change", "accepted"),
    [
        ("issue", 1.02, True),
        ("issue", 0.98, True),
        ("issue", 1.04, False),
        ("issue", 0.9, False),  # better, but the table and the page would be wrong
        ("alu", 1.1, False),
        ("registers", 1.1, True),
        ("programs", 0.5, False),
        ("programs", 2, True),
        ("grid", 2, False),
        ("stack", 8, False),
        ("prmt", 1, False),
        ("bar", 1, False),
    ],
)
def test_differences_are_found(committed: list[counts.Count], name: str, change: float, accepted: bool) -> None:
    old = committed[0][name]
    new = old + int(change) if name in count_kernels.NOT_MORE else round(old * change)
    found = count_kernels.differences(changed(committed, **{name: new}), committed)
    assert (found == []) == accepted
    assert accepted or f": {name} {new}, the table has {old}" in found[0]


def test_kernels_must_be_those_of_the_table(committed: list[counts.Count]) -> None:
    assert count_kernels.differences(committed, committed) == []
    (found,) = count_kernels.differences(committed[1:], committed)
    assert "not compiled" in found
    (found,) = count_kernels.differences(committed, committed[1:])
    assert "not in the table" in found


def test_no_table_excuses_local_memory_in_a_loop_or_f2f(committed: list[counts.Count]) -> None:
    before = count_kernels.faults(committed)
    assert committed[0].part == "loop 1"
    assert len(count_kernels.faults(changed(committed, local=2))) == len(before) + 1
    assert len(count_kernels.faults(changed(committed, f2f=1))) == len(before) + 1
    assert any(": 400, bar 300" in one for one in count_kernels.faults(changed(committed, issue=400)))


def test_the_committed_counts_meet_the_bars(committed: list[counts.Count]) -> None:
    assert count_kernels.faults(committed) == []


def test_counts_are_those_of_the_pinned_triton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert f"triton=={count_kernels.TRITON}" in (ROOT / "constraints.txt").read_text("utf-8").split()
    assert f"with triton {count_kernels.TRITON}:" in counts.COUNTS.read_text("utf-8")
    monkeypatch.setattr(triton, "__version__", "0.0")
    assert count_kernels.main([]) == 0
    assert capsys.readouterr().out == f"Skipped: counts are made by triton {count_kernels.TRITON}, this is 0.0\n"


@pytest.mark.slow
def test_the_machine_code_is_as_counted() -> None:
    """By a process of its own, where kernels are not interpreted."""
    if triton.__version__ != count_kernels.TRITON:
        pytest.skip(f"counts are made by triton {count_kernels.TRITON}, this is {triton.__version__}")
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.tools.count_kernels", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
