"""The tool that measures the error of bfloat16 and int8."""

import re

import pytest
import torch


@pytest.mark.slow
def test_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.tools import precision

    before = torch.get_num_threads()
    try:
        assert precision.main(["--tiny", "--layers", "2", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "96 texts" in printed
    found = dict(re.findall(r"^(\w+) +cosine least ([\d.]+)", printed, re.M))
    assert found.pop("float32") == "1.00000"
    assert all(0.99 < float(cosine) <= 1 for cosine in found.values())
    assert set(found) == {"bfloat16", "int8"}
