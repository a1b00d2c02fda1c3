"""Texts between two markers in README.md and the pages of docs/."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.engine.environment import ROOT

from .tables import details, summary
from .texts import embedders, formats, precision, zero_shot

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
DOCS = ROOT / "docs"
PAGES: dict[Path, Callable[[Path], str]] = {
    ROOT / "README.md": summary,
    DOCS / "benchmarks.md": details,
    DOCS / "quantisation.md": formats,
    DOCS / "cpu.md": precision,
    DOCS / "sentence_embeddings.md": embedders,
    DOCS / "zero_shot.md": zero_shot,
}
"""Pages, and what makes their part from a folder of results."""


def texts(results: Path) -> Iterator[tuple[Path, str]]:
    """Pages that exist and their texts as they should be.

    Raises:
        FileNotFoundError: there is no result of a CPU.
        ValueError: a page lacks the markers.
    """
    for path, make in PAGES.items():
        if path.exists():
            before, start, rest = path.read_text(encoding="utf-8").partition(START)
            _, end, after = rest.partition(END)
            if not start or not end or START in rest or END in after:
                raise ValueError(f"{path}: there must be one {START} and after it one {END}")
            yield path, f"{before}{START}\n{make(results)}\n{END}{after}"
