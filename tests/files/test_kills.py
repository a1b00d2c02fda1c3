"""Jobs that are killed, at any instant, lose at most the shard under way, and end as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("ending", "most"),
    [
        (".npy", 12),
        pytest.param(".npy", 1000, marks=pytest.mark.slow),
        pytest.param(".safetensors", 20, marks=pytest.mark.slow),
        pytest.param(".jsonl", 20, marks=pytest.mark.slow),
        pytest.param(".parquet", 12, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_call_that_changes_a_file(tmp_path: Path, ending: str, most: int) -> None:
    script = ROOT / "tests" / "helpers" / "crashes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), ending, str(most)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == min(most, counts["calls"])
    assert counts["calls"] > 50
