"""The tool that measures the error of bfloat16 and int8."""

import json
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_a_dry_run(tmp_path: Path) -> None:
    from bench.report.texts import precision as table
    from bench.tools import precision

    before = torch.get_num_threads()
    try:
        options = ["--tiny", "--layers", "2", "--threads", "1", "--output", str(tmp_path)]
        assert precision.main(options) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert {row["provider"] for row in rows} == {"float32", "bfloat16", "int8"}
    assert len(rows) == 9
    for row in rows:
        if row["provider"] == "float32":
            assert row["least_cosine"] == pytest.approx(1, abs=1e-12)
        else:
            assert 0.99 < row["least_cosine"] <= row["mean_cosine"] < 1
    assert "| 8 lines of Tatoeba | int8 |" in table(tmp_path)
