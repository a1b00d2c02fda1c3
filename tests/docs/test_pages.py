"""Every code block of the documentation is run by a test or by `.ci/run`, and every link leads somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.blocks import INSTALL, LANGUAGES, MAKE, MARKS, Block, blocks, pages, script
from helpers.paths import ROOT
from helpers.processes import PATIENCE

CI = ROOT / ".ci" / "run"
README = ROOT / "README.md"
RUN = [page for page in pages() if page != README and any(block.language != "text" for block in blocks(page))]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)\s]*)\)")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_page_runs(page: Path, run_page: Callable[[Path], str]) -> None:
    run_page(page)


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_every_block_is_run_somewhere(page: Path) -> None:
    # The parser does not see blocks that indentation alone makes.
    fenced = {number for block in blocks(page) for number in range(block.line, block.line + block.code.count("\n"))}
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, (before, line) in enumerate(pairwise(lines), 2):
        indented = line.startswith("    ") and not before.strip()
        assert not indented or number in fenced, f"{page}:{number}: a block without a fence"
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.name}: language {block.language!r}"
        assert block.mark in ("", *MARKS), f"{block.name}: mark {block.mark!r}"
        if block.mark in (INSTALL, MAKE):
            assert block.language == "sh", f"{block.name}: only shell blocks are left to .ci/run"
        if block.mark == MAKE:
            asked = _commands(re.findall(r"^make .*?(?= *#|$)", block.code, re.MULTILINE))
            assert len(block.code.splitlines()) == len(asked), f"{block.name}: not only calls of make"
            done = set().union(*_commands(re.findall(r"^make .*$", CI.read_text(encoding="utf-8"), re.MULTILINE)))
            for commands in asked:
                assert commands <= done, f"{block.name}: .ci/run leaves out {commands - done}"


def _commands(calls: list[str]) -> list[set[str]]:
    """Commands that each call of make would run, without the arguments that a call may set."""
    found = []
    # Not those of a make that runs these tests.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    for call in calls:
        target = call.split()[1]
        dry = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=environment, timeout=PATIENCE,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(set(dry.stdout.splitlines()))
    return found


def test_ci_runs_the_blocks_that_install() -> None:
    assert "tests/helpers/blocks.py" in CI.read_text(encoding="utf-8")
    printed = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "blocks.py"],
        capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=True,
    ).stdout  # fmt: skip
    installing = [block for page in pages() for block in blocks(page) if block.mark == INSTALL]
    assert installing
    for block in installing:
        assert block.code in printed


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page}: {link}"


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The parser


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    parts = ["Text\n", "```python", "x = 1", "```\n", "<!-- needs: gpu -->", "```sh", "ls", "pwd", "```"]
    parts += ["1. Item\n", "   ```python", "   y = x", "   ```\n"]
    page.write_text("\n".join(parts), encoding="utf-8")
    assert blocks(page) == [
        Block(page, 4, "python", "", "x = 1\n"),
        Block(page, 9, "sh", "needs: gpu", "ls\npwd\n"),
        Block(page, 15, "python", "", "y = x\n"),
    ]
    assert script([block for block in blocks(page) if block.language == "python"]).splitlines() == [
        *[""] * 3, "x = 1", *[""] * 10, "y = x",
    ]  # fmt: skip


def test_a_block_without_an_end_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nls\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not closed"):
        blocks(page)
