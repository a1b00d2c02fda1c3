"""Code blocks of the documentation: finding them, and running them unmodified.

A block is fenced and names its language. `python` and `sh` blocks are run: all `python` blocks of a page in order in
one process, each `sh` block by itself. `text` is for what is not code. A comment right above a block says where it
runs, if not in every test run:

    <!-- ci: install -->  by `.ci/run` alone, in an environment of its own, from the root of the checkout
    <!-- ci: make -->     by `.ci/run` alone, which calls the same targets
    <!-- needs: gpu -->   by the tests, where there is a GPU

`python tests/helpers/blocks.py` prints the blocks that install, as one script.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "sh", "text")
INSTALL, MAKE, GPU = MARKS = ("ci: install", "ci: make", "needs: gpu")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)$")
MARK = re.compile(r"^ *<!-- (?P<mark>(?:ci|needs): .*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: path of the page.
        line: number of its first line of code in the page, from 1.
        language: as the fence names it.
        mark: of the comment above it, or "".
        code: the text between the fences, without their indentation.
    """

    page: Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def name(self) -> str:
        """Path and line, relative to the root of the repository."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    folders = ("docs", ".github", "bench", "erniem_fast", "kernels", "tests")
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))])


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: the last fence is not closed.
    """
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, opened, mark = 0, None, ""
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            start, opened = number + 1, fence
        elif opened is not None and fence and not fence["language"]:
            code = "".join(f"{text.removeprefix(opened['indent'])}\n" for text in lines[start - 1 : number - 1])
            found.append(Block(page, start, opened["language"], mark, code))
            opened, mark = None, ""
        elif opened is None and line.strip():
            comment = MARK.match(line)
            mark = comment["mark"] if comment else ""
    if opened is not None:
        raise ValueError(f"{page}:{start - 1}: the block is not closed")
    return found


def script(chosen: Sequence[Block]) -> str:
    """Blocks of one page as one script, in which every line has the number that it has in the page."""
    lines: list[str] = []
    for block in chosen:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for found in [block for page in pages() for block in blocks(page) if block.mark == INSTALL]:
        print(f"# {found.name}\n{found.code}")
