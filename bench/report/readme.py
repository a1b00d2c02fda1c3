"""Texts between two markers in README.md and docs/benchmarks.md."""

from collections.abc import Callable
from pathlib import Path

from bench.engine.environment import ROOT

from .tables import details, summary

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
PAGES: dict[Path, Callable[[Path], str]] = {ROOT / "README.md": summary, ROOT / "docs" / "benchmarks.md": details}
"""Pages, and what makes their part from a folder of results."""


def replace(text: str, part: str) -> str:
    """Text with `part` between its markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise ValueError(f"there must be one {START} and after it one {END}")
    return f"{before}{START}\n{part}\n{END}{after}"
