"""What all generated texts share: tables, units, goals, and texts between markers or in a file of their own."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A bar that the project has set itself.

    Attributes:
        what: is measured.
        bar: at least (`more`) or at most.
        value: from the cases; a KeyError where they were not run.
        suffix: what stands behind the number.
    """

    what: str
    bar: float
    more: bool
    value: Callable[[Any], float]
    suffix: str

    def row(self, cases: Any) -> list[str] | None:
        """Cells of the table; None where the cases were not run."""
        try:
            value = self.value(cases)
        except KeyError:
            return None
        met = value >= self.bar if self.more else value <= self.bar
        bar = f"{'at least' if self.more else 'at most'} {self.bar:g}{self.suffix}"
        return [self.what, f"{value:.2f}{self.suffix}", bar, "yes" if met else "no"]


def goals_table(goals: Iterable[Goal], cases: Any) -> str:
    """The goals whose cases were run."""
    rows = [row for goal in goals if (row := goal.row(cases)) is not None]
    return markdown(["what", "measured", "goal", "met"], rows) if rows else ""


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float) -> str:
    """A time with a fitting unit."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def write_or_check(path: Path, expected: str, write: bool, command: str) -> int:
    """Write a generated file, or say whether it is what it should be; an exit code.

    Args:
        path: of the file.
        expected: its whole text.
        write: whether to write it; else it is compared.
        command: that writes it.
    """
    if write:
        path.write_text(expected, encoding="utf-8")
        return 0
    if not path.exists() or path.read_text(encoding="utf-8") != expected:
        print(f"{path} is stale: run `{command}`", file=sys.stderr)
        return 1
    return 0
