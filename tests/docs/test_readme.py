"""README: its code runs, it is short, and its table is what the result files say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.blocks import blocks
from helpers.paths import ROOT

from bench.engine.environment import RESULTS
from bench.engine.results import ResultFile
from bench.report.__main__ import main as report

README = ROOT / "README.md"


def test_code_runs(run_page: Callable[[Path], str]) -> None:
    printed = run_page(README)
    *lines, first, second = printed.splitlines()
    assert len(lines) == 2
    products = [list(map(float, row.strip("[] ").split())) for row in (first, second)]
    assert [products[0][0], products[1][1]] == pytest.approx([1, 1], abs=1e-5), "vectors of length 1"
    for line in lines:
        label, score, text = line.split(maxsplit=2)
        assert label in ("travel", "economy", "sport")
        assert 0 < float(score) < 1
        assert text in README.read_text(encoding="utf-8")


def test_ten_lines_of_code_lead_to_the_first_result() -> None:
    code = next(block for block in blocks(README) if block.language == "python")
    assert len(code.code.splitlines()) <= 10
    assert code.line + len(code.code.splitlines()) <= 60


def test_tables_are_made_from_the_results() -> None:
    assert report(["--check"]) == 0


def newest(suite: str) -> ResultFile:
    file = ResultFile.newest(RESULTS, suite)
    assert file is not None
    return file


def test_figures_beside_the_table_are_those_of_the_files() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    tokenizer, zero_shot = newest("tokenizer"), newest("zero-shot")
    row = tokenizer.content["rows"]["short lines"]
    ids, offsets = (row["to_sentencepiece"][way] for way in ("ids", "offsets"))
    assert f"{ids:.1f} times as long as SentencePiece alone on {row['texts']:,} short lines" in text
    assert f"with offsets {offsets:.1f} times" in text
    assert f"takes {row['rust_to_ids']:.0f} times as long as ours" in text
    assert f"({tokenizer.path.relative_to(ROOT)})" in text
    ratios = {row["provider"]: row["ratio"] for row in zero_shot.content["rows"]}
    assert f"takes {ratios['pipeline']:.1f} times as long as our `zero_shot_classification`" in text
    assert f"around a padded model, {ratios['pipeline, batch_size=8, padded model']:.1f} times" in text
