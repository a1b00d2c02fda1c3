"""The table of counted machine code, which `python -m bench.tools.count_kernels` writes and checks."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from bench.engine.environment import RESULTS

from .markdown import markdown

COUNTS = RESULTS / "counts.md"
PIPES = ("issue", "fma", "alu", "mufu", "mma", "shared")
TOKENS = 65536


@dataclass(frozen=True)
class Count:
    """A part of a kernel's machine code.

    Attributes:
        kernel, case: the launch, as `compile_kernels` names it.
        part: "loop 1", "loop 2" (its hot loops), or "outside" (all the rest; the last part).
        rows, columns, heads: block of a program; 0 where it has none.
        grid: programs launched for TOKENS packed rows.
        warps, registers: warps a program, registers a thread.
        programs: programs that a multiprocessor holds at once.
        stack: bytes of local memory a thread.
        issue, fma, alu, mufu, mma, shared: cycles of its sub-partition that a warp takes of each pipe in this part; of
            a loop, in a trip. `issue` is the number of instructions.
        local: loads and stores of local memory.
        f2f, prmt, bar: conversions of one element, permutations of bytes, barriers.
    """

    kernel: str
    case: str
    part: str
    rows: int
    columns: int
    heads: int
    grid: int
    warps: int
    registers: int
    programs: int
    stack: int
    issue: int
    fma: int
    alu: int
    mufu: int
    mma: int
    shared: int
    local: int
    f2f: int
    prmt: int
    bar: int

    @property
    def label(self) -> str:
        return f"{self.kernel}, {self.case}, {self.part}"

    @property
    def cycles(self) -> list[int]:
        """Cycles of a warp by pipe."""
        return [getattr(self, pipe) for pipe in PIPES]


def read(path: Path = COUNTS) -> list[Count]:
    """The counts of a table."""
    lines = [line.strip("| \n").split(" | ") for line in path.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [Count(*cells[:3], *map(int, cells[3:])) for cells in lines[2:]]  # type: ignore[arg-type]


def table(counts: Iterable[Count]) -> str:
    return markdown([field.name for field in fields(Count)], [list(map(str, astuple(one))) for one in counts])
