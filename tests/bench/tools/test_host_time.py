"""The host's part of each launch is measured without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytest.importorskip("triton")


@pytest.mark.slow
def test_every_launcher_is_timed_beside_another_folder(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench.tools.host_time", "--against", str(ROOT / "kernels")]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert all(re.fullmatch(r"\S.*?( +\d+\.\d){2} +\d+\.\d\d", line) for line in lines), done.stdout
    names = {line.split(",")[0].split("  ")[0] for line in lines}
    assert {"attention", "attention backward", "attention_tiles", "layer_norm", "activation", "linear"} <= names
