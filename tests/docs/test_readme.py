"""README: its code runs, it is short, and its table is what the result files say."""

from collections.abc import Callable
from pathlib import Path

from helpers.blocks import blocks
from helpers.paths import ROOT

from bench.report.__main__ import main as report

README = ROOT / "README.md"


def test_code_runs(run_page: Callable[[Path], str]) -> None:
    printed = run_page(README)
    lines = printed.splitlines()
    assert len(lines) == 2
    for line in lines:
        label, score, text = line.split(maxsplit=2)
        assert label in ("travel", "economy", "sport")
        assert 0 < float(score) < 1
        assert text in README.read_text(encoding="utf-8")


def test_ten_lines_of_code_lead_to_the_first_result() -> None:
    (code,) = [block for block in blocks(README) if block.language == "python"]
    assert len(code.code.splitlines()) <= 10
    assert code.line + len(code.code.splitlines()) <= 60


def test_tables_are_made_from_the_results() -> None:
    assert report(["--check"]) == 0
