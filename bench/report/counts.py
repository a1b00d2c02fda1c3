"""The table of counted machine code, which `python -m bench.tools.count_kernels` writes and checks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.engine.environment import RESULTS

from .markdown import markdown

COUNTS = RESULTS / "counts.md"
TOKENS = 65536
LAUNCH = ("rows", "columns", "heads", "grid", "warps")
PIPES = ("issue", "fma", "alu", "mufu", "mma", "shared")
COLUMNS = (*LAUNCH, "registers", "programs", "stack", *PIPES, "local", "f2f", "prmt", "bar")
"""Numbers of a part; the table's page says what they are."""


@dataclass(frozen=True)
class Count:
    """A hot loop ("loop 1") of a kernel, or all its other code ("outside", the last part)."""

    kernel: str
    case: str
    part: str
    numbers: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.numbers[name]


def read(path: Path = COUNTS) -> list[Count]:
    """The counts of a table."""
    lines = [line.strip("| \n").split(" | ") for line in path.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [
        Count(kernel, case, part, dict(zip(COLUMNS, map(int, numbers), strict=True)))
        for kernel, case, part, *numbers in lines[2:]
    ]


def table(counts: Iterable[Count]) -> str:
    rows = [[one.kernel, one.case, one.part, *(str(one.numbers[name]) for name in COLUMNS)] for one in counts]
    return markdown(["kernel", "case", "part", *COLUMNS], rows)
